"""The handbook's features, as feature views; its numbers; and its random forest, to see that the protocol is kept."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from common.clock import DAY, HOUR
from common.features import offline
from common.features.view import Aggregation, Array, FeatureView, OnDemand, assemble, ints
from systems.fraud.benchmark.dataset import LABEL_DELAY, THREADS, WINDOW, Chargeback, History, Transaction

Columns = Mapping[str, Array]
DAYS: Final = (1, 7, 30)


def _method(auc_roc: float, average_precision: float, card_precision: float) -> Mapping[str, float]:
    return {"auc_roc": auc_roc, "average_precision": average_precision, "card_precision_at_100": card_precision}


PUBLISHED: Final = {
    "protocol_a": {  # chapter 3, "Baseline fraud detection system"
        "logistic regression": _method(0.871, 0.606, 0.291),
        "decision tree of depth 2": _method(0.763, 0.496, 0.241),
        "random forest": _method(0.867, 0.658, 0.287),
        "XGBoost": _method(0.862, 0.639, 0.273),
        "neural network": _method(0.864, 0.653, 0.286),
    },
    "protocol_b": {  # chapters 5 to 7, prequential validation
        "logistic regression": _method(0.868, 0.623, 0.297),
        "random forest": _method(0.870, 0.678, 0.299),
        "XGBoost": _method(0.869, 0.687, 0.303),
        "XGBoost, optimal parameters": _method(0.872, 0.694, 0.304),
        "balanced bagging": _method(0.879, 0.680, 0.305),
        "neural network": _method(0.876, 0.675, 0.303),
    },
}

VIEWS: Final = (
    FeatureView(
        name="customer",
        source=Transaction,
        entity=("customer_id",),
        aggregations=(
            *(Aggregation(name=f"count_{d}d", kind="count", window=d * DAY) for d in DAYS),
            *(Aggregation(name=f"sum_{d}d", kind="sum", column="amount", window=d * DAY) for d in DAYS),
        ),
    ),
    *(
        FeatureView(
            name=name,
            source=source,
            entity=("terminal_id",),
            aggregations=tuple(
                Aggregation(name=f"count_{d}d", kind="count", window=d * DAY, delay=LABEL_DELAY) for d in DAYS
            ),
        )
        for name, source in (("terminal", Transaction), ("terminal_fraud", Chargeback))
    ),
)


def during_weekend(c: Columns) -> Array:
    weekday = (c["event_timestamp"] // DAY + 4) % 7  # the epoch was a Thursday; 0 is Sunday
    return np.isin(weekday, (0, 6)).astype(np.float64)


def during_night(c: Columns) -> Array:
    """The handbook's night ends at 6:59."""
    return (c["event_timestamp"] % DAY // HOUR <= 6).astype(np.float64)


def payments(days: int, c: Columns) -> Array:
    """The payment itself included, as published."""
    return c[f"customer.count_{days}d"] + 1


def mean_amount(days: int, c: Columns) -> Array:
    """EUR, the payment itself included, as published."""
    return (c[f"customer.sum_{days}d"] + c["amount"]) / (c[f"customer.count_{days}d"] + 1)


def terminal_risk(days: int, c: Columns) -> Array:
    """Share of frauds among the terminal's payments whose outcome is known; 0 where there are none."""
    return np.asarray(c[f"terminal_fraud.count_{days}d"] / np.maximum(c[f"terminal.count_{days}d"], 1))


def _feature(name: str, compute: Callable[[Columns], Array], *inputs: str) -> OnDemand:
    return OnDemand(name=name, inputs=inputs, version=1, compute=compute)


def _customer(days: int) -> tuple[OnDemand, OnDemand]:
    count, total = f"customer.count_{days}d", f"customer.sum_{days}d"
    return (
        _feature(f"CUSTOMER_ID_NB_TX_{days}DAY_WINDOW", partial(payments, days), count),
        _feature(f"CUSTOMER_ID_AVG_AMOUNT_{days}DAY_WINDOW", partial(mean_amount, days), count, total, "amount"),
    )


def _terminal(days: int) -> tuple[OnDemand, OnDemand]:
    count, frauds = f"terminal.count_{days}d", f"terminal_fraud.count_{days}d"
    return (
        _feature(f"TERMINAL_ID_NB_TX_{days}DAY_WINDOW", lambda c: c[count], count),
        _feature(f"TERMINAL_ID_RISK_{days}DAY_WINDOW", partial(terminal_risk, days), count, frauds),
    )


ON_DEMAND: Final = (  # in the handbook's order, which its random forest depends on
    _feature("TX_AMOUNT", lambda c: c["amount"], "amount"),
    _feature("TX_DURING_WEEKEND", during_weekend, "event_timestamp"),
    _feature("TX_DURING_NIGHT", during_night, "event_timestamp"),
    *(feature for days in DAYS for feature in _customer(days)),
    *(feature for days in DAYS for feature in _terminal(days)),
)


def features(history: History, requests: pa.Table) -> Array:
    """The 15 published features of some of the payments, (n_requests, 15)."""
    values = [
        offline.compute(view, history.transactions if view.source is Transaction else history.chargebacks, requests)
        for view in VIEWS
    ]
    return assemble(Transaction, VIEWS, ON_DEMAND, requests, values)[:, -len(ON_DEMAND) :]


def difference(folder: Path, requests: pa.Table, x: Array) -> float:
    """The greatest |ours - published| over the three weeks that are published with features, all 15 of them."""
    with duckdb.connect(config={"threads": THREADS}) as database:
        names = ", ".join(f"cast({f.name} as double)" for f in ON_DEMAND)
        found = database.sql(
            f"select TRANSACTION_ID, {names} from read_csv($path)", params={"path": str(folder / WINDOW)}
        ).fetchnumpy()
    number, *columns = found.values()
    known = ints(requests["event_id"].cast(pa.int64()))
    by_number = np.argsort(known)
    ours = by_number[np.searchsorted(known, number, sorter=by_number)]
    return float(np.abs(x[ours] - np.column_stack(columns)).max())


def random_forest(x: Array, y: NDArray[np.bool_], test: Array) -> Array:
    """P(fraud) of the test rows by the handbook's model, (n_test,)."""
    model = make_pipeline(StandardScaler(), RandomForestClassifier(random_state=0, n_jobs=THREADS))
    return np.asarray(model.fit(x, y).predict_proba(test)[:, 1])
