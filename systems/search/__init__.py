"""Find the products that a shopper means. Read in order: config, data, features, model, serving, evaluation,
monitoring, benchmark, system."""
