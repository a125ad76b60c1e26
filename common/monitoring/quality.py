"""How good a probability of a yes or no is in production: estimated before labels come, realised when they have.

And whether what it is made from, and what it will be taught with, can be believed: data, features' age, labels.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.errors import BadData, BadDefinition, BadSetting
from common.monitoring.sketches import Array, Numeric, Sketch

Ids: TypeAlias = NDArray[Any]  # strings or whole numbers
Times: TypeAlias = NDArray[np.int64]  # us
Kind = Literal["missing", "out_of_range", "unseen", "constant", "stale", "flood", "frozen", "random", "early"]

MOST_OUTSIDE = 0.05  # share of rows; with more, what the probabilities promise is not believed
FEWEST = 2  # units with a yes, and with a no: of fewer a bootstrap knows no spread
RATIOS = (1.25, 1.5, 2.0, 3.0, 5.0)  # as many more positives as a detector looks for
LARGEST = 0.99  # quantile of the reference's clusters, to which larger ones are cut
DAYS = 7  # of reference at least
FLOOD = 3.0  # times the usual number of labels; fewer may be a drift, however sure
MOST = 0.5  # share of rows; where it was not usual, more is a flaw, however unlike each other days are
MARGIN = 0.01  # share of rows or labels; a smaller change is no flaw, however sure
HIGH = 0.7  # AUC; where labels agreed less with the score, agreement that is lost cannot be seen
KEPT = 1 / 3  # of the AUC above 0.5; a drifted model keeps more than that, random labels keep none
CHECKS = 7  # of labels


@dataclass(frozen=True)
class Estimate:
    """The quality of a chunk if its probabilities are right; `why` says what speaks against that."""

    metrics: Mapping[str, float]
    rows: int  # with a score
    trusted: bool
    why: str | None


def estimate(
    score: Array,
    *,
    surprised: bool | None,
    outside: float | None,
    drifted: Collection[str] = (),
    most_outside: float = MOST_OUTSIDE,
) -> Estimate:
    """What is expected of scores, (n,), NaN: missing, whose labels are independent and 1 with just that probability.

    NannyML's confidence-based performance estimation (CBPE; Kivimäki et al. 2025, arXiv:2505.05295). `positives`,
    `brier` and `log_loss` are exact expectations. `average_precision` and `auc_roc` are the exact expectation of
    their numerator over that of their denominator, off by O(1 / positives); unlike the plug-in of p as a fractional
    label, a row counts as itself. What cannot be said is left out.

    All holds only as long as probabilities are right, which unlabelled data cannot show: `surprised` says whether the
    newest matured labels contradict them (Surprise), `outside` the share of rows beyond the reference's range,
    `drifted` the columns with an alarm; None: not known, so not trusted. Raises BadData.
    """
    p = np.sort(_probabilities(score)[~np.isnan(score)])[::-1]
    missing = 1 - len(p) / len(score) if len(score) else 1.0
    doubts = [
        (missing > most_outside, f"{missing:.1%} of scores are missing"),
        (surprised is None, "no matured labels confirm the probabilities"),
        (surprised is True, "matured labels contradict the probabilities"),
        (outside is None, "not known how many rows are outside the reference's range"),
        (
            outside is not None and not outside <= most_outside,  # NaN is no reason to trust
            f"{outside or 0:.1%} of rows are outside the reference's range, at most {most_outside:.1%} may be",
        ),
        (bool(drifted), f"drift alarmed: {', '.join(sorted(drifted))}"),
    ]
    why = "; ".join(reason for doubted, reason in doubts if doubted) or None
    return Estimate(_expected(p) if len(p) else {}, len(p), why is None, why)


def _expected(p: Array) -> dict[str, float]:
    """p: (n,), descending."""
    n, ends = len(p), _ends(p)
    variance = p * (1 - p)
    above, doubt = np.cumsum(p)[ends], np.cumsum(variance)[ends]
    here, ours, rows = (np.diff(v, prepend=0) for v in (above, doubt, ends + 1))
    entropy = -p * np.log(np.maximum(p, 1e-300)) - (1 - p) * np.log(np.maximum(1 - p, 1e-300))
    metrics = {"positives": float(above[-1]), "brier": float(variance.mean()), "log_loss": float(entropy.mean())}
    if above[-1] > 0:
        metrics["average_precision"] = float(((here * above + ours) / (ends + 1)).sum() / above[-1])
    pairs = above[-1] * (n - above[-1]) - doubt[-1]  # a row is no pair with itself
    if pairs > 1e-9 * n:
        ordered = (above - here) * (rows - here) + (here * (rows - here) - ours) / 2
        metrics["auc_roc"] = float(ordered.sum() / pairs)
    return metrics


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float


def realised(
    score: Array, label: Array, weight: Array, unit: Ids, *, repeats: int = 200, seed: int = 0
) -> dict[str, Interval]:
    """Quality with 95 % intervals; score, label (NaN: not known), weight (1 / propensity of knowing it) and unit: (n,).

    Rows without a score, a label or a weight are left out. Intervals are the percentiles of a Poisson bootstrap that
    draws units, whose rows depend on each other, each with all its rows (Chamandy et al. 2012). `calibration_ratio` is
    observed over expected positives. It, `average_precision` and `auc_roc` are absent unless both classes
    are seen in two units each; everything is, with fewer than two units. Raises BadData.
    """
    known = _known(score, label, weight, unit)
    order = known[np.argsort(-score[known], kind="stable")]
    p, y, w = score[order], label[order], weight[order]
    units, of = np.unique(unit[order], return_inverse=True)
    if len(units) < FEWEST:
        return {}
    ends = _ends(p)
    eps = np.finfo(np.float64).eps  # a sure mistake costs much, and not infinitely
    sure = np.clip(p, eps, 1 - eps)
    losses = {"brier": np.square(p - y), "log_loss": -np.where(y == 1, np.log(sure), np.log1p(-sure))}
    two_classes = min(len(np.unique(of[y == 1])), len(np.unique(of[y == 0]))) >= FEWEST and bool(p.any())

    def measure(w: Array) -> dict[str, float]:
        metrics = {name: float(w @ loss / w.sum()) for name, loss in losses.items()}
        if two_classes:
            precision, auc = _ranked(y, w, ends)
            metrics |= {"average_precision": precision, "auc_roc": auc, "calibration_ratio": float(w @ y / (w @ p))}
        return metrics

    rng = np.random.default_rng(seed)
    drawn: list[dict[str, float]] = []
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw may hold one class only: NaN, and left out
        for _ in range(repeats):
            drawn.append(measure(w * rng.poisson(1.0, len(units))[of]))
    out = {}
    for name, value in measure(w).items():
        values = np.array([draw[name] for draw in drawn])
        low, high = np.quantile(values[np.isfinite(values)], [0.025, 0.975]).tolist()
        out[name] = Interval(value, low, high)
    return out


def _ranked(y: Array, w: Array, ends: NDArray[np.int64]) -> tuple[float, float]:
    """Average precision and area under the ROC curve of rows in descending order of score; NaN: one class only."""
    hits, rows = np.cumsum(w * y)[ends], np.cumsum(w)[ends]
    here = np.diff(hits, prepend=0)
    misses = np.diff(rows - hits, prepend=0)
    precision = np.divide(hits, rows, out=np.zeros_like(hits), where=rows > 0)
    auc = (misses * (hits - here / 2)).sum() / (hits[-1] * (rows[-1] - hits[-1]))
    return float((here * precision).sum() / hits[-1]), float(auc)


def _ends(p: Array) -> NDArray[np.int64]:
    """The last row of each group of equal scores."""
    return np.append(np.flatnonzero(np.diff(p)), len(p) - 1)


def _probabilities(score: Array) -> Array:
    wrong = score[(score < 0) | (score > 1)]
    if len(wrong):
        raise BadData(f"score: must be from 0 to 1, got {wrong[0]}")
    return score


def _known(score: Array, label: Array, weight: Array, unit: Ids) -> NDArray[np.int64]:
    """The rows with a score, a label and a weight; raises BadData."""
    if len({len(score), len(label), len(weight), len(unit)}) > 1:
        raise BadData(f"columns: must be of one length, got {len(score)}, {len(label)}, {len(weight)}, {len(unit)}")
    _probabilities(score)
    wrong = label[~(np.isnan(label) | (label == 0) | (label == 1))]
    if len(wrong):
        raise BadData(f"label: must be 0 or 1, got {wrong[0]}")
    wrong = weight[~(np.isfinite(weight) & (weight >= 0))]
    if len(wrong):
        raise BadData(f"weight: must be finite and >= 0, got {wrong[0]}")
    return np.flatnonzero(~(np.isnan(score) | np.isnan(label)) & (weight > 0))


@dataclass(frozen=True, kw_only=True)
class Surprise:
    """Whether positives come more often than the probabilities say: evidence that may be looked at every day.

    H0: given the past, a period's positives are (1 + slack) * its summed p on average, or fewer; and they come in
    clusters (a campaign), so their law is no wider than the negative binomial with variance dispersion * mean: clusters
    come as in a Poisson process, their sizes are logarithmic. For each ratio r > 1 the likelihood ratio of r times the
    mean to the mean itself has expectation <= 1 then. Two uses of it, each a mean over RATIOS:

    - `evidence`, log of a test martingale since the start: under H0 it ever reaches log(1 / rate) with probability at
      most `rate` (Ville 1939; Ramdas et al. 2023, Statistical Science 38:576). For a chunk, or a test of one version.
    - `detection`, log of a Shiryaev-Roberts e-detector, which does not tire of a long quiet past: under H0 the mean
      number of periods until it reaches log(1 / rate) is at least 1 / rate (Shin, Ramdas & Rinaldo 2023, E-detectors,
      New England Journal of Statistics in Data Science). For watching on.

    Both guarantees hold for the dispersion that is given; `fit` estimates it. Frozen, and its fields are plain numbers:
    it can be kept as JSON.
    """

    dispersion: float  # variance of a period's positives over their mean; >= 1
    slack: float = 0.1  # more positives by this share are not worth an alarm
    largest: float = math.inf  # positives of one cluster that count: one campaign alone is no change
    wealth: tuple[float, ...] = (0.0,) * len(RATIOS)  # log, by ratio
    detector: tuple[float, ...] = (0.0,) * len(RATIOS)  # log(1 + Shiryaev-Roberts), by ratio

    def __post_init__(self) -> None:
        if not (self.dispersion >= 1 and self.slack >= 0 and self.largest > 0):
            raise BadSetting(
                "surprise: must have dispersion >= 1, slack >= 0, largest > 0, "
                f"got {self.dispersion}, {self.slack}, {self.largest}"
            )

    @classmethod
    def fit(cls, score: Array, label: Array, unit: Ids, day: Times, *, slack: float = 0.1) -> Self:
        """From a reference that the probabilities fit; columns as in `sums`, at least 7 days with a positive somewhere.

        The dispersion is the larger of what clusters show and what days show, so that what units have in common on a
        day counts too. Raises BadData.
        """
        days, of, observed, expected = _clusters(score, label, unit, day)
        if len(days) < DAYS or not observed.any():
            raise BadData(f"reference: must have >= {DAYS} days and a positive, got {len(days)}, {observed.sum():g}")
        largest = float(np.quantile(observed[observed > 0], LARGEST, method="higher"))
        observed = np.minimum(observed, largest)
        expected = expected * (observed.sum() / expected.sum())
        clusters = float(np.square(observed - expected).sum() / expected.sum())
        by_day = _spread(_sums(of, observed, len(days)), _sums(of, expected, len(days)))
        return cls(dispersion=max(1.0, clusters, by_day), slack=slack, largest=largest)

    def sums(self, score: Array, label: Array, unit: Ids, day: Times) -> tuple[Times, Array, Array]:
        """By day, ascending: its number, observed positives and expected ones; score, label, unit and day: (n,).

        Rows are not weighted: whether a label is known may depend on the score, not on the label. A campaign that goes
        on over several days is as many clusters; where that is usual, give weeks. Raises BadData.
        """
        days, of, observed, expected = _clusters(score, label, unit, day)
        observed = np.minimum(observed, self.largest)
        return days, _sums(of, observed, len(days)), _sums(of, expected, len(days))

    def after(self, observed: float, expected: float) -> Self:
        """With a further period's sums; one of which no label is known is no period: 0, 0 changes nothing."""
        if not (0 <= observed < math.inf and 0 <= expected < math.inf):
            raise BadData(f"surprise: sums must be finite and >= 0, got {observed} observed, {expected} expected")
        if observed == expected == 0:
            return self
        mean = (1 + self.slack) * expected
        factors = [_log_ratio(r, self.dispersion, observed, mean) for r in RATIOS]
        wealth = tuple(w + f for w, f in zip(self.wealth, factors, strict=True))
        detector = tuple(_log1p_exp(d + f) for d, f in zip(self.detector, factors, strict=True))
        return replace(self, wealth=wealth, detector=detector)

    def forgetting(self, some: float) -> Self:
        """With so much less, log, in the detector: what is over is then over soon, however strong it was."""
        return replace(self, detector=tuple(max(d - some, 0.0) for d in self.detector))

    @property
    def evidence(self) -> float:
        """Log e-value that positives came more often than said at some time since the start; 0: none."""
        return _log_mean(self.wealth)

    @property
    def detection(self) -> float:
        """Log of the e-detector that they came to do so; -inf: nothing seen yet."""
        return _log_mean([math.log(math.expm1(d)) if 0 < d < 30 else d or -math.inf for d in self.detector])

    def alarms(self, rate: float) -> bool:
        """At most this probability of ever a false alarm."""
        return self.evidence >= -math.log(rate)

    def detects(self, rate: float) -> bool:
        """At least 1 / rate periods on average until a false alarm; begin anew after one."""
        return self.detection >= -math.log(rate)


