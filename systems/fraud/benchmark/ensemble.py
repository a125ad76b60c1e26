"""Small boosted trees over several seeds, blended with the formula."""

from collections.abc import Mapping
from typing import Final

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from common.features.view import Array

# Chosen on the validation folds: a week holds some 600 frauds, so trees stay small and many draws are averaged.
PARAMETERS: Final[Mapping[str, float | int | str | bool]] = {
    "objective": "binary",
    "learning_rate": 0.03,
    "num_leaves": 6,
    "min_data_in_leaf": 40,
    "lambda_l2": 10,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "monotone_constraints_method": "basic",
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,  # on a week of payments threads wait for each other longer than they work
    "verbose": -1,
}
ROUNDS: Final = 100
SEEDS: Final = (0, 1, 2, 3)
FORMULA_WEIGHT: Final = 0.5  # of the formula's log odds; the rest is the trees'


def trees(x: Array, y: NDArray[np.bool_], test: Array, rising: tuple[bool, ...]) -> Array:
    """Log odds of fraud of the test rows, (n_test,), mean over SEEDS; never falling with a `rising` feature."""
    parameters = dict(PARAMETERS) | {"monotone_constraints": [int(r) for r in rising]}
    models = [lgb.train(parameters | {"seed": seed}, lgb.Dataset(x, y), ROUNDS) for seed in SEEDS]
    return np.asarray(np.mean([model.predict(test, raw_score=True) for model in models], 0))


def blend(formula: Array, trees: Array) -> Array:
    """Two log odds to one score in (0, 1), (n,) each."""
    return np.asarray(expit(FORMULA_WEIGHT * formula + (1 - FORMULA_WEIGHT) * trees))
