"""The best that anybody could know: P(fraud | all that the service has observed, how the world works).

A Bayesian filter. Each card is in one of a few modes (at home, on a trip, in the middle of a drain, ...). In each mode
the payments of the customer and of the fraudster are marked point processes, so a payment is fraud with the
fraudster's share of the intensity of just this payment, and silence speaks against campaigns that would have gone on.
What is particular to a card (typical amount, rate, hours, tastes, shops, home, devices) has a conjugate prior and is
learned from its payments, each by its probability of being honest. What cards share (is a skimmer at this terminal,
does this merchant collude) gathers evidence from all of them, in blocks of a few hours. Labels count from the moment
at which they are heard.

Approximate where exactness would need joint posteriors: parameters are learned with weights in place of branches, and
a card in doubt keeps one candidate for its fraudster's device, town and ring.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from common.clock import DAY, HOUR
from systems.fraud.data.ledger import Ledger
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
    day_weights,
    shares,
)

IDLE, SPREE, AWAY, TESTING, DRAINING, TAKING, CLONED, IN_RING = range(8)  # modes; what comes next
CAMPAIGNS = slice(TESTING, IN_RING + 1)
PAID, TOLD, BLOCKED = range(3)  # kinds of events
VISITS = 16  # payments at terminals that are remembered per card: about three weeks
BLOCK = 6 * HOUR  # us; what cards learn from each other travels once per block
TINY = 1e-12


@dataclass(frozen=True)
class Answers:
    """What the service did about each payment and what it has heard since; as long as the ledger."""

    answered_at: Ints  # us; -1: not yet
    blocked: Flags
    inspected: Flags
    told_at: Ints  # us, when the outcome arrived; -1: not yet

    @classmethod
    def none(cls, n: int) -> "Answers":
        return cls(np.full(n, -1), np.zeros(n, bool), np.zeros(n, bool), np.full(n, -1))


def normal(x: Array, mean: Array | float, variance: Array | float) -> Array:
    return np.asarray(np.exp(-((x - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance))


def normal_xy(squared_distance: Array, variance: Array | float) -> Array:
    return np.asarray(np.exp(-squared_distance / (2 * variance)) / (2 * np.pi * variance))


class Posterior:
    """What is believed about each card, terminal and merchant; moves forward in time."""

    def __init__(self, ledger: Ledger, answers: Answers) -> None:
        self.ledger, self.answers, self.config = ledger, answers, ledger.config
        config, places, n = ledger.config, ledger.places, ledger.config.cards
        self.mode = np.zeros((n, 8))
        self.mode[:, IDLE] = 1
        self.mode_if_honest = self.mode.copy()  # as it would be if the last payment was honest
        self.last_row = np.full(n, -1)
        self.last_time = np.zeros(n)  # days

        # per card, weighted by the probability that a payment was honest
        self.amounts, self.amount_sum = np.zeros(n), np.zeros(n)
        self.paid = np.zeros(n)
        self.log_hours = np.tile(np.log(HOUR_TYPES), (n, 1))
        self.categories = np.zeros((n, K))
        self.groups = np.zeros(n * K * 2)  # by card, category and channel
        self.log_towns = np.zeros((n, config.towns))
        self.addresses = np.zeros((n, config.towns))  # if that is the home town
        self.address_sum = np.zeros((n, config.towns, 2))  # km
        self.devices = np.zeros(n)
        self.newest, self.before = np.full(n, -1), np.full(n, -1)  # devices
        self.newest_is_own = np.ones(n)  # probability
        self.far = np.full(n, -1)  # town of the trip or of the clone, if any
        self.ring = np.full(n, -1)  # merchant of the ring, if any

        # per terminal or merchant and slot
        self.skim_slots = -(-config.days // config.skimming_days)
        self.ring_slots = -(-config.days // config.collusion_days)
        self.visits = np.zeros((places.physical, config.days))
        self.visited = np.zeros((n, VISITS), dtype=np.int64)  # slots
        self.visited_at = np.full((n, VISITS), -1e9)  # days
        self.visit_weight = np.zeros((n, VISITS))
        self.visit_next = np.zeros(n, dtype=np.int64)
        self.skim_evidence = np.zeros(places.physical * self.skim_slots)
        self.ring_evidence = np.zeros(places.merchants * self.ring_slots)
        self.skimmed = np.full(len(self.skim_evidence), config.skimmed_terminals)
        self.colludes = np.full(len(self.ring_evidence), config.colluding_merchants)
        self.rings = 1 + config.colluding_merchants * (places.merchants - 1)  # expected at a time, given one
        self.accused: dict[int, tuple[Ints, Array, Array]] = {}  # row -> slots, shares, beliefs before

        self.fraud = np.zeros(len(ledger))  # P(fraud), by row
        self.everyday_share, self.home_share = np.zeros(len(ledger)), np.zeros(len(ledger))
        self.ring_share, self.ring_before = np.zeros(len(ledger)), np.zeros(len(ledger))
        self.brought_device = np.zeros(len(ledger), bool)

    def judge(self, rows: Ints) -> Array:
        """P(fraud) by row of the ledger, for the payments in `rows`, which are all that arrived; elsewhere 0."""
        self._tabulate(rows)
        for end, runs in self._schedule(rows):
            for kind, events in runs:
                if kind == PAID:
                    self._pay(events)
                elif kind == TOLD:
                    self._tell(events)
                else:
                    self._block(events)
            self._share(end)
        return self.fraud

    def _tabulate(self, rows: Ints) -> None:
        """Columns by row that need no belief."""
        ledger, config, places = self.ledger, self.config, self.ledger.places
        since = ledger.time - config.start
        self.day, self.hour = since // DAY, since // HOUR % 24
        self.days = since / DAY
        self.category, self.town = places.category(ledger.terminal), places.town(ledger.terminal)
        self.merchant = places.merchant(ledger.terminal)
        self.log_amount = np.log(ledger.amount)
        self.epoch = (ledger.time >= ledger.drift_at).astype(np.int64)
        weights = day_weights(config)
        self.weight = weights[self.day]
        before = np.cumsum(weights) - weights
        issued = np.maximum(ledger.issued - config.start, 0)
        begin = before[issued // DAY] + issued % DAY / DAY * weights[issued // DAY]
        self.exposure = before[self.day] + self.days % 1 * self.weight - begin[ledger.card]
        pairs = ledger.card[rows] * places.terminals + ledger.terminal[rows]
        unique, inverse = np.unique(pairs, return_inverse=True)
        self.pair = np.zeros(len(ledger), dtype=np.int64)
        self.pair[rows] = inverse
        self.pairs = np.zeros(len(unique))
        device, first = np.unique(ledger.device[rows], return_index=True)
        self.device_is_new = np.zeros(len(ledger), bool)
        self.device_is_new[rows[first]] = True

    def _schedule(self, rows: Ints) -> Iterator[tuple[int, list[tuple[int, Ints]]]]:
        """By block: its end (us) and its runs: events (row, position) of one kind, no card twice, each in order."""
        ledger, answers = self.ledger, self.answers
        told, blocked = rows[answers.told_at[rows] >= 0], rows[answers.blocked[rows]]
        row = np.concatenate([rows, told, blocked])
        time = np.concatenate([ledger.time[rows], answers.told_at[told], answers.answered_at[blocked]])
        kind = np.repeat([PAID, TOLD, BLOCKED], [len(rows), len(told), len(blocked)])
        until = int(ledger.time[rows].max(initial=0))
        heard = time <= until
        row, time, kind = row[heard], time[heard], kind[heard]
        block, card = (time - self.config.start) // BLOCK, ledger.card[row]
        order = np.lexsort((kind, time, card, block))
        row, kind, block, card, time = row[order], kind[order], block[order], card[order], time[order]
        starts = np.flatnonzero(np.r_[True, (card[1:] != card[:-1]) | (block[1:] != block[:-1])][: len(card)])
        step = np.arange(len(card)) - starts.repeat(np.diff(np.r_[starts, len(card)]))
        order = np.lexsort((kind, step, block))
        row, kind, block, step, time = row[order], kind[order], block[order], step[order], time[order]
        self.event_days = (time - self.config.start) / DAY
        cuts = np.flatnonzero((np.diff(block) != 0) | (np.diff(step) != 0) | (np.diff(kind) != 0)) + 1
        bounds = np.r_[0, cuts, len(row)].tolist()
        runs: list[tuple[int, Ints]] = []
        for a, b in zip(bounds[:-1], bounds[1:], strict=True):
            if runs and block[a] != block[a - 1]:
                yield int(block[a]) * BLOCK, runs
                runs = []
            runs.append((int(kind[a]), np.stack([row[a:b], np.arange(a, b)])))
        if runs:
            yield int(block[-1] + 1) * BLOCK, runs

    def _silence(self, card: Ints, days: Array, epoch: Ints) -> Array:
        """The modes of these cards after no payment until now; (n, 8)."""
        config, gap = self.config, self.ledger.tactics.gap
        wait = np.maximum(days - self.last_time[card], 0)
        mode = self.mode[card]
        home = mode[:, AWAY] * -np.expm1(-wait / config.trip_days)
        mode[:, AWAY] -= home
        mode[:, IDLE] += home
        mode[:, SPREE] *= np.exp(-wait / (config.spree_gap * HOUR / DAY))
        mode[:, CAMPAIGNS] *= np.exp(-wait[:, None] / gap[epoch])
        self.last_time[card] = days
        return np.asarray(mode / mode.sum(axis=1, keepdims=True))

    def _pay(self, events: Ints) -> None:
        row, _ = events
        ledger, config, places, tactics = self.ledger, self.config, self.ledger.places, self.ledger.tactics
        card, category, epoch = ledger.card[row], self.category[row], self.epoch[row]
        town, days, hour, merchant = self.town[row], self.days[row], self.hour[row], self.merchant[row]
        y, amount, weight = self.log_amount[row], ledger.amount[row], self.weight[row]
        inside = town >= 0
        n, counters, shops = len(row), config.terminals, config.online_shops
        mode = self._silence(card, days, epoch)

        # when
        types = np.exp(self.log_hours[card])
        types /= types.sum(axis=1, keepdims=True)
        clock = (types * HOUR_PROFILES[:, hour].T).sum(axis=1) * weight  # relative to a mean hour
        rate = (config.rate_shape + self.paid[card]) / (
            config.rate_shape / config.payments_per_day + np.maximum(self.exposure[row], 0)
        )

        # how much
        prior, noise = config.log_amount_cards**-2, config.log_amount_payments**2
        precision = prior + self.amounts[card] / noise
        typical = (prior * config.log_amount + self.amount_sum[card] / noise) / precision
        offset = np.array(config.category_log_amount)[category]
        usual = normal(y, typical + offset, 1 / precision + noise)
        is_round, may_round = np.abs(amount - np.round(amount, -1)) < 0.001, amount >= 20
        rounding = self._rounding(np.full(n, config.round_amounts), is_round, may_round)

        # where
        towns = np.exp(self.log_towns[card] - self.log_towns[card].max(axis=1, keepdims=True))
        towns /= towns.sum(axis=1, keepdims=True)  # (n, towns)
        home = np.where(inside, towns[np.arange(n), town], 0.0)
        near, near_by_town = self._near(card, row, towns)
        anywhere = self._anywhere(row)
        wanders = config.wandering_address
        honest_place = np.where(inside, 1.0, (1 - wanders) * near + wanders * anywhere)
        other = (1 - home) / (config.towns - 1)
        base = np.where(inside, (home * (1 - config.elsewhere) + other * config.elsewhere) / counters, 1 / shops)
        group, pair = (card * K + category) * 2 + ~inside, self.pair[row]
        by_habit = (self.pairs[pair] + config.habit * base) / (self.groups[group] + config.habit)

        # with what
        new, first = self.device_is_new[row], self.newest[card] < 0
        own = self.newest_is_own[card]
        is_newest, is_before = ledger.device[row] == self.newest[card], ledger.device[row] == self.before[card]
        known = np.maximum(self.devices[card] - 1, 1)
        some = np.minimum(np.maximum(self.devices[card] - 1, 0), 1)
        old = config.second_device * some
        if_own = np.where(is_newest, 1 - config.new_device - old, old / known)
        if_not = np.where(is_newest, 0.0, np.where(is_before, 1 - config.new_device - old, old / known))
        device = np.where(first, 1.0, np.where(new, config.new_device, own * if_own + (1 - own) * if_not)) + TINY
        shows_main = np.where(first, 1.0, own * is_newest + (1 - own) * is_before) + TINY
        shows_new, shows_same = new + TINY, is_newest * ~first + TINY

        # the customer
        taste = config.category_habit * shares(config.category_share)
        counts = self.categories[card]
        share = (counts[np.arange(n), category] + taste[category]) / (counts.sum(axis=1) + config.category_habit)
        online = np.array(config.category_online)[category]
        channel = np.where(inside, 1 - online, online)
        customer = rate * clock * share * channel * usual * rounding * device * honest_place
        idle = mode[:, IDLE]
        at_home = mode * (customer * by_habit)[:, None]
        at_home[:, IDLE] *= 1 - config.trips * inside
        there = self.far[card] == town
        at_home[:, AWAY] = mode[:, AWAY] * customer * np.where(inside, there / counters, by_habit)
        trip = idle * customer * config.trips * inside * other / counters
        spree_like = shares(config.spree_categories)[category] * inside * home / counters * usual * rounding * device
        spree_start = idle * config.sprees * clock * spree_like
        spree = mode[:, SPREE] / (config.spree_gap * HOUR / DAY) * spree_like

        # the fraudster
        def like(stage: int) -> Array:
            """Category, amount and place; not the device."""
            mean, spread = tactics.log_amount[epoch, stage], tactics.log_spread[epoch, stage]
            relative = tactics.relative[epoch, stage]
            of_amount = normal(y, mean + relative * typical, spread**2 + relative / precision)
            by_address = tactics.near_home[epoch, stage]
            place = np.where(inside, 1.0, by_address * near + (1 - by_address) * anywhere)
            rounded = self._rounding(tactics.round_amounts[epoch, stage], is_round, may_round)
            return np.asarray(of_amount * place * rounded)

        def shown(stage: int, otherwise: Array) -> Array:
            return np.where(tactics.spoofed[epoch, stage], shows_main, otherwise)

        def starts(stage: int) -> Array:
            return np.asarray(idle * tactics.start_profile(epoch, hour, stage) * shown(stage, shows_new))

        def goes_on(stage: int) -> Array:
            return np.asarray(mode[:, TESTING + stage] / tactics.gap[epoch, stage] * shown(stage, shows_same))

        of_category = tactics.categories[epoch, :, category]  # (n, 5)
        e_shop = ~inside / shops
        tests, drains, takes = (like(s) * of_category[:, s] * e_shop for s in (TEST, DRAIN, TAKEOVER))
        test_start, test, drain = config.stolen * starts(TEST) * tests, goes_on(TEST) * tests, goes_on(DRAIN) * drains
        take_start, take = config.takeover * starts(TAKEOVER) * takes, goes_on(TAKEOVER) * takes
        copies = like(CLONE) * of_category[:, CLONE] * inside / counters
        age = days[:, None] - self.visited_at[card]
        slots = self.visited[card]
        waiting = self.visit_weight[card] * self.skimmed[slots] * np.exp(-age / config.clone_wait)
        waiting *= config.cloned / config.clone_wait  # (n, VISITS) clones first used today, per day
        used = idle * shown(CLONE, shows_new) * copies / config.towns
        clone_start, clone = waiting.sum(axis=1) * used, goes_on(CLONE) * copies * there
        of_ring = like(RING) / places.counters(merchant)
        ring_slot = merchant * self.ring_slots + self.day[row] // config.collusion_days
        colludes = self.colludes[ring_slot]
        ring_start = config.collusion * starts(RING) * of_ring * colludes / self.rings
        ring = goes_on(RING) * of_ring * (self.ring[card] == merchant)

        honest = at_home.sum(axis=1) + trip + spree_start + spree
        stolen = test_start + test + drain
        bad = stolen + take_start + take + clone_start + clone + ring_start + ring
        total = honest + bad
        p = bad / total
        self.fraud[row] = p

        # what comes next; a card keeps one candidate for the town and for the ring: the likelier one
        more = tactics.goes_on[epoch].T  # (5, n)
        if_honest = at_home.copy()
        if_honest[:, IDLE] += (1 - config.spree_more) * (spree_start + spree)
        if_honest[:, SPREE] += config.spree_more * (spree_start + spree)
        elsewhere = trip + more[CLONE] * clone_start
        stays = at_home[:, AWAY] + at_home[:, CLONED] + more[CLONE] * clone
        moves = inside & ~there & (elsewhere > stays)
        joins = (self.ring[card] != merchant) & (more[RING] * ring_start > at_home[:, IN_RING])
        keep_trip = trip * (there | moves)
        if_honest[:, AWAY] = if_honest[:, AWAY] * ~moves + keep_trip
        if_honest[:, IDLE] += trip - keep_trip + at_home[:, AWAY] * moves
        after = if_honest.copy()
        after[:, TESTING] += more[TEST] * (test_start + test)
        after[:, DRAINING] += (1 - more[TEST]) * (test_start + test) + more[DRAIN] * drain
        after[:, TAKING] += more[TAKEOVER] * (take_start + take)
        cloned, in_ring = after[:, CLONED] + more[CLONE] * clone, after[:, IN_RING] + more[RING] * ring
        after[:, CLONED] = cloned * ~moves + more[CLONE] * clone_start * (there | moves)
        after[:, IN_RING] = in_ring * ~joins + more[RING] * ring_start * (joins | (self.ring[card] == merchant))
        after[:, IDLE] += np.maximum(total - after.sum(axis=1), 0)
        self.far[card] = np.where(moves, town, self.far[card])
        self.ring[card] = np.where(joins, merchant, self.ring[card])
        self.mode[card] = after / after.sum(axis=1, keepdims=True)
        self.mode_if_honest[card] = if_honest / np.maximum(if_honest.sum(axis=1, keepdims=True), 1e-300)
        self.last_row[card] = row

        # what is learned
        was_home = at_home.sum(axis=1) - at_home[:, AWAY] * inside
        self.everyday_share[row], self.home_share[row] = (at_home.sum(axis=1) + trip) / total, was_home / total
        self._learn(row, np.ones(n))
        self.log_hours[card] += ((1 - p)[:, None]) * np.log(HOUR_PROFILES[:, hour].T)
        fresh = config.habit * base / (self.pairs[pair] + config.habit * base)
        lives = np.log((1 - config.elsewhere) * (config.towns - 1) / config.elsewhere)
        settled = np.flatnonzero(inside)
        self.log_towns[card[settled], town[settled]] += (fresh * was_home / total)[settled] * lives
        wandering = wanders * anywhere[:, None]
        squared = ((ledger.xy[row][:, None] - places.towns) ** 2).sum(axis=2)
        from_town = normal_xy(squared, config.town_km**2 + config.address_km**2)
        remote = (1 - p) * ~inside
        self.log_towns[card] += remote[:, None] * np.log((1 - wanders) * from_town + wandering)
        from_home = (1 - wanders) * near_by_town
        seen = remote[:, None] * from_home / (from_home + wandering)
        self.addresses[card] += seen
        self.address_sum[card] += seen[:, :, None] * ledger.xy[row][:, None]

        unspoofed = stolen * ~tactics.spoofed[epoch, TEST] + (take_start + take) * ~tactics.spoofed[epoch, TAKEOVER]
        own_after = own * if_own / np.maximum(own * if_own + (1 - own) * if_not, TINY)
        believed = np.where(is_newest, 1 - unspoofed / total, np.where(new, own, p * own + (1 - p) * own_after))
        arrived = np.flatnonzero(new)
        c = card[arrived]
        self.before[c] = np.where(self.newest_is_own[c] > 0.5, self.newest[c], self.before[c])
        self.newest[c] = ledger.device[row[arrived]]
        self.devices[c] += (1 - p)[arrived]
        self.newest_is_own[card] = np.where(new, 1 - p, believed)
        self.brought_device[row[arrived]] = True

        visit = np.flatnonzero(inside)
        c, at = card[visit], self.visit_next[card[visit]]
        terminal, day = ledger.terminal[row[visit]], self.day[row[visit]]
        self.visited[c, at] = terminal * self.skim_slots + day // config.skimming_days
        self.visited_at[c, at], self.visit_weight[c, at] = days[visit], self.home_share[row[visit]]
        self.visit_next[c] = (at + 1) % VISITS
        np.add.at(self.visits, (terminal, day), self.home_share[row[visit]])

        # what it says about others
        self.ring_share[row], self.ring_before[row] = (ring_start + ring) / total, colludes
        np.add.at(self.ring_evidence, ring_slot, evidence(self.ring_share[row], colludes))
        clear = np.flatnonzero(clone_start > 1e-4 * total)
        part = waiting[clear] * (used / total)[clear, None]
        for i, r, s, q in zip(row[clear].tolist(), part, slots[clear], self.skimmed[slots[clear]], strict=True):
            self.accused[i] = (s, r, q)
            np.add.at(self.skim_evidence, s, evidence(r, q))

    @staticmethod
    def _rounding(share: Array, is_round: Flags, may_round: Flags) -> Array:
        # one amount in a thousand is in whole tens by chance
        return np.where(may_round, np.where(is_round, share + (1 - share) * 0.001, 1 - share), 1.0)

    def _near(self, card: Ints, row: Ints, towns: Array) -> tuple[Array, Array]:
        """Density (1/km2) of the position if it was guessed from the address: (n,) and by home town (n, towns)."""
        config, centres = self.config, self.ledger.places.towns
        prior, noise = config.town_km**-2, config.address_km**2
        precision = prior + self.addresses[card] / noise
        home = (prior * centres + self.address_sum[card] / noise) / precision[:, :, None]
        squared = ((self.ledger.xy[row][:, None] - home) ** 2).sum(axis=2)
        by_town = normal_xy(squared, noise + 1 / precision)
        return np.asarray((by_town * towns).sum(axis=1) + TINY), by_town

    def _anywhere(self, row: Ints) -> Array:
        squared = ((self.ledger.xy[row][:, None] - self.ledger.places.towns) ** 2).sum(axis=2)
        return np.asarray(normal_xy(squared, self.config.town_km**2).mean(axis=1) + TINY)

    def _learn(self, row: Ints, times: Array) -> None:
        """Counts payments as the customer's, by the belief at their time; a negative number takes them back."""
        card, category = self.ledger.card[row], self.category[row]
        honest, everyday = times * (1 - self.fraud[row]), times * self.everyday_share[row]
        home = times * self.home_share[row]
        offset = np.array(self.config.category_log_amount)[category]
        self.amounts[card] += honest
        self.amount_sum[card] += honest * (self.log_amount[row] - offset)
        self.paid[card] += everyday
        self.categories[card, category] += everyday
        self.groups[(card * K + category) * 2 + (self.town[row] < 0)] += home
        self.pairs[self.pair[row]] += home

    def _tell(self, events: Ints) -> None:
        """A label is heard: what was learned from that payment is corrected; a reported card is replaced."""
        row, position = events
        card, fraud = self.ledger.card[row], self.ledger.fraud[row]
        self.mode[card] = self._silence(card, self.event_days[position], self.epoch[row])
        honest = np.maximum(1 - self.fraud[row], 1e-9)
        self._learn(row, np.where(fraud, 0.0, 1.0) / honest - 1)
        over = card[fraud]
        self.mode[over, IDLE] += self.mode[over, CAMPAIGNS].sum(axis=1)
        self.mode[over, CAMPAIGNS] = 0
        latest = ~fraud & (self.last_row[card] == row)
        self.mode[card[latest]] = self.mode_if_honest[card[latest]]
        brought = self.brought_device[row] & (self.ledger.device[row] == self.newest[card])
        self.newest_is_own[card[brought]] = np.where(fraud[brought], 0.0, 1.0)
        ring_slot = self.merchant[row] * self.ring_slots + self.day[row] // self.config.collusion_days
        share, before = self.ring_share[row], self.ring_before[row]
        corrected = np.where(fraud, share / np.maximum(self.fraud[row], TINY), 0.0)
        np.add.at(self.ring_evidence, ring_slot, evidence(corrected, before) - evidence(share, before))
        for i, is_fraud in zip(row.tolist(), fraud.tolist(), strict=True):
            if i in self.accused:
                slots, parts, beliefs = self.accused[i]
                truth = parts / max(float(self.fraud[i]), TINY) if is_fraud else np.zeros_like(parts)
                np.add.at(self.skim_evidence, slots, evidence(truth, beliefs) - evidence(parts, beliefs))

    def _block(self, events: Ints) -> None:
        """A campaign may have ended with the block."""
        row, position = events
        card = self.ledger.card[row]
        self.mode[card] = self._silence(card, self.event_days[position], self.epoch[row])
        over = self.mode[card, CAMPAIGNS] * self.config.stopped_by_block
        self.mode[card, CAMPAIGNS] -= over
        self.mode[card, IDLE] += over.sum(axis=1)

    def _share(self, end: int) -> None:
        """Turns the evidence so far, and the silence of all cards, into beliefs for the next block."""
        config, now = self.config, end / DAY
        # each visit to a skimmed terminal would have led to a fraud by now with a chance that grows with its age
        day = np.arange(config.days)
        age = np.maximum(now - day - 0.5, 0)
        quiet = self.visits * np.log1p(config.cloned * np.expm1(-age / config.clone_wait))
        pad = self.skim_slots * config.skimming_days - config.days
        by_slot = np.pad(quiet, ((0, 0), (0, pad))).reshape(-1, self.skim_slots, config.skimming_days).sum(axis=2)
        self.skimmed = logistic(config.skimmed_terminals, by_slot.ravel() + self.skim_evidence)
        # each card would have joined a ring
        begin = np.arange(self.ring_slots) * config.collusion_days
        length = np.clip(now - begin, 0, config.collusion_days)
        cards = (self.ledger.issued[:, None] <= config.start + begin * DAY).sum(axis=0)
        silence = -config.collusion / self.rings * cards * length
        self.colludes = logistic(
            config.colluding_merchants, (self.ring_evidence.reshape(-1, self.ring_slots) + silence).ravel()
        )


def evidence(share: Array, belief: Array) -> Array:
    """Log Bayes factor of a cause that was believed in and now explains this share of a payment."""
    rest = belief * (1 - np.minimum(share, 1 - 1e-6))
    return np.asarray(np.log((rest + share) / np.maximum(rest, 1e-300)))


def logistic(prior: float, log_odds: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-(log_odds + np.log(prior / (1 - prior))))))
