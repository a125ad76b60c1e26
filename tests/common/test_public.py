import hashlib
from pathlib import Path

import pytest

from common.data.public import Dataset, find
from common.errors import BadBundle, NotFound

DIGITS = Dataset(
    name="Digits",
    folder="vision",
    files={"a.txt": hashlib.sha256(b"a").hexdigest(), "deep/b.txt": hashlib.sha256(b"b").hexdigest()},
    how_to_get="https://example.org/digits: unpack digits.zip",
)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "vision/deep").mkdir(parents=True)
    (tmp_path / "vision/a.txt").write_bytes(b"a")
    (tmp_path / "vision/deep/b.txt").write_bytes(b"b")
    return tmp_path


def test_the_folder_of_the_published_files_is_found(data_dir: Path) -> None:
    assert find(DIGITS, data_dir) == data_dir / "vision"


def test_without_a_data_folder_it_says_which_variable_to_set_and_where_the_files_are() -> None:
    with pytest.raises(NotFound, match=r"Digits: set MLSYS_DATA_DIR .* https://example.org/digits"):
        find(DIGITS, None)


def test_an_absent_file_is_named(data_dir: Path) -> None:
    (data_dir / "vision/deep/b.txt").unlink()
    with pytest.raises(NotFound, match=r"Digits: no file .*vision/deep/b.txt .* https://example.org/digits"):
        find(DIGITS, data_dir)


def test_a_file_that_is_not_the_published_one_is_named(data_dir: Path) -> None:
    (data_dir / "vision/a.txt").write_bytes(b"b")
    with pytest.raises(BadBundle, match=r"vision/a.txt: SHA-256 must be ca97.*, got 3e23"):
        find(DIGITS, data_dir)
