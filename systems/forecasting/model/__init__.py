"""How demand is forecast: local methods, global trees, a blend of both that backtests choose, honest intervals."""

from systems.forecasting.model.forecaster import Forecaster, Library, Plain, Predicted, load, space, start

__all__ = ["Forecaster", "Library", "Plain", "Predicted", "load", "space", "start"]