def _clusters(score: Array, label: Array, unit: Ids, day: Times) -> tuple[Times, NDArray[np.intp], Array, Array]:
    """The days; and of each unit on each day: its day's place among them, positives, summed score."""
    known = _known(score, label, np.ones(len(day)), unit)
    days, day_of = np.unique(day[known], return_inverse=True)
    _, unit_of = np.unique(unit[known], return_inverse=True)
    pairs, of = np.unique(unit_of * len(days) + day_of, return_inverse=True)
    return days, pairs % max(1, len(days)), _sums(of, label[known], len(pairs)), _sums(of, score[known], len(pairs))


def _sums(of: NDArray[np.intp], values: Array, groups: int) -> Array:
    return np.bincount(of, values, groups).astype(np.float64)


def _log_ratio(ratio: float, dispersion: float, observed: float, mean: float) -> float:
    """Log likelihood ratio of a negative binomial law tilted to `ratio` times its mean, to the law itself.

    theta * observed - mean * k(theta): k are its cumulants per unit of mean, and k'(theta) = ratio gives theta.
    """
    more = dispersion - 1
    theta = math.log(ratio * dispersion / (1 + ratio * more))
    cumulant = math.log((1 + ratio * more) / dispersion) / more if more > 1e-6 else ratio - 1  # 1: Poisson's law
    return theta * observed - mean * cumulant


