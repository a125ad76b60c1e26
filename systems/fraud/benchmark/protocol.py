"""The handbook's protocol: a week to learn from, a week until its labels are known, a week to be judged on."""

from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from common.clock import DAY, SECOND
from common.data.splits import Split, rolling
from common.features.view import Array, Times
from systems.fraud.benchmark.dataset import LABEL_DELAY
from systems.fraud.evaluation import card_precision

WEEK: Final = 7 * DAY
CARDS: Final = 100  # that investigators can check in a day
Index = NDArray[np.int64]


class Payments(NamedTuple):
    """What the protocol looks at, in the order of time; (n,) each."""

    paid: Times
    customer: Index
    fraud: NDArray[np.bool_]


class Fold(NamedTuple):
    """Rows to fit on and rows to be judged on."""

    train: Index
    test: Index


def _weeks(first: date) -> list[Split]:
    midnight = datetime(first.year, first.month, first.day, tzinfo=UTC)
    start = int(midnight.timestamp()) * SECOND
    return rolling(start, train=WEEK, label_delay=LABEL_DELAY, test=WEEK, folds=4, step=WEEK)


# Training weeks start at this day and on the next three weeks. The first test fold is protocol A; all are protocol B.
VALIDATION: Final = _weeks(date(2018, 6, 20))  # the last starts 14 days before the first of the test
TEST: Final = _weeks(date(2018, 7, 25))


def fold(payments: Payments, split: Split) -> Fold:
    """The rows of a split, less the test payments of cards that are known as defrauded when their day begins.

    Known are the frauds of the days that ended LABEL_DELAY ago or earlier, since the training week began. Such cards
    are blocked, so scoring them would flatter everybody.
    """
    paid, customer, fraud = payments
    (begin, learnt), (judged, end) = split
    train = np.flatnonzero((paid >= begin) & (paid < learnt))
    test = np.flatnonzero((paid >= judged) & (paid < end))
    day = paid // DAY
    first_fraud = np.full(int(customer.max()) + 1, np.iinfo(np.int64).max)  # day, by customer
    counted = fraud & (paid >= begin)
    np.minimum.at(first_fraud, customer[counted], day[counted])
    return Fold(train, test[first_fraud[customer[test]] >= day[test] - LABEL_DELAY // DAY])


def judge(payments: Payments, test: Index, score: Array) -> dict[str, float]:
    """The handbook's three metrics of scores in (0, 1), (n_test,), of the test rows.

    Of cards with the same score the lower number comes first, as in the handbook: of a forest of 100 trees
    some 30 cards share the score at the hundredth place.
    """
    by_number = np.argsort(payments.customer[test], kind="stable")
    test, score = test[by_number], score[by_number]
    fraud = payments.fraud[test].astype(np.float64)
    card, day = payments.customer[test].astype(object), payments.paid[test] // DAY
    return {
        "auc_roc": float(roc_auc_score(fraud, score)),
        "average_precision": float(average_precision_score(fraud, score)),
        f"card_precision_at_{CARDS}": card_precision(card, day, fraud, score, CARDS),
    }


def mean(folds: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([f[name] for f in folds])) for name in folds[0]}


def deviation(folds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Standard deviation over folds, ddof = 0 as in the handbook's tables."""
    return {name: float(np.std([f[name] for f in folds])) for name in folds[0]}
