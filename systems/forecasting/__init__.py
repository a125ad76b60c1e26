"""Forecast what will be sold, and order accordingly. Read in order: config, data, features, model, serving, evaluation,
monitoring, benchmark, system."""
