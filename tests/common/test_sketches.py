import json
import math
import sys
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.errors import BadDefinition
from common.monitoring import sketches
from common.monitoring.sketches import Categorical, Numeric, Sketch

Array = NDArray[np.float64]
numbers = st.floats(-1e6, 1e6) | st.sampled_from([0.0, -0.0, 1.0, math.nan, math.inf, -math.inf])
columns = st.lists(numbers).map(np.array).map(lambda values: values.astype(np.float64))
words = st.lists(st.none() | st.sampled_from("abcdefg") | st.text(st.characters(exclude_categories=["Cs"]), max_size=3))


def agree(a: Numeric, b: Numeric) -> None:
    """Counts to the last one; moments up to rounding."""
    assert (a.edges, a.counts, a.missing, a.n, a.min, a.max) == (b.edges, b.counts, b.missing, b.n, b.min, b.max)
    size = max((abs(m) for m in (a.min, a.max) if m is not None), default=0.0)
    tiny = sys.float_info.min  # below it, squares have few digits
    assert a.mean == pytest.approx(b.mean, rel=1e-9, abs=1e-9 * size + tiny)
    assert a.m2 == pytest.approx(b.m2, rel=1e-9, abs=1e-9 * a.n * size**2 + tiny)


@given(columns)
def test_a_sketch_counts_every_value_once(values: Array) -> None:
    sketch = Numeric.of(values)
    present = values[np.isfinite(values)]
    assert sketch.n == sum(sketch.counts) == len(present)
    assert sketch.missing == len(values) - len(present)
    if len(present):
        assert (sketch.min, sketch.max) == (present.min(), present.max())
        assert sketch.mean == pytest.approx(present.mean())
        assert sketch.std == pytest.approx(present.std(), rel=1e-6, abs=1e-6)
        assert sketch.counts[0] == sketch.counts[-1] == 0


@given(columns, columns)
def test_a_bin_holds_its_lower_edge_and_the_last_one_its_upper_too(reference: Array, values: Array) -> None:
    sketch = Numeric.of(reference).empty_like().update(values)
    edges = sketch.edges
    present = [v for v in values.tolist() if math.isfinite(v)]
    if not edges:
        assert sketch.counts == (len(present),)
        return
    inner = [sum(lo <= v < hi for v in present) for lo, hi in zip(edges, edges[1:], strict=False)]
    inner[-1] += present.count(edges[-1])
    assert sketch.counts == (sum(v < edges[0] for v in present), *inner, sum(v > edges[-1] for v in present))


@given(columns, columns, columns, columns)
def test_numeric_sketches_merge_in_any_order_and_grouping(reference: Array, a: Array, b: Array, c: Array) -> None:
    empty = Numeric.of(reference).empty_like()
    x, y, z = (empty.update(values) for values in (a, b, c))
    agree(x.merge(y), y.merge(x))
    agree(x.merge(y).merge(z), x.merge(y.merge(z)))
    agree(x.merge(y), empty.update(np.concatenate([a, b])))
    assert x.merge(empty) == empty.merge(x) == x


@given(words, words, words, words)
def test_categorical_sketches_merge_in_any_order_and_grouping(
    reference: list[str | None], a: list[str | None], b: list[str | None], c: list[str | None]
) -> None:
    empty = Categorical.of(reference).empty_like()
    x, y, z = (empty.update(values) for values in (a, b, c))
    assert x.merge(y) == y.merge(x) == empty.update(a + b)
    assert x.merge(y).merge(z) == x.merge(y.merge(z))
    assert x.merge(empty) == x
    assert x.n + x.missing == len(a)


@settings(deadline=None)  # it waits for the disk
@given(columns, words)
def test_what_is_written_is_read_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, values: Array, names: list[str | None]
) -> None:
    folder = tmp_path_factory.mktemp("model")
    written: dict[str, Sketch] = {
        "score": Numeric.of(values),
        "merchant": Categorical.of(names),
        "new": Numeric.of(values).empty_like(),
    }
    sketches.save(written, folder)
    assert sketches.load(folder) == written
    assert list(json.loads((folder / "sketches.json").read_text())) == list(written)


