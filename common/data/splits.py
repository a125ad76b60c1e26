"""Splits by time. Before a test starts, only labels that had arrived by then may be learnt from."""

from typing import NamedTuple

from common.errors import BadSetting

Span = tuple[int, int]  # us, from the first (inclusive) to the second (exclusive)


class Split(NamedTuple):
    """Fit on the requests of one span, judge on those of a later one; between them lies the label delay."""

    train: Span
    test: Span


class Forward(NamedTuple):
    """Choose parameters on `tuning`, then fit and judge once on `final`, whose train holds all of tuning's."""

    tuning: Split
    final: Split


def forward(start: int, end: int, *, label_delay: int, test_span: int, validation_span: int) -> Forward:
    """The last `test_span` is the test. Raises BadSetting when nothing is left to train on. All in us."""
    _check(label_delay=label_delay, test_span=test_span, validation_span=validation_span)
    test = end - test_span
    known = test - label_delay  # labels of later requests had not arrived when the test starts
    validation = known - validation_span
    train = validation - label_delay
    if train <= start:
        raise BadSetting(
            f"history: must be longer than test_span + validation_span + 2 label_delay = {end - train} us, "
            f"got {end - start} us ({test_span=}, {validation_span=}, {label_delay=})"
        )
    return Forward(Split((start, train), (validation, known)), Split((start, known), (test, end)))


def rolling(first_start: int, *, train: int, label_delay: int, test: int, folds: int, step: int) -> list[Split]:
    """Folds of equal lengths, each `step` later than the one before. All in us."""
    _check(label_delay=label_delay, train=train, test=test, folds=folds, step=step)
    splits = []
    for start in range(first_start, first_start + folds * step, step):
        known = start + train
        splits.append(Split((start, known), (known + label_delay, known + label_delay + test)))
    return splits


def _check(label_delay: int, **spans: int) -> None:
    if label_delay < 0:
        raise BadSetting(f"label_delay: must be >= 0 us, got {label_delay}")
    for name, span in spans.items():
        if span <= 0:
            raise BadSetting(f"{name}: must be > 0, got {span}")
