"""How likely each payment belongs to one of the three fraud scenarios that the handbook describes.

Chapter 3, "Transaction data simulator", says how the frauds arise; a fraud expert would know as much of real ones:

1. every payment above 220 EUR is a fraud;
2. each day 2 of 10,000 terminals are drawn, and for 28 days every payment there is a fraud (skimming, phishing);
3. each day 3 of 5,000 customers are drawn, and for 14 days a third of their payments are multiplied by five and are
   frauds (leaked credentials, card not present).

So for 2 and 3 the question is whether a campaign that began some days ago still runs. Bayes answers: sum, over the days
on which it may have begun, the prior odds times the likelihood ratio of what has been seen since then. Of a terminal
that is which payments were frauds, known LABEL_DELAY late; of a card it is the amounts, known at once.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Final

import numpy as np
import pyarrow as pa

from common.clock import DAY, SECOND
from common.features import offline
from common.features.view import Aggregation, Array, FeatureView, Kind, OnDemand, assemble, numbers
from systems.fraud.benchmark.dataset import LABEL_DELAY, Chargeback, History, Transaction

Columns = Mapping[str, Array]

# As published
LIMIT: Final = 220.0  # EUR; above it all payments are frauds
TERMINAL_RATE: Final = 2 / 10_000  # campaigns per terminal and day
TERMINAL_CAMPAIGN: Final = 28  # days
CARD_RATE: Final = 3 / 5_000  # campaigns per card and day
STOLEN_SHARE: Final = 1 / 3  # of a compromised card's payments
STOLEN_FACTOR: Final = 5  # times the usual amount
SPREAD: Final = 0.5  # standard deviation of a card's amounts, as a share of their mean
REDRAWN: Final = 0.0228  # P(a normal amount is below 0), which is then drawn evenly between 0 and twice the mean
DELAY_DAYS: Final = LABEL_DELAY // DAY

# Chosen on the validation folds
TYPICAL: Final = 52.0  # EUR, mean of all cards
TYPICAL_WEIGHT: Final = 0.5  # payments that this is worth
CHANCE: Final = 1e-6  # density of amounts outside both laws, per usual amount, in a card's past
CHANCE_NOW: Final = 1e-9  # the same for the payment itself
SURPRISE: Final = (2.5, 7.5, 25.0)  # nats at LIMIT, nats at most, EUR per nat
REPEAT_DAYS: Final = DELAY_DAYS + 1  # in which a terminal whose campaign is over may have been drawn again
CERTAIN: Final = 1 - 1e-7  # no scenario is surer
SMALLEST: Final = 1e-9  # keeps log odds finite

# A terminal's campaign began so many days before the last known outcome; on a coarse grid, a step stands for its days.
# Campaigns begin at midnight and payments come half a day later on average, so windows are half a day longer.
RUNNING: Final = (0, 1, 2, 3, 5, 7, 10, 13, 17, 20)  # with the delay less than TERMINAL_CAMPAIGN
OVER: Final = (21, 23, 25, 28, 33, 38, 41)  # their ends, 28 days later, are unknown yet or in RUNNING
CARD_DAYS: Final = (1, 3, 7, 14)  # a card's campaign began so many days ago
LONG: Final = 365 * DAY  # longer than the data
FORMULA: Final = "any_scenario_log_odds"


class Surprise(Chargeback):
    """A chargeback and how hard it is to explain without a campaign at its terminal."""

    surprise: float  # nats


def surprise(amount: Array) -> Array:
    """-log P(a payment of this amount in EUR is a fraud although its terminal is sound), (n,) -> (n,).

    Above LIMIT that is certain; below, it takes a thief with the card, whose amounts are large.
    """
    at_limit, most, per_nat = SURPRISE
    return np.where(amount > LIMIT, 0.0, np.minimum(most, at_limit + (LIMIT - amount) / per_nat))


def _window(days: int) -> str:
    return f"{days}.5d"


def _aggregations(windows: Sequence[int], *what: tuple[str, Kind, str | None]) -> tuple[Aggregation, ...]:
    return tuple(
        Aggregation(name=f"{name}_{_window(w)}", kind=kind, column=column, window=w * DAY + DAY // 2, delay=LABEL_DELAY)
        for name, kind, column in what
        for w in windows
    )


KNOWN: Final = (
    Aggregation(name="count", kind="count", window=LONG, delay=LABEL_DELAY),
    Aggregation(name="sum", kind="sum", column="amount", window=LONG, delay=LABEL_DELAY),
)
NEWEST: Final = Aggregation(name="age", kind="time_since", window=LONG, delay=LABEL_DELAY)

VIEWS: Final = (
    FeatureView(
        name="card",
        source=Transaction,
        entity=("customer_id",),
        aggregations=(
            *KNOWN,
            *(Aggregation(name=f"count_{d}d", kind="count", window=d * DAY) for d in CARD_DAYS),
            *(Aggregation(name=f"max_{d}d", kind="max", column="amount", window=d * DAY) for d in CARD_DAYS),
        ),
    ),
    FeatureView(name="card_fraud", source=Surprise, entity=("customer_id",), aggregations=KNOWN),
    FeatureView(
        name="terminal",
        source=Transaction,
        entity=("terminal_id",),
        aggregations=(NEWEST, *_aggregations(RUNNING + OVER, ("count", "count", None))),
    ),
    FeatureView(
        name="terminal_fraud",
        source=Surprise,
        entity=("terminal_id",),
        aggregations=(
            NEWEST,
            *_aggregations(RUNNING + OVER, ("count", "count", None), ("surprise", "sum", "surprise")),
        ),
    ),
)


def usual_amount(c: Columns) -> Array:
    """EUR, the mean of the card's payments that are known to be genuine, drawn towards that of all cards."""
    n = c["card.count"] - c["card_fraud.count"]
    return (c["card.sum"] - c["card_fraud.sum"] + TYPICAL * TYPICAL_WEIGHT) / (n + TYPICAL_WEIGHT)


