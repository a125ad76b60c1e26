"""The world of card payments: tells what happens, reacts to what the service answers, and knows the truth."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.clock import DAY
from common.errors import BadSetting, NotFound
from common.schema import Event
from common.system import Arrival, Rows
from systems.fraud.config import CATEGORIES, DRIFTS, SCENARIOS, Config
from systems.fraud.data.ceiling import Answers, Posterior
from systems.fraud.data.events import Decision, Outcome, Payment
from systems.fraud.data.ledger import Ledger, draw
from systems.fraud.data.places import Array, Flags, Ints

_ID = "payment-"
_NEVER = np.iinfo(np.int64).max


def world(config: Config, seed: int, drift: str | None = None, days: int | None = None) -> "CardWorld":
    """A world in which fraudsters change their ways on a day, if drift names one: "tactics@30"."""
    config = config if days is None else replace(config, days=days)
    return CardWorld(draw(config, seed, None if drift is None else _drift_day(config, drift)))


def _drift_day(config: Config, drift: str) -> int:
    kind, _, day = drift.partition("@")
    if kind not in DRIFTS or not day.isascii() or not day.isdigit() or int(day) >= config.days:
        kinds = " or ".join(f"{k}@DAY" for k in DRIFTS)
        raise BadSetting(f"drift: must be {kinds} with a day from 0 to {config.days - 1}, got {drift!r}")
    return int(day)


class CardWorld:
    """Payments as drawn, less those of campaigns that were stopped, and the outcomes of those that were answered.

    A payment arrives when it is made. One that `react` never hears of has no outcome. An outcome is never heard of
    before the `until` of the `arrivals` that came before the answer: answer day by day, not year by year.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._now = 0  # us, the last `until`
        self._next = 0  # row
        self._pending: list[tuple[int, int, bool]] = []  # outcomes: at, row, by inspection
        campaigns = int(ledger.campaign.max(initial=-1)) + 1
        self._ended = np.full(campaigns + 1, _NEVER)  # us, by campaign; the last one stands for honest payments
        self._told = np.zeros(len(ledger), bool)
        self._answers = Answers.none(len(ledger))
        self._ceiling: Array | None = None
        self._cards = _names("card-", ledger.config.cards)
        self._terminals = _names("terminal-", ledger.places.terminals)
        self._merchants = _names("merchant-", ledger.places.merchants)

    def arrivals(self, until: int) -> list[Arrival]:
        """Payments and outcomes in order of time, from the last `until` on, up to this one (us, exclusive)."""
        ledger, due = self._ledger, []
        while self._pending and self._pending[0][0] < until:
            at, row, inspected = heapq.heappop(self._pending)
            due.append(Arrival(at, self._outcome(row, inspected)))
            self._answers.told_at[row] = at
            if ledger.fraud[row]:  # the bank replaces the card
                self._end(row, at)
        stop = max(self._next, int(np.searchsorted(ledger.time, until)))
        rows = np.arange(self._next, stop)
        rows = rows[ledger.time[rows] < self._ended[ledger.campaign[rows]]]
        self._told[rows] = True
        self._next, self._now, self._ceiling = stop, max(self._now, until), None
        payments = [Arrival(payment.event_timestamp, payment) for payment in self._payments(rows)]
        return list(heapq.merge(payments, due, key=lambda arrival: arrival.at)) if due else payments

    def react(self, answered: Sequence[tuple[Payment, Decision]]) -> None:
        """Approve: a fraud is reported later, or never. Review: an inspection tells within a day, and stops a fraud.

        Block: nothing is ever heard of it, and the campaign may end. The first answer to a payment counts.
        """
        ledger, answers = self._ledger, self._answers
        rows = self._rows([payment for payment, _ in answered])
        for row, (_, decision) in zip(rows.tolist(), answered, strict=True):
            if answers.answered_at[row] >= 0:
                continue
            answers.answered_at[row] = self._now
            if decision.action == "block":
                answers.blocked[row] = True
                if ledger.ends_if_blocked[row]:
                    self._end(row, self._now)
            elif decision.action == "review":
                answers.inspected[row] = True
                self._expect(int(ledger.inspected_at[row]), row, True)
            elif ledger.reported_at[row] >= 0:
                self._expect(int(ledger.reported_at[row]), row, False)
        self._ceiling = None

    def ceiling(self, requests: Sequence[Payment]) -> Array:
        """P(fraud | what the service has heard up to and including each payment), (n,).

        Judges all that has arrived at once (a minute for a million payments) and remembers it until the next
        `arrivals` or `react`, so ask once, for all.
        """
        rows = self._rows(requests)
        if self._ceiling is None:
            self._ceiling = Posterior(self._ledger, self._answers).judge(np.flatnonzero(self._told))
        return self._ceiling[rows]

    def is_fraud(self, requests: Sequence[Payment]) -> Flags:
        """Whether each was fraud, (n,)."""
        flags: Flags = self._ledger.fraud[self._rows(requests)]
        return flags

    def scenario(self, requests: Sequence[Payment]) -> NDArray[np.str_]:
        """One of SCENARIOS for each, (n,)."""
        return np.array(SCENARIOS)[self._ledger.scenario[self._rows(requests)]]

    def truth(self, requests: Sequence[Payment], rows: Rows) -> Mapping[str, Array]:
        """Nothing: a payment is its only row, and the ceiling says all."""
        return {}

    def segments(self, requests: Sequence[Payment]) -> dict[str, Flags]:
        """By scenario, its frauds among all honest payments, (n,) each."""
        scenario = self.scenario(requests)
        return {name: np.isin(scenario, (name, "honest")) for name in SCENARIOS if name != "honest"}

    def _end(self, row: int, at: int) -> None:
        campaign = self._ledger.campaign[row]
        if campaign >= 0:
            self._ended[campaign] = min(self._ended[campaign], at)

    def _expect(self, at: int, row: int, inspected: bool) -> None:
        heapq.heappush(self._pending, (max(at, self._now), row, inspected))

    def _rows(self, requests: Sequence[Payment]) -> Ints:
        rows = np.array([_row(payment.event_id) for payment in requests], dtype=np.int64)
        unknown = np.flatnonzero(rows >= len(self._told))
        if not len(unknown):
            unknown = np.flatnonzero(~self._told[rows])
        if len(unknown):
            raise NotFound(f"event_id: must be a payment that has arrived, got {requests[unknown[0]].event_id!r}")
        return rows

    def _payments(self, rows: Ints) -> list[Payment]:
        ledger = self._ledger
        columns = _columns(ledger, rows)
        cards, terminals, merchants = self._cards, self._terminals, self._merchants
        return [
            # the fields are right by construction, and validation would take most of the time
            Payment.model_construct(
                event_id=f"{_ID}{row:08d}",
                event_timestamp=time,
                card_id=cards[card],
                device_id=_device(device),
                merchant_id=merchants[merchant],
                terminal_id=terminals[terminal],
                category=CATEGORIES[category],
                channel="terminal" if terminal < ledger.places.physical else "online",
                amount=amount,
                x_km=x,
                y_km=y,
                card_age_days=age,
            )
            for row, time, card, device, merchant, terminal, category, amount, x, y, age in zip(*columns, strict=True)
        ]

    def _outcome(self, row: int, inspected: bool) -> Event:
        ledger = self._ledger
        terminal = ledger.terminal[[row]]
        return Outcome(
            event_id=f"outcome-{_ID}{row:08d}",
            event_timestamp=int(ledger.time[row]),
            payment_id=f"{_ID}{row:08d}",
            card_id=self._cards[int(ledger.card[row])],
            device_id=_device(int(ledger.device[row])),
            merchant_id=self._merchants[int(ledger.places.merchant(terminal)[0])],
            terminal_id=self._terminals[int(terminal[0])],
            amount=float(ledger.amount[row]),
            fraud=bool(ledger.fraud[row]),
            source="inspection" if inspected else "chargeback",
        )


def _columns(ledger: Ledger, rows: Ints) -> list[list[Any]]:
    terminal, time, card = ledger.terminal[rows], ledger.time[rows], ledger.card[rows]
    age = np.round((time - ledger.issued[card]) / DAY, 3)
    columns: list[NDArray[Any]] = [rows, time, card, ledger.device[rows], ledger.places.merchant(terminal), terminal]
    columns += [ledger.places.category(terminal), ledger.amount[rows], ledger.xy[rows, 0], ledger.xy[rows, 1], age]
    return [column.tolist() for column in columns]


def _names(prefix: str, n: int) -> list[str]:
    return [f"{prefix}{i:05d}" for i in range(n)]


def _device(number: int) -> str:
    """Scattered (Knuth 1973, 6.4), for a number would tell whose device it is."""
    return f"device-{number * 2654435761 % 2**32:08x}"


def _row(event_id: str) -> int:
    number = event_id.removeprefix(_ID)
    return int(number) if event_id.startswith(_ID) and number.isascii() and number.isdigit() else _NEVER