def test_bins_hold_equal_shares_of_the_reference() -> None:
    sketch = Numeric.of(np.random.default_rng(0).lognormal(size=10_000))
    assert len(sketch.edges) == 21
    np.testing.assert_allclose(sketch.counts[1:-1], 500, atol=2)


def test_a_value_that_most_rows_have_gets_one_bin() -> None:
    values = np.concatenate([np.zeros(900), np.arange(1.0, 101.0)])
    sketch = Numeric.of(values)
    assert sketch.edges[0] == 0
    assert sketch.edges == tuple(sorted(set(sketch.edges)))
    assert sketch.counts[1] >= 900


def test_a_flag_that_is_seldom_set_is_counted_apart() -> None:
    sketch = Numeric.of(np.repeat([0.0, 1.0], [990, 10]))
    assert [count for count in sketch.counts if count] == [990, 10]
    often = sketch.empty_like().update(np.repeat([0.0, 1.0], [500, 500]))
    assert [count for count in often.counts if count] == [500, 500]


def test_values_that_many_rows_have_are_counted_apart() -> None:
    sketch = Numeric.of(np.repeat(np.arange(5.0), 200))
    assert [count for count in sketch.counts if count] == [200] * 5


def test_what_was_constant_is_seen_to_move_either_way() -> None:
    sketch = Numeric.of(np.full(9, 2.0)).empty_like()
    assert sketch.update(np.array([1.0, 2.0, 2.0, 3.0, 3.0, 3.0])).counts == (1, 2, 3)


def test_values_outside_the_reference_are_counted_apart() -> None:
    sketch = Numeric.of(np.arange(100.0)).empty_like().update(np.array([-1.0, 50.0, 99.0, 99.5, math.nan]))
    assert (sketch.counts[0], sketch.counts[-1], sketch.missing, sketch.n) == (1, 1, 1, 4)


def test_moments_survive_a_large_offset() -> None:
    values = np.random.default_rng(0).normal(1e9, 1.0, 10_000)
    sketch = reduce(Numeric.update, np.split(values, 100), Numeric.of(values).empty_like())
    assert sketch.std == pytest.approx(values.std(), rel=1e-6)


def test_values_that_the_reference_lacks_are_others() -> None:
    sketch = Categorical.of(["a", "b", "a", None]).update(["a", "z", None])
    assert (dict(sketch.counts), sketch.other, sketch.missing) == ({"a": 3, "b": 1}, 1, 2)


def test_only_the_most_frequent_values_are_told_apart() -> None:
    values = [f"v{i:03}" for i in range(60) for _ in range(60 - i)]
    sketch = Categorical.of(values)
    assert list(sketch.counts) == [f"v{i:03}" for i in range(sketches.TOP)]
    assert sketch.other == sum(60 - i for i in range(sketches.TOP, 60))


def test_sketches_of_different_references_do_not_merge() -> None:
    with pytest.raises(BadDefinition, match="edges must be the same"):
        Numeric.of(np.arange(3.0)).merge(Numeric.of(np.arange(4.0)))
    with pytest.raises(BadDefinition, match="values must be the same"):
        Categorical.of(["a"]).merge(Categorical.of(["b"]))


def test_every_column_has_a_sketch_by_its_name() -> None:
    x = np.array([[1.0, 10.0], [2.0, math.nan]])
    built = sketches.build(["a", "b"], x)
    assert (built["a"].n, built["b"].n, built["b"].missing) == (2, 1, 1)
    more = sketches.update(built, ["b", "a"], np.array([[30.0, 3.0]]))
    assert (more["a"].max, more["b"].max) == (3.0, 30.0)
    with pytest.raises(ValueError, match="zip"):
        sketches.build(["a"], x)
