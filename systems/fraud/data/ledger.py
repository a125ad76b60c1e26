"""All that may happen in the world, drawn once: who lives there, what they pay, who steals from them.

What the drift changes is computed from numbers that are drawn whether it comes or not: nothing changes before its day.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from common.clock import DAY, HOUR
from systems.fraud.config import Config
from systems.fraud.data.places import (
    CLONE,
    DRAIN,
    HOUR_PROFILES,
    HOUR_TYPES,
    RING,
    TAKEOVER,
    TEST,
    Array,
    Flags,
    Ints,
    K,
    Places,
    TacticTable,
    day_weights,
    shares,
)

HONEST, STOLEN, SKIMMED, TAKEN_OVER, COLLUSION = range(5)  # in the order of config.SCENARIOS
SCENARIO_OF_STAGE = np.array([STOLEN, STOLEN, TAKEN_OVER, SKIMMED, COLLUSION, HONEST])  # the last one is stage -1
DEVICES_PER_CARD = 64  # numbers reserved
U_ROUND, U_DEVICE, U_OLD, U_PLACE, U_TOWN, U_NEVER, U_EARLY, U_DELAY, U_INSPECT, U_STOP = range(10)
TRIP, SPREE, THEFT, TAKE, CLONING, JOINING = range(6)  # kinds of episodes


@dataclass(frozen=True)
class Ledger:
    """Every payment that may happen, in order of time: n of them. What only the world knows comes last."""

    config: Config
    places: Places
    tactics: TacticTable
    drift_at: int  # us
    issued: Ints  # (cards,) us

    time: Ints  # (n,) us
    card: Ints
    device: Ints
    terminal: Ints
    amount: Array  # EUR
    xy: Array  # (n, 2) km

    scenario: Ints  # index in SCENARIOS
    campaign: Ints  # -1: honest
    reported_at: Ints  # us; -1: never
    inspected_at: Ints  # us, if anybody asks for it
    ends_if_blocked: Flags

    def __len__(self) -> int:
        return len(self.time)

    @cached_property
    def fraud(self) -> Flags:
        return np.asarray(self.scenario != HONEST)


@dataclass(frozen=True)
class _Rows:
    """Payments in the making."""

    card: Ints  # (n,)
    time: Ints  # us
    stage: Ints  # -1: honest
    campaign: Ints  # -1: honest
    terminal: Ints
    log_amount: Array
    u: Array  # (n, 10) uniform numbers, by U_*
    z: Array  # (n, 3) normal numbers: x, y, delay of the report

    def where(self, index: Ints | Flags) -> "_Rows":
        return _Rows(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class _Episodes:
    """Proposals: each would keep its card busy from begin to end."""

    kind: int
    card: Ints  # (n,)
    begin: Ints  # us
    end: Ints  # us
    rows: _Rows | None = None  # campaign: index of the proposal
    paid_at: Ints | None = None  # us, the payment at which the card was cloned


def draw(config: Config, seed: int, drift_day: int | None) -> Ledger:
    """The whole world; the same arguments give the same bytes."""
    return _Draw(config, seed, drift_day).ledger()


def pick(cumulative: Array, u: Array) -> Ints:
    """The category that each uniform number falls into; cumulative: (n or 1, categories)."""
    index = (u[:, None] >= cumulative).sum(axis=1)
    return np.asarray(np.minimum(index, cumulative.shape[1] - 1), dtype=np.int64)


class _Draw:
    """The steps of `draw`; each has a stream of random numbers of its own, so that none disturbs another."""

    def __init__(self, config: Config, seed: int, drift_day: int | None) -> None:
        self.config, self.seed = config, seed
        self.end = config.start + config.days * DAY
        self.drift_at = self.end if drift_day is None else config.start + drift_day * DAY
        self.tactics = TacticTable.of(config)
        rng = self.stream("places")
        towns = rng.uniform(0, config.map_km, (config.towns, 2))
        near = rng.normal(0, config.town_km, (config.towns, K * config.terminals, 2))
        self.places = Places(config, towns, (towns[:, None] + near).reshape(-1, 2))

        rng, n = self.stream("people"), config.cards
        self.town = rng.integers(0, config.towns, n)
        self.home = towns[self.town] + rng.normal(0, config.town_km, (n, 2))
        self.typical = rng.normal(config.log_amount, config.log_amount_cards, n)
        self.rate = rng.gamma(config.rate_shape, config.payments_per_day / config.rate_shape, n)
        self.hours = rng.choice(len(HOUR_TYPES), n, p=HOUR_TYPES)
        self.tastes = rng.dirichlet(config.category_habit * shares(config.category_share), n)
        new = rng.uniform(size=n) < config.new_cards
        days = np.where(new, rng.uniform(0, config.days, n), -rng.uniform(0, 1500, n))
        self.issued = config.start + (days * DAY).astype(np.int64)

    def stream(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, *name.encode()])

    def epoch(self, at: Ints) -> Ints:
        return np.asarray(at >= self.drift_at, dtype=np.int64)

    def ledger(self) -> Ledger:
        everyday = self.everyday()
        trips = self.trips(everyday)
        episodes = [
            trips,
            self.sprees(),
            self.campaigns(THEFT, self.config.stolen, (TEST, DRAIN)),
            self.campaigns(TAKE, self.config.takeover, (TAKEOVER,)),
            self.clones(everyday),
            self.campaigns(JOINING, self.config.collusion, (RING,)),
        ]
        kept = self.one_at_a_time(episodes)
        parts, campaigns = [self.travel(everyday, trips, kept[0])], 0
        for episode, keep in zip(episodes[1:], kept[1:], strict=True):
            rows = episode.rows
            assert rows is not None
            index = rows.campaign
            numbered = np.where(rows.stage < 0, -1, campaigns + index)
            parts.append(replace(rows, campaign=numbered).where(keep[index]))
            campaigns += len(episode.card)
        return self.finish(parts)

    # Honest life

    def moments(self, rng: np.random.Generator, card: Ints) -> Ints:
        """A time for each, by the calendar and by its card's hours."""
        n, weights = len(card), day_weights(self.config)
        day = np.searchsorted(np.cumsum(weights) / weights.sum(), rng.uniform(size=n))
        hour = pick(np.cumsum(HOUR_PROFILES / 24, axis=1)[self.hours[card]], rng.uniform(size=n))
        return self.config.start + day * DAY + hour * HOUR + rng.integers(0, HOUR, n)

    def honest(
        self, rng: np.random.Generator, card: Ints, time: Ints, category: Ints, terminal: Ints, index: Ints
    ) -> _Rows:
        offsets = np.array(self.config.category_log_amount)[category]
        log_amount = self.typical[card] + offsets + rng.normal(0, self.config.log_amount_payments, len(card))
        stage, u, z = np.full(len(card), -1), rng.uniform(size=(len(card), 10)), rng.normal(size=(len(card), 3))
        return _Rows(card, time, stage, index, terminal, log_amount, u, z)

    def everyday(self) -> _Rows:
        """In order of card and time."""
        config, rng = self.config, self.stream("everyday")
        card = np.repeat(np.arange(config.cards), rng.poisson(self.rate * day_weights(config).sum()))
        time = self.moments(rng, card)
        order = np.lexsort((time, card))
        order = order[(time >= self.issued[card])[order]]
        card, time = card[order], time[order]
        category = pick(np.cumsum(self.tastes, axis=1)[card], rng.uniform(size=len(card)))
        online = rng.uniform(size=len(card)) < np.array(config.category_online)[category]
        terminal = self.usual_shops(rng, card, category, online)
        return self.honest(rng, card, time, category, terminal, np.full(len(card), -1))

    def usual_shops(self, rng: np.random.Generator, card: Ints, category: Ints, online: Flags) -> Ints:
        """By habit: a Dirichlet process per card, category and channel, drawn by breaking sticks (Sethuraman 1994)."""
        config, sticks = self.config, 8
        cards, categories, channels = np.indices((config.cards, K, 2)).reshape(3, -1)
        broken = rng.beta(1, config.habit, (len(cards), sticks))
        ends = 1 - np.cumprod(1 - broken, axis=1)
        favourites = self.any_shops(
            rng, cards.repeat(sticks), categories.repeat(sticks), channels.repeat(sticks).astype(bool)
        ).reshape(-1, sticks)
        group = (card * K + category) * 2 + online
        stick = (rng.uniform(size=len(card))[:, None] >= ends[group]).sum(axis=1)
        beyond = self.any_shops(rng, card, category, online)
        return np.where(stick < sticks, favourites[group, np.minimum(stick, sticks - 1)], beyond)

    def any_shops(self, rng: np.random.Generator, card: Ints, category: Ints, online: Flags) -> Ints:
        """In the home town as a rule, else in any other."""
        n, towns = len(card), self.config.towns
        away = rng.uniform(size=n) < self.config.elsewhere
        town = (self.town[card] + np.where(away, rng.integers(1, towns, n), 0)) % towns
        u = rng.uniform(size=n)
        return np.where(online, self.places.online(category, u), self.places.at(town, category, u))

    def sprees(self) -> _Episodes:
        config, rng = self.config, self.stream("sprees")
        card = np.repeat(np.arange(config.cards), rng.poisson(config.sprees * day_weights(config).sum(), config.cards))
        begin = self.moments(rng, card)
        begin = np.where(begin < self.issued[card], self.end, begin)
        index = np.repeat(np.arange(len(card)), rng.geometric(1 - config.spree_more, len(card)))
        time = self.sequence(begin, index, rng.exponential(config.spree_gap * HOUR / DAY, len(index)))
        category = pick(np.cumsum(shares(config.spree_categories))[None], rng.uniform(size=len(index)))
        terminal = self.places.at(self.town[card[index]], category, rng.uniform(size=len(index)))
        rows = self.honest(rng, card[index], time, category, terminal, index)
        return _Episodes(SPREE, card, begin, self.last(begin, index, time), rows)

    def trips(self, everyday: _Rows) -> _Episodes:
        """Payments at which a trip would begin."""
        rng = self.stream("trips")
        at_terminal = everyday.terminal < self.places.physical
        first = np.flatnonzero(at_terminal & (rng.uniform(size=len(at_terminal)) < self.config.trips))
        begin = everyday.time[first]
        length = rng.exponential(self.config.trip_days * DAY, len(first))
        return _Episodes(TRIP, everyday.card[first], begin, begin + length.astype(np.int64))

    def travel(self, everyday: _Rows, trips: _Episodes, keep: Flags) -> _Rows:
        """On a trip, what is paid at terminals is paid in its town."""
        rng, towns = self.stream("travel"), self.config.towns
        step = rng.integers(1, towns, len(trips.card))
        u = rng.uniform(size=len(everyday.card))
        key = everyday.card * self._span + everyday.time - self.config.start
        base = trips.card * self._span - self.config.start
        change = np.zeros(len(key) + 1, dtype=np.int64)  # which trip a payment is made on, as differences
        number = np.arange(1, len(base) + 1) * keep
        np.add.at(change, np.searchsorted(key, base + trips.begin), number)
        np.add.at(change, np.searchsorted(key, base + np.minimum(trips.end, self.end)), -number)
        trip = np.cumsum(change)[:-1] - 1
        town = (self.town[everyday.card] + step[trip]) % towns if len(step) else np.zeros_like(trip)
        there = self.places.at(town, self.places.category(everyday.terminal), u)
        moved = (trip >= 0) & (everyday.terminal < self.places.physical)
        return replace(everyday, terminal=np.where(moved, there, everyday.terminal))

    @property
    def _span(self) -> int:
        return 2 * self.config.days * DAY  # longer than any time since the start

    # Fraud

    def campaigns(self, kind: int, per_day: float, stages: tuple[int, ...]) -> _Episodes:
        config, rng = self.config, self.stream(f"campaigns {kind}")
        card = np.repeat(np.arange(config.cards), rng.poisson(per_day * config.days, config.cards))
        day = rng.integers(0, config.days, len(card))
        u = rng.uniform(size=(2, len(card)))
        night = u[0] < self.tactics.night[self.epoch(config.start + day * DAY), stages[0]]
        begin = config.start + day * DAY + (np.where(night, u[1] * 6, 6 + u[1] * 18) * HOUR).astype(np.int64)
        begin = np.where(begin < self.issued[card], self.end, begin)  # there was no card to steal
        return self.pays(kind, rng, card, begin, stages)

    def clones(self, everyday: _Rows) -> _Episodes:
        """Some of those who pay where a skimmer stands find their cards used elsewhere days later."""
        config, rng = self.config, self.stream("clones")
        slots = -(-config.days // config.skimming_days)
        skimmed = rng.uniform(size=(self.places.physical, slots)) < config.skimmed_terminals
        slot = (everyday.time - config.start) // (config.skimming_days * DAY)
        at_skimmer = np.zeros(len(slot), bool)
        inside = everyday.terminal < self.places.physical
        at_skimmer[inside] = skimmed[everyday.terminal[inside], slot[inside]]
        cloned = np.flatnonzero(at_skimmer & (rng.uniform(size=len(slot)) < config.cloned))
        wait = rng.exponential(config.clone_wait * DAY, len(cloned)).astype(np.int64)
        paid_at = everyday.time[cloned]
        episodes = self.pays(CLONING, rng, everyday.card[cloned], paid_at + wait, (CLONE,))
        return replace(episodes, paid_at=paid_at)

    def pays(self, kind: int, rng: np.random.Generator, card: Ints, begin: Ints, stages: tuple[int, ...]) -> _Episodes:
        """The payments of campaigns that begin then."""
        config, tactics, n = self.config, self.tactics, len(card)
        # by inversion of one number each, before and after the drift; the numbers that follow are drawn for the longer
        tail = np.log1p(-rng.uniform(size=(1, n, len(stages)))) / np.log(tactics.goes_on[:, None, stages])
        counts = 1 + tail.astype(np.int64)  # (2, n, stages)
        drawn = counts.max(axis=0)
        index = np.repeat(np.arange(n), drawn.sum(axis=1))
        stage = np.repeat(np.tile(stages, n), drawn.ravel())
        nth = np.arange(len(index)) - np.repeat(np.cumsum(drawn) - drawn.ravel(), drawn.ravel())
        began = self.epoch(begin)
        keep = nth < np.repeat(counts[began, np.arange(n)].ravel(), drawn.ravel())
        gap, u, z = (
            rng.exponential(size=len(index)),
            rng.uniform(size=(12, len(index))),
            rng.normal(size=(4, len(index))),
        )
        index, stage, gap, (u, u_rest), (z_amount, z_rest) = (
            index[keep], stage[keep], gap[keep], np.split(u[:, keep], [2]), np.split(z[:, keep], [1]),
        )  # fmt: skip
        time = self.sequence(begin, index, gap * tactics.gap[began[index], stage])
        epoch = self.epoch(time)
        category = pick(np.cumsum(tactics.categories[epoch, stage], axis=1), u[0])
        if kind == JOINING:
            merchant = self.colluding(rng, begin)
            begin = np.where(merchant < 0, self.end, begin)  # no ring to join
            terminal = self.places.terminal_of(np.maximum(merchant, 0)[index], u[1])
        elif kind == CLONING:
            terminal = self.places.at(rng.integers(0, config.towns, n)[index], category, u[1])
        else:
            terminal = self.places.online(category, u[1])
        mean = tactics.log_amount[epoch, stage] + tactics.relative[epoch, stage] * self.typical[card[index]]
        log_amount = mean + z_amount[0] * tactics.log_spread[epoch, stage]
        rows = _Rows(card[index], time, stage, index, terminal, log_amount, u_rest.T, z_rest.T)
        return _Episodes(kind, card, begin, self.last(begin, index, time), rows)

    def colluding(self, rng: np.random.Generator, begin: Ints) -> Ints:
        """One of the merchants that collude at that time; -1: there is none."""
        config = self.config
        slots = -(-config.days // config.collusion_days)
        colludes = rng.uniform(size=(self.places.merchants, slots)) < config.colluding_merchants
        active = [np.flatnonzero(colludes[:, s]) for s in range(slots)]
        slot = np.minimum((begin - config.start) // (config.collusion_days * DAY), slots - 1)
        pairs = zip(slot.tolist(), rng.uniform(size=len(begin)).tolist(), strict=True)
        chosen = [int(active[s][int(u * len(active[s]))]) if len(active[s]) else -1 for s, u in pairs]
        return np.array(chosen, dtype=np.int64)

    # Putting it together

    @staticmethod
    def sequence(begin: Ints, index: Ints, gap: Array) -> Ints:
        """Times of payments that follow each other by gaps (days); the first of each episode is at its begin."""
        first = np.r_[True, index[1:] != index[:-1]][: len(index)]
        total = np.cumsum(np.where(first, 0.0, gap))
        since = total - total[np.flatnonzero(first)].repeat(np.diff(np.r_[np.flatnonzero(first), len(index)]))
        return np.asarray(begin[index] + (since * DAY).astype(np.int64))

    @staticmethod
    def last(begin: Ints, index: Ints, time: Ints) -> Ints:
        end = begin.copy()
        np.maximum.at(end, index, time)
        return end

    def one_at_a_time(self, episodes: Sequence[_Episodes]) -> list[Flags]:
        """Which are kept when a card that is in an episode begins no other."""
        sizes = [len(e.card) for e in episodes]
        card, begin, end = (np.concatenate([getattr(e, name) for e in episodes]) for name in ("card", "begin", "end"))
        kind = np.repeat([e.kind for e in episodes], sizes)
        paid_at = np.concatenate([np.full(len(e.card), -1) if e.paid_at is None else e.paid_at for e in episodes])
        keep, free_at, trips = np.zeros(len(card), bool), [0] * self.config.cards, [(0, 0)] * self.config.cards
        order = np.lexsort((kind, begin))
        order = order[begin[order] < self.end]
        columns = [x[order].tolist() for x in (card, begin, end, kind, paid_at)]
        for i, c, b, e, k, p in zip(order.tolist(), *columns, strict=True):
            # a payment on a trip was made in another town, so not where the skimmer stands
            if b <= free_at[c] or (k == CLONING and trips[c][0] <= p <= trips[c][1]):
                continue
            keep[i], free_at[c] = True, e
            if k == TRIP:
                trips[c] = (b, e)
        return np.split(keep, np.cumsum(sizes)[:-1].tolist())

    def finish(self, parts: Sequence[_Rows]) -> Ledger:
        """Devices, positions and reports; then all in order of time."""
        config, tactics, places = self.config, self.tactics, self.places
        rows = _Rows(*(np.concatenate([getattr(p, name) for p in parts]) for name in _Rows.__dataclass_fields__))
        rows = rows.where(rows.time < self.end)
        rows = rows.where(np.lexsort((rows.time, rows.card)))
        u, epoch, honest = rows.u, self.epoch(rows.time), rows.stage < 0
        stage = np.maximum(rows.stage, 0)

        # the phone in use is the newest; an older one of the same card comes out now and then
        first = np.r_[True, rows.card[1:] != rows.card[:-1]]
        new = honest & (u[:, U_DEVICE] < config.new_device)
        total = np.cumsum(new)
        since: Ints = total - (total - new)[first].repeat(np.diff(np.r_[np.flatnonzero(first), len(first)]))
        newest: Ints = np.minimum(since, DEVICES_PER_CARD - 1)
        old = honest & ~new & (newest > 0) & (u[:, U_DEVICE] > 1 - config.second_device)
        own = np.where(old, (u[:, U_OLD] * newest).astype(np.int64), newest)
        shows_own = honest | tactics.spoofed[epoch, stage]
        stranger = config.cards * DEVICES_PER_CARD + rows.campaign
        device = np.where(shows_own, rows.card * DEVICES_PER_CARD + own, stranger)

        rounded = (np.exp(rows.log_amount) >= 20) & (
            u[:, U_ROUND] < np.where(honest, config.round_amounts, tactics.round_amounts[epoch, stage])
        )
        amount = np.exp(rows.log_amount)
        amount = np.clip(np.where(rounded, np.round(amount, -1), np.round(amount, 2)), 0.01, 1e6)

        near = u[:, U_PLACE] < np.where(honest, 1 - config.wandering_address, tactics.near_home[epoch, stage])
        seems = places.towns[(u[:, U_TOWN] * config.towns).astype(np.int64)] + rows.z[:, :2] * config.town_km
        at_home = self.home[rows.card] + rows.z[:, :2] * config.address_km
        physical = (rows.terminal < places.physical)[:, None]
        stands = places.positions[np.minimum(rows.terminal, places.physical - 1)]
        xy = np.round(np.where(physical, stands, np.where(near[:, None], at_home, seems)), 3)

        early = -np.log1p(-u[:, U_DELAY]) * config.early_report_hours * HOUR
        late = config.late_report_days * DAY * np.exp(config.late_report_spread * rows.z[:, 2])
        delay = np.where(u[:, U_EARLY] < config.early_report, early, late).astype(np.int64)
        reported = ~honest & (u[:, U_NEVER] >= config.never_reported)
        fastest, slowest = config.inspection_hours
        inspection = ((fastest + u[:, U_INSPECT] * (slowest - fastest)) * HOUR).astype(np.int64)

        order = np.lexsort((rows.card, rows.time))
        return Ledger(
            config=config,
            places=places,
            tactics=tactics,
            drift_at=self.drift_at,
            issued=self.issued,
            time=rows.time[order],
            card=rows.card[order],
            device=device[order],
            terminal=rows.terminal[order],
            amount=amount[order],
            xy=xy[order],
            scenario=SCENARIO_OF_STAGE[rows.stage[order]],
            campaign=rows.campaign[order],
            reported_at=np.where(reported, rows.time + 1 + delay, -1)[order],
            inspected_at=(rows.time + inspection)[order],
            ends_if_blocked=(u[:, U_STOP] < config.stopped_by_block)[order],
        )
