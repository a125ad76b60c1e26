"""M4 Hourly and Weekly as the competition judges: OWA, sMAPE, MASE, and MSIS of 95 % intervals, beside its entries.

One LightGBM per frequency that learns from all its series, direct over all steps ahead. Hourly: it corrects
autoregressions of each series' logarithm, which may also be averaged with it. Weekly: a series whose last two years
look like an earlier stretch of another series (or of itself) is forecast by what came next there. That is in the
training file that every entrant had, so nothing of the test part leaks; but it works because some of these series hold
pieces of each other, which a chain's would not: the score without it (`trees`) stands in the details.

Chosen beforehand, by backtests on the training part: lags, units, features, spans of origins and the size of trees.
Chosen in the run, by backtests on the last 2 (hourly) or 3 (weekly) horizons of the training part: shares of the
combination and the width of intervals, which is why the backtest scores in the details are a little too good. The test
files are opened when all forecasts are made; then the competition's own methods must first get their published scores.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from common.errors import BadData
from common.system import BenchmarkResult
from systems.forecasting.benchmark import combine, dataset, protocol, trees
from systems.forecasting.benchmark.combine import Forecasts, Way
from systems.forecasting.benchmark.dataset import Frequency, Panel, Values

PUBLISHED: Final[Mapping[str, Mapping[str, Mapping[str, float]]]] = {  # "Evaluation and Ranks.xlsx"
    "hourly": {
        "Naive": {"smape": 43.003, "mase": 11.608, "owa": 3.593, "msis": 71.245},
        "sNaive": {"smape": 13.912, "mase": 1.193, "owa": 0.627},
        "Naive2": {"smape": 18.383, "mase": 2.395, "owa": 1.0},
        "Theta": {"smape": 18.138, "mase": 2.455, "owa": 1.006},
        "Smyl (winner)": {"smape": 9.328, "mase": 0.893, "owa": 0.440, "msis": 7.928},
        "Montero-Manso": {"smape": 11.506, "mase": 0.819, "owa": 0.484},
        "Doornik (best)": {"smape": 8.913, "mase": 0.801, "owa": 0.410, "msis": 6.139},
        "Petropoulos": {"msis": 13.559},
        "ETS": {"msis": 17.487},
        "ARIMA": {"msis": 7.538},
    },
    "weekly": {
        "Naive": {"smape": 9.161, "mase": 2.777, "msis": 26.358},
        "sNaive": {"smape": 9.161, "mase": 2.777},
        "Naive2": {"smape": 9.161, "mase": 2.777, "owa": 1.0},
        "Theta": {"smape": 9.093, "mase": 2.637, "owa": 0.971},
        "Damped": {"smape": 8.866, "mase": 2.404, "owa": 0.917},
        "Smyl (winner)": {"smape": 7.817, "mase": 2.356, "owa": 0.851, "msis": 22.034},
        "Montero-Manso": {"smape": 7.625, "mase": 2.108, "owa": 0.796},
        "Darin (best)": {"smape": 6.582, "mase": 2.107, "owa": 0.739},
        "Doornik": {"msis": 16.469},
        "Petropoulos (best MSIS)": {"msis": 16.200},
        "ETS": {"msis": 20.386},
        "ARIMA": {"msis": 19.575},
    },
}
METRICS: Final = ("owa", "smape", "mase", "msis")
EXACT: Final = ("Naive", "sNaive", "Naive2")  # what has one definition, and no optimiser in it


def benchmark(data_dir: Path | None) -> BenchmarkResult:
    """On the data set under `data_dir`; raises NotFound or BadBundle when it is not there, BadData when the published
    scores of the competition's own methods are not reproduced."""
    return run(dataset.find(data_dir), ways(), check=True)


def ways() -> tuple[Way, ...]:
    hourly, weekly = trees.recipes()
    return combine.hourly(hourly), combine.weekly(weekly)


def run(folder: Path, ways: tuple[Way, ...], check: bool) -> BenchmarkResult:
    """On the files in the folder; `check` them against what is published of them."""
    made = []
    for way in ways:
        panel = dataset.train(folder, way.recipe.frequency)
        made.append((way.recipe.frequency, panel, combine.forecast(panel.y, way)))
    metrics: dict[str, float] = {}
    details: dict[str, Any] = {}
    for frequency, panel, forecasts in made:  # from here on the test part is known
        actual = dataset.test(folder, frequency, panel)
        if check:
            reproduce(frequency, panel, actual)
        found = judge(frequency, panel, actual, forecasts)
        details[frequency.name] = found
        metrics |= {f"{frequency.name}/{name}": found["test"]["combination"][name] for name in METRICS}
    return BenchmarkResult(
        dataset=dataset.DATASET.name,
        metrics=metrics,
        published=PUBLISHED,
        rows=sum(len(panel.y) for _, panel, _ in made),
        details=details,
    )


def reproduce(frequency: Frequency, panel: Panel, actual: Values) -> None:
    """Raises BadData where a score that is published of a method with one definition comes out differently."""
    scale = protocol.scale(panel.y, frequency.season)
    points = protocol.baselines(panel.y, frequency)
    lower, upper = protocol.naive_interval(panel.y, frequency.horizon)
    for method in EXACT:
        found = {"smape": protocol.smape(actual, points[method]), "mase": protocol.mase(actual, points[method], scale)}
        if method == "Naive":
            found["msis"] = protocol.msis(actual, lower, upper, scale)
        for metric, values in found.items():
            expected = PUBLISHED[frequency.name][method][metric]
            if abs(values.mean() - expected) > 0.0006:  # published to three places
                raise BadData(f"{frequency.name} {method} {metric}: must be {expected}, got {values.mean():.4f}")


def judge(frequency: Frequency, panel: Panel, actual: Values, forecasts: Forecasts) -> dict[str, Any]:
    scale = protocol.scale(panel.y, frequency.season)
    points = {**protocol.baselines(panel.y, frequency), **forecasts.components}
    errors = {
        name: (protocol.smape(actual, point), protocol.mase(actual, point, scale)) for name, point in points.items()
    }
    naive2 = errors["Naive2"]
    test = {
        name: {
            "owa": protocol.owa(smape, mase, naive2),
            "smape": float(smape.mean()),
            "mase": float(mase.mean()),
            "owa_interval": protocol.interval(smape, mase, naive2),
        }
        for name, (smape, mase) in errors.items()
    }
    inside = (actual >= forecasts.lower) & (actual <= forecasts.upper)
    test["combination"] |= {
        "msis": float(protocol.msis(actual, forecasts.lower, forecasts.upper, scale).mean()),
        "coverage": float(inside.mean()),
        "acd": protocol.acd(actual, forecasts.lower, forecasts.upper),
    }
    return {
        "test": test,
        "chosen": dict(forecasts.chosen),
        "series": len(panel.y),
        "horizon": frequency.horizon,
        "steps": int(np.isfinite(panel.y).sum()),
    }
