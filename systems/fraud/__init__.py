"""Stop card payments that would be charged back. Read in order: config, data, features, model,
serving, evaluation, monitoring, benchmark, system."""