def genuine(days: int, c: Columns) -> Array:
    """The terminal's payments of the days before the last known outcome that were no frauds."""
    return c[f"terminal.count_{_window(days)}"] - c[f"terminal_fraud.count_{_window(days)}"]


def _likelihood_ratio(c: Columns, began: int, ended: int | None) -> Array:
    """Of a terminal's known outcomes: a campaign from `began` to `ended`, to none; days before the last known outcome.

    One genuine payment within it rules a campaign out; each fraud speaks for it by as much as it would surprise else.
    """
    honest, evidence = genuine(began, c), c[f"terminal_fraud.surprise_{_window(began)}"]
    if ended is not None:
        honest, evidence = honest - genuine(ended, c), evidence - c[f"terminal_fraud.surprise_{_window(ended)}"]
    return np.where(honest == 0, np.exp(evidence), 0.0)


def terminal_campaign(c: Columns) -> Array:
    """P(a campaign runs at the terminal), (n,)."""
    running = np.full(len(c["amount"]), DELAY_DAYS * TERMINAL_RATE)  # began since: nothing is known for or against it
    for before, began in pairwise((-1, *RUNNING)):
        running += TERMINAL_RATE * (began - before) * _likelihood_ratio(c, began, None)
    over = np.zeros_like(running)
    for before, began in pairwise((RUNNING[-1], *OVER)):
        ended = began - TERMINAL_CAMPAIGN
        over += TERMINAL_RATE * (began - before) * _likelihood_ratio(c, began, ended if ended >= 0 else None)
    now = running / (1 + running + over)
    again = REPEAT_DAYS * TERMINAL_RATE * over / (1 + over)
    return np.asarray(now + (1 - now) * again)


def density(amount: Array, mean: Array) -> Array:
    """Of the amounts of somebody who spends `mean` EUR on average, 1 / EUR."""
    spread = SPREAD * mean
    normal = np.exp(-0.5 * ((amount - mean) / spread) ** 2) / (spread * np.sqrt(2 * np.pi))
    return np.asarray(normal + REDRAWN * (amount < 2 * mean) / (2 * mean))


def stolen_to_genuine(amount: Array, usual: Array, chance: float) -> Array:
    """Likelihood ratio of an amount: spent by a thief, to spent by the holder."""
    return (density(amount, STOLEN_FACTOR * usual) + chance / usual) / (density(amount, usual) + chance / usual)


def card_theft(c: Columns) -> Array:
    """P(the payment is a thief's, because of the card's past and its own amount), (n,).

    Of each window only the largest amount is weighed; its other payments look like the holder's.
    """
    usual, keeps = c["usual_amount"], 1 - STOLEN_SHARE
    odds = np.zeros(len(usual))  # of a campaign on the card
    for before, days in pairwise((0, *CARD_DAYS)):
        n, largest = c[f"card.count_{days}d"], c[f"card.max_{days}d"]
        evidence = (keeps + STOLEN_SHARE * stolen_to_genuine(largest, usual, CHANCE)) * keeps ** (n - 1)
        odds += CARD_RATE * (days - before) * np.where(n > 0, evidence, 1.0)
    thief = odds * STOLEN_SHARE * stolen_to_genuine(c["amount"], usual, CHANCE_NOW)
    return thief / (thief + odds * keeps + 1)


