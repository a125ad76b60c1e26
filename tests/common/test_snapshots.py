from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.snapshots import Snapshots
from common.errors import BadBundle, NotFound

TABLE = pa.table({"card": ["a", "b", None], "amount": [1.5, float("nan"), None], "at": [1, 2, 2**62]})


@pytest.fixture
def snapshots(tmp_path: Path) -> Snapshots:
    return Snapshots(tmp_path / "home" / "snapshots")


def test_a_published_table_is_read_back(snapshots: Snapshots) -> None:
    digest = snapshots.publish(TABLE)
    assert repr(snapshots.read(digest).to_pydict()) == repr(TABLE.to_pydict())
    assert snapshots.read(digest, ["at"]) == TABLE.select(["at"])


def test_publishing_leaves_one_file_and_changes_no_byte_when_repeated(snapshots: Snapshots) -> None:
    digest = snapshots.publish(TABLE)
    content = snapshots.path(digest).read_bytes()
    assert snapshots.publish(TABLE) == digest
    assert list(snapshots.root.iterdir()) == [snapshots.path(digest)]
    assert snapshots.path(digest).read_bytes() == content


def test_another_table_has_another_digest(snapshots: Snapshots) -> None:
    assert snapshots.publish(TABLE) != snapshots.publish(TABLE.slice(1))


@settings(deadline=None)  # it waits for the disk
@given(st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]))), st.data())
def test_how_a_table_is_cut_into_chunks_is_no_part_of_it(
    tmp_path_factory: pytest.TempPathFactory, values: list[str | None], data: st.DataObject
) -> None:
    snapshots = Snapshots(tmp_path_factory.mktemp("snapshots"))
    whole = pa.table({"value": pa.array(values, pa.string())})
    cut = data.draw(st.integers(0, len(values)))
    pieces = pa.concat_tables([whole.slice(0, cut), whole.slice(cut)])
    padded = pa.table({"value": pa.array(["x", *values], pa.string())}).slice(1)
    assert snapshots.publish(whole) == snapshots.publish(pieces) == snapshots.publish(padded)


def test_a_changed_byte_is_found_before_anything_is_parsed(snapshots: Snapshots) -> None:
    digest = snapshots.publish(TABLE)
    content = bytearray(snapshots.path(digest).read_bytes())
    content[20] ^= 1
    snapshots.path(digest).write_bytes(content)
    with pytest.raises(BadBundle, match=f"SHA-256 must be {digest}, got "):
        snapshots.read(digest)
    snapshots.path(digest).write_bytes(b"no Parquet at all")
    with pytest.raises(BadBundle, match=f"SHA-256 must be {digest}, got "):
        snapshots.read(digest)


@pytest.mark.parametrize("digest", ["0" * 64, "../../etc/passwd", "", "A" * 64])
def test_what_was_never_published_is_not_found(snapshots: Snapshots, digest: str) -> None:
    snapshots.publish(TABLE)
    with pytest.raises(NotFound, match="snapshot: "):
        snapshots.read(digest)


def test_a_digest_leads_to_no_file_outside(snapshots: Snapshots) -> None:
    digest = snapshots.publish(TABLE)
    snapshots.path(digest).rename(snapshots.root.parent / "secret.parquet")
    with pytest.raises(NotFound, match="a digest has 64 hex digits, got '../secret'"):
        snapshots.path("../secret")


def test_a_table_that_cannot_be_written_leaves_nothing(snapshots: Snapshots) -> None:
    with pytest.raises(pa.ArrowException):
        snapshots.publish(pa.table({"x": pa.array([None, None], pa.month_day_nano_interval())}))
    assert list(snapshots.root.iterdir()) == []


def test_concurrent_publishers_of_one_table_agree(snapshots: Snapshots) -> None:
    with ThreadPoolExecutor(8) as pool:
        digests = set(pool.map(lambda _: snapshots.publish(TABLE), range(32)))
    (digest,) = digests
    assert list(snapshots.root.iterdir()) == [snapshots.path(digest)]
    assert snapshots.read(digest).num_rows == 3
