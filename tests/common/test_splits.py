import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.data.splits import Forward, Split, forward, rolling
from common.errors import BadSetting

spans = st.integers(1, 1_000)
delays = st.integers(0, 1_000)


def test_a_label_delay_lies_before_each_span_that_judges() -> None:
    assert forward(0, 100, label_delay=7, test_span=20, validation_span=10) == Forward(
        tuning=Split(train=(0, 56), test=(63, 73)), final=Split(train=(0, 73), test=(80, 100))
    )


@given(st.integers(0, 10**6), spans, spans, spans, delays)
def test_every_label_that_is_learnt_from_had_arrived(
    start: int, rest: int, test_span: int, validation_span: int, label_delay: int
) -> None:
    end = start + rest + test_span + validation_span + 2 * label_delay
    tuning, final = forward(start, end, label_delay=label_delay, test_span=test_span, validation_span=validation_span)
    for train, test in (tuning, final):
        assert start == train[0] < train[1]
        assert (train[1] - 1) + label_delay < test[0] < test[1]
    assert final.test == (end - test_span, end)
    assert tuning.test == (final.train[1] - validation_span, final.train[1])
    assert tuning.train[1] - start == rest


def test_a_history_that_leaves_nothing_to_train_on_is_refused_with_its_values() -> None:
    with pytest.raises(BadSetting, match=r"history: must be longer than .* = 44 us, got 44 us \(test_span=20"):
        forward(1_000, 1_044, label_delay=7, test_span=20, validation_span=10)
    assert forward(1_000, 1_045, label_delay=7, test_span=20, validation_span=10).tuning.train == (1_000, 1_001)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"label_delay": -1}, "label_delay: must be >= 0 us, got -1"),
        ({"test_span": 0}, "test_span: must be > 0, got 0"),
        ({"validation_span": -5}, "validation_span: must be > 0, got -5"),
    ],
)
def test_a_span_that_is_none_is_refused(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(BadSetting, match=message):
        forward(0, 100, **{"label_delay": 7, "test_span": 20, "validation_span": 10, **wrong})


def test_folds_step_forward_in_time() -> None:
    assert rolling(5, train=30, label_delay=7, test=10, folds=2, step=10) == [
        Split(train=(5, 35), test=(42, 52)),
        Split(train=(15, 45), test=(52, 62)),
    ]


@pytest.mark.parametrize("name", ["train", "test", "folds", "step"])
def test_folds_of_nothing_are_refused(name: str) -> None:
    with pytest.raises(BadSetting, match=f"{name}: must be > 0, got 0"):
        rolling(0, **{"train": 30, "label_delay": 7, "test": 10, "folds": 2, "step": 10, name: 0})