def log_odds(p: Array) -> Array:
    return np.asarray(np.log((p + SMALLEST) / (1 - p + SMALLEST)))


def any_scenario(c: Columns) -> Array:
    """Log odds that at least one of the three made the payment a fraud: the formula."""
    sound = np.ones(len(c["amount"]))
    for p in (c["terminal_campaign"], c["card_theft"], (c["amount"] > LIMIT).astype(np.float64)):
        sound = sound * (1 - np.minimum(p, CERTAIN))
    return log_odds(1 - sound)


def largest_to_usual(c: Columns) -> Array:
    """The card's largest payment of two weeks as a multiple of its usual amount; 0 without one."""
    return np.nan_to_num(c["card.max_14d"]) / c["usual_amount"]


def fraud_share(days: int, c: Columns) -> Array:
    """Of the terminal's payments of the days before the last known outcome; drawn towards 5 % of one payment."""
    return (c[f"terminal_fraud.count_{_window(days)}"] + 0.05) / (c[f"terminal.count_{_window(days)}"] + 1)


_CARD, _CARD_FRAUD, _TERMINAL, _TERMINAL_FRAUD = (view.features for view in VIEWS)
_AT_TERMINAL: Final = (*_TERMINAL, *_TERMINAL_FRAUD)


def _feature(name: str, compute: Callable[[Columns], Array], *inputs: str) -> OnDemand:
    return OnDemand(name=name, inputs=inputs, version=1, compute=compute)


PARTS: Final = (
    _feature("usual_amount", usual_amount, *_CARD, *_CARD_FRAUD),
    _feature("terminal_campaign", terminal_campaign, "amount", *_AT_TERMINAL),
    _feature("card_theft", card_theft, "amount", "usual_amount", *_CARD),
)
FEATURES: Final = (  # what the trees see
    _feature("amount", lambda c: c["amount"], "amount"),
    _feature("terminal_campaign_log_odds", lambda c: log_odds(c["terminal_campaign"]), "terminal_campaign"),
    _feature("card_theft_log_odds", lambda c: log_odds(c["card_theft"]), "card_theft"),
    _feature(FORMULA, any_scenario, "amount", "terminal_campaign", "card_theft"),
    _feature("amount_to_usual", lambda c: c["amount"] / c["usual_amount"], "amount", "usual_amount"),
    _feature("largest_to_usual_14d", largest_to_usual, "card.max_14d", "usual_amount"),
    _feature("fraud_share_7d", partial(fraud_share, 7), *_AT_TERMINAL),
    _feature("genuine_7d", partial(genuine, 7), *_AT_TERMINAL),
    _feature("fraud_share_28d", partial(fraud_share, 28), *_AT_TERMINAL),
    _feature("genuine_28d", partial(genuine, 28), *_AT_TERMINAL),
    _feature("newest_payment_age", lambda c: c["terminal.age"] * SECOND / DAY, "terminal.age"),  # days
    _feature("newest_fraud_age", lambda c: c["terminal_fraud.age"] * SECOND / DAY, "terminal_fraud.age"),  # days
    _feature(
        "newest_fraud_to_payment",  # days; 0: the last known payment was a fraud
        lambda c: c["newest_fraud_age"] - c["newest_payment_age"],
        "newest_fraud_age",
        "newest_payment_age",
    ),
)
# The more of these, the more suspicious, whatever a week of training may say.
RISING: Final = (
    "terminal_campaign_log_odds",
    "card_theft_log_odds",
    FORMULA,
    "amount_to_usual",
    "largest_to_usual_14d",
)


def features(history: History, requests: pa.Table) -> Array:
    """FEATURES of some of the payments, (n_requests, 13)."""
    amount = numbers(history.chargebacks["amount"])
    sources = {
        Transaction: history.transactions,
        Surprise: history.chargebacks.append_column("surprise", pa.array(surprise(amount))),
    }
    values = [offline.compute(view, sources[view.source], requests) for view in VIEWS]
    return assemble(Transaction, VIEWS, (*PARTS, *FEATURES), requests, values)[:, -len(FEATURES) :]