def _log1p_exp(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _log_mean(logs: Sequence[float]) -> float:
    top = max(logs)
    return top + math.log(sum(math.exp(x - top) for x in logs) / len(logs)) if top > -math.inf else top


def _spread(counts: Array, expected: Array) -> float:
    """Pearson's estimate of how much wider than Poisson's law counts are, by day; at least 1."""
    due = expected > 0
    return max(1.0, float((np.square(counts - expected)[due] / expected[due]).sum() / max(1, due.sum() - 1)))


@dataclass(frozen=True)
class Flaw:
    """A share that should be small, what it usually is, and from where on it is too much."""

    column: str
    kind: Kind
    share: float | None  # None: nothing to tell it from, which is not the same as none
    usual: float | None
    threshold: float | None

    @property
    def exceeds(self) -> bool:
        return self.share is not None and self.threshold is not None and self.share >= self.threshold

    @property
    def ratio(self) -> float | None:
        """Share over threshold; None: not known."""
        return None if self.share is None or self.threshold is None else self.share / self.threshold


@dataclass(frozen=True)
class Habit:
    """Something happened in `usual` of the reference's n cases, by day `dispersion` times as unevenly as by chance."""

    usual: float
    n: float
    dispersion: float = 1.0

    def most(self, n: float, rate: float) -> float:
        """The share of n new cases that is exceeded by chance at most at this rate, the reference's own error included.

        Half the rate goes to each; Chernoff's bound below and Bernstein's above, which hold for binomial and Poisson
        counts of any size, and for negative binomial ones (Boucheron, Lugosi & Massart 2013, sections 2.2 and 2.4).
        """
        log = math.log(2 / rate)
        room, seen = self.dispersion * log, self.usual * self.n
        mean = (seen + room + math.sqrt(room * (room + 2 * seen))) / self.n * n
        return (mean + math.sqrt(2 * room * mean) + room - log / 2) / n


def flaws(
    reference: Mapping[str, Sketch],
    chunk: Mapping[str, Sketch],
    *,
    rate: float = 0.01,
    margin: float = MARGIN,
    blocks: Sequence[Mapping[str, Sketch]] = (),
) -> tuple[Flaw, ...]:
    """Each of the reference's columns in a chunk whose sketches have the same bins.

    `missing`, `out_of_range` (numbers), `unseen` (words): too much is what exceeds the usual share by `margin` and by
    more than chance. `constant`, of a column that varied: one value, and too many rows for that to be chance. By chance
    any of them exceeds at most at `rate` per chunk over all columns (Bonferroni), if rows are independent, or as unlike
    each other as the `blocks` of the reference, such as days. A column without rows has no shares (None). Raises
    BadDefinition for other bins.
    """
    asked = [(column, kind) for column, sketch in reference.items() for kind in _kinds(sketch)]
    each = rate / max(1, len(asked))
    found = []
    for column, kind in asked:
        days = [block[column] for block in blocks]
        found.append(_flaw(column, kind, reference[column], chunk.get(column), days, each, margin))
    return tuple(found)


def _kinds(sketch: Sketch) -> list[Kind]:
    kinds: list[Kind] = ["missing", "out_of_range" if isinstance(sketch, Numeric) else "unseen"]
    return [*kinds, "constant"] if sketch.n and not _one_value(sketch) else kinds


def _flaw(
    column: str, kind: Kind, usual: Sketch, now: Sketch | None, days: Sequence[Sketch], rate: float, margin: float
) -> Flaw:
    if now is not None and usual.empty_like() != now.empty_like():
        raise BadDefinition(f"{column}: must be sketched with the reference's bins")
    (seen, n), (of_now, n_now) = _count(kind, usual), _count(kind, now) if now is not None else (0, 0)
    if not n or not n_now:
        return Flaw(column, kind, None, None, None)
    if kind == "constant":
        commonest = _commonest(usual)
        by_chance = commonest > 0 and n_now * math.log(commonest) > math.log(rate)
        return Flaw(column, kind, float(of_now and not by_chance), 0.0, 1.0)
    counts = np.array([_count(kind, day) for day in days], float).reshape(-1, 2)
    habit = Habit(seen / n, n, _spread(counts[:, 0], seen / n * counts[:, 1]))
    # a day without any values among those of the reference may not make all later ones usual
    most = min(habit.most(n_now, rate), max(MOST, habit.usual))
    return Flaw(column, kind, of_now / n_now, habit.usual, max(habit.usual + margin, most))


def _count(kind: Kind, sketch: Sketch) -> tuple[int, int]:
    """How many are of the kind, and of how many."""
    if kind == "missing":
        return sketch.missing, sketch.n + sketch.missing
    if kind == "constant":
        return int(_one_value(sketch)), sketch.n
    return sketch.n - sum(sketch.counts[1:-1]) if isinstance(sketch, Numeric) else sketch.other, sketch.n


def _commonest(sketch: Sketch) -> float:
    """A bound on the share of the most frequent value; what is not there varies by no more than the range allows."""
    if not isinstance(sketch, Numeric):
        return max(sketch.counts.values()) / sketch.n
    spread = (sketch.std / ((sketch.max or 0.0) - (sketch.min or 0.0))) ** 2
    return max(0.0, min(max(sketch.counts) / sketch.n, 1 - spread))


def _one_value(sketch: Sketch) -> bool:
    if isinstance(sketch, Numeric):
        return sketch.n > 0 and sketch.min == sketch.max
    return not sketch.other and sum(count > 0 for count in sketch.counts.values()) == 1


def stale(age: Array | Times, limit: int, *, most: float = MARGIN) -> Flaw:
    """The share of answers whose features were older than `limit`; ages in us, (n,), NaN: default features were used.

    A negative age is a wrong clock, and counts. Too much is from `most` on; of no answers there is no share.
    """
    share = float(1 - ((age >= 0) & (age <= limit)).mean()) if len(age) else None
    return Flaw("features", "stale", share, 0.0, most)


@dataclass(frozen=True)
class Told:
    """Labels heard in a day or another span, as columns of length n, and how many requests were due to be labelled."""

    request: Ids  # what each is about
    known: NDArray[np.bool_]  # whether such a request is logged
    asked: Times  # when that happened, says the request
    dated: Times  # when that happened, says the label
    heard: Times  # when the label was logged
    value: Array  # 0 or 1; NaN: heard, and nothing is said
    score: Array  # of the request; NaN: none, or no value, or the label was heard because of what it is: then agreement
    # means nothing
    is_even: NDArray[np.bool_]  # it would have been heard whatever it says; else it came because something happened
    due: int  # requests that are as old as labels usually come late: LabelHabits.delay


@dataclass(frozen=True)
class LabelHabits:
    """How labels came in the reference: how many for a request that is due, which, when, and whether scores agree."""

    heard: Habit  # per request that was due; all others per label
    positive: Habit
    repeated: Habit  # for a request that already had one
    unknown: Habit  # for a request that nobody made
    early: Habit  # dated otherwise than clocks allow
    delay: int  # us, median
    agreement: float | None  # AUC; None: below 0.7 or not known, where labels at random would look no different
    uneven: float  # variance of a day's AUC over what independent labels would give; at least 1
    rate: float  # of false alarms per judged span, over all checks

    @classmethod
    def fit(cls, days: Sequence[Told], *, rate: float = 0.01) -> Self:
        """From at least 7 days of labels that can be believed; thresholds follow from how days differ.

        Raises BadData.
        """
        heard = np.array([len(day.value) for day in days], float)
        due = np.array([day.due for day in days], float)
        if len(days) < DAYS or not heard.sum() or not due.sum():
            raise BadData(
                f"reference: must have >= {DAYS} days, labels and requests due, "
                f"got {len(days)}, {heard.sum():g}, {due.sum():g}"
            )

        def habit(counts: Sequence[float], of: Array) -> Habit:
            usual = float(sum(counts) / of.sum())
            return Habit(usual, float(of.sum()), _spread(np.array(counts), usual * of))

        positive, repeated, unknown, early = zip(*[_counts(day) for day in days], strict=True)
        says = np.array([_saying(day) for day in days], float)
        late = np.concatenate([(day.heard - day.asked)[day.known] for day in days])
        score, value = (np.concatenate(c) for c in zip(*[(day.score, day.value) for day in days], strict=True))
        agreement, _ = _agreement(score, value)
        daily = [(auc, *classes) for auc, classes in (_agreement(day.score, day.value) for day in days)]
        uneven = 1.0
        if agreement is not None:
            apart = [
                (auc - agreement) ** 2 / _auc_variance(agreement, n1, n0) for auc, n1, n0 in daily if auc is not None
            ]
            uneven = max(1.0, float(np.mean(apart))) if apart else 1.0
        return cls(
            heard=habit(heard.tolist(), due), positive=habit(positive, says) if says.any() else Habit(0.0, 0.0),
            repeated=habit(repeated, heard),
            unknown=habit(unknown, heard), early=habit(early, heard),
            delay=int(np.median(late)) if len(late) else 0,
            agreement=agreement if agreement is not None and agreement >= HIGH else None, uneven=uneven, rate=rate,
        )  # fmt: skip


def labels_health(habits: LabelHabits, told: Told) -> tuple[Flaw, ...]:
    """Whether a loop may learn from the labels of a span: a day, or several for what a day is too short to show.

    - flood: `labels` per request that is due, at least three times the usual; `repeated` ones; for `unknown` requests.
    - frozen: `labels`: none, though so many were due that this is not chance; `value`: all the same, likewise.
    - random: `agreement`: the share of pairs that scores order unlike labels (1 - AUC). It exceeds only when the AUC is
      surely below 0.5 + (usual - 0.5) / 3. A model that lost half of its lead to a drift is above that (0.95 -> 0.75
      against 0.65), labels at random are not. Not asked where the usual AUC is below 0.7.
    - early: `clock`: dated before their requests, or later than they were heard.

    By chance any of these exceeds at most at the habits' rate, divided evenly among them. None: too few labels, or none
    due, to tell; more days may. Raises BadData.
    """
    n, due, each = len(told.value), told.due, habits.rate / CHECKS
    positive, repeated, unknown, early = _counts(told)
    usual, expected = habits.heard.usual, habits.heard.usual * due
    flood = max(FLOOD * usual, habits.heard.most(due, each)) if due else None
    silence = 1.0 if _log_none(expected, habits.heard.dispersion) <= math.log(each) else None
    found = [
        Flaw("labels", "flood", n / due if due else None, usual, flood),
        _too_many("repeated", "flood", repeated, n, habits.repeated, each),
        _too_many("unknown", "flood", unknown, n, habits.unknown, each),
        Flaw("labels", "frozen", 0.0 if n else silence, 0.0, 1.0),
        _too_many("clock", "early", early, n, habits.early, each),
    ]
    q = habits.positive.usual
    if 0 < q < 1:
        says = _saying(told)
        independent = says / habits.positive.dispersion
        tells = q**independent + (1 - q) ** independent <= each or 0 < positive < says
        most = max(positive, says - positive) / says if says and tells else None
        found.append(Flaw("value", "frozen", most, max(q, 1 - q), 1.0))
    if habits.agreement is not None:
        auc, (n1, n0) = _agreement(told.score, told.value)
        bound = 0.5 + KEPT * (habits.agreement - 0.5)
        z = NormalDist().inv_cdf(1 - each)
        threshold = 1 - bound + z * math.sqrt(habits.uneven * _auc_variance(bound, n1, n0)) if n1 and n0 else None
        enough = threshold is not None and threshold <= 0.5  # else labels at random would not exceed it either
        wrong = 1 - auc if auc is not None and (enough or 1 - auc >= (threshold or 0)) else None
        found.append(Flaw("agreement", "random", wrong, 1 - habits.agreement, threshold))
    return tuple(found)


def _too_many(column: str, kind: Kind, count: float, n: int, habit: Habit, rate: float) -> Flaw:
    if not n:
        return Flaw(column, kind, None, habit.usual, None)
    return Flaw(column, kind, count / n, habit.usual, max(habit.usual + MARGIN, habit.most(n, rate)))


def _counts(told: Told) -> tuple[float, float, float, float]:
    """Labels that are positive, repeated, about unknown requests, early."""
    wrong = told.value[~((told.value == 0) | (told.value == 1) | np.isnan(told.value))]
    if len(wrong):
        raise BadData(f"label: must be 0 or 1, got {wrong[0]}")
    known = told.known
    early = (told.dated > told.heard) | (known & (told.dated < told.asked))
    repeated = len(told.request) - len(np.unique(told.request))
    return float(np.nansum(told.value)), float(repeated), float((~known).sum()), float(early.sum())


def _saying(told: Told) -> int:
    """Labels that say something."""
    return int((~np.isnan(told.value)).sum())


def _agreement(score: Array, value: Array) -> tuple[float | None, tuple[int, int]]:
    """The AUC of labels that have a score, None with one class only, and how many of each class: ones, zeros."""
    known = np.flatnonzero(~np.isnan(score))
    order = known[np.argsort(-score[known], kind="stable")]
    y = value[order]
    n1, n0 = int(y.sum()), int(len(y) - y.sum())
    return _ranked(y, np.ones(len(y)), _ends(score[order]))[1] if n1 and n0 else None, (n1, n0)


def _auc_variance(auc: float, n1: int, n0: int) -> float:
    """Of n1 ones and n0 zeros (Hanley & McNeil 1982, Radiology 143:29)."""
    a, b = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    return (auc * (1 - auc) + (n1 - 1) * (a - auc**2) + (n0 - 1) * (b - auc**2)) / (n1 * n0)


def _log_none(mean: float, dispersion: float) -> float:
    """Log of a negative binomial's chance of 0."""
    return -mean * (math.log(dispersion) / (dispersion - 1) if dispersion > 1 else 1.0)
