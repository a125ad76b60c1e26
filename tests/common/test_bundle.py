import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydantic import JsonValue

from common.errors import BadBundle
from common.registry import bundle

LINEAGE: dict[str, JsonValue] = {"snapshot": "ab12", "seed": 7}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "encoder").mkdir(parents=True)
    (folder / "trees.txt").write_text("tree\n")
    (folder / "settings.json").write_text("{}")
    np.save(folder / "encoder/weights.npy", np.arange(6.0))
    np.savez(folder / "tables.npz", a=np.arange(3), b=np.array(["x", "y"]))
    return folder


def test_a_sealed_folder_is_verified(folder: Path) -> None:
    digest = bundle.seal(folder, LINEAGE)
    manifest = bundle.verify(folder, digest)
    assert manifest == bundle.verify(folder)
    assert manifest.digest == digest == bundle.digest(folder)
    assert manifest.lineage == LINEAGE
    assert sorted(manifest.files) == ["encoder/weights.npy", "settings.json", "tables.npz", "trees.txt"]


def test_the_digest_is_that_of_paths_and_contents_alone(folder: Path, tmp_path: Path) -> None:
    digest = bundle.digest(folder)
    assert bundle.seal(folder, LINEAGE) == bundle.seal(folder, {}) == digest
    os.utime(folder / "trees.txt", (1, 1))
    os.rename(folder, tmp_path / "elsewhere")
    assert bundle.digest(tmp_path / "elsewhere") == digest
    os.rename(tmp_path / "elsewhere/trees.txt", tmp_path / "elsewhere/forest.txt")
    assert bundle.digest(tmp_path / "elsewhere") != digest


def swap(folder: Path) -> None:
    os.rename(folder / "trees.txt", folder / "moved.txt")
    (folder / "settings.json").rename(folder / "trees.txt")
    (folder / "moved.txt").rename(folder / "settings.json")


def link(folder: Path) -> None:
    (folder / "trees.txt").rename(folder.parent / "trees.txt")
    (folder / "trees.txt").symlink_to(folder.parent / "trees.txt")


def link_folder(folder: Path) -> None:
    (folder / "encoder").rename(folder.parent / "encoder")
    (folder / "encoder").symlink_to(folder.parent / "encoder")


def rewrite(**said: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        manifest = json.loads((folder / bundle.MANIFEST).read_text())
        (folder / bundle.MANIFEST).write_text(json.dumps({**manifest, **said}))

    return change


CHANGES: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: (f / "trees.txt").write_text("tree!"), r"trees\.txt: SHA-256 must be "),
    (lambda f: (f / "encoder/weights.npy").write_bytes(b""), r"encoder/weights\.npy: SHA-256 must be "),
    (lambda f: (f / "more.json").write_text("1"), r"more\.json: not listed in the manifest, must not exist"),
    (lambda f: (f / "encoder/manifest.json").write_text("{}"), r"encoder/manifest\.json: not listed"),
    (lambda f: (f / "trees.txt").unlink(), r"trees\.txt: listed in the manifest, must exist"),
    (lambda f: (f / "trees.txt").rename(f / "forest.txt"), r"forest\.txt: not listed in the manifest"),
    (swap, r"settings\.json: SHA-256 must be "),
    (link, r"trees\.txt: must be a plain file"),
    (link_folder, r"encoder: must be a plain file"),
    (lambda f: os.mkfifo(f / "pipe.txt"), r"pipe\.txt: must be a plain file"),
    (lambda f: (f / "code.pkl").write_bytes(b""), r"code\.pkl: suffix must be one of \.faiss"),
    (lambda f: (f / ".hidden.json").write_text("1"), r"'\.hidden\.json': a name must match"),
    (lambda f: (f / "a\nb.txt").write_text("1"), r"'a\\nb\.txt': a name must match"),
    (lambda f: (f / "manifest.json").unlink(), r"manifest\.json: must exist and be a plain file"),
    (lambda f: (f / "manifest.json").write_text("{"), r"manifest\.json: Manifest: invalid json"),
    (lambda f: (f / "manifest.json").write_text("[" * 100_000), r"manifest\.json: Manifest: invalid json"),
    (lambda f: (f / "manifest.json").write_bytes(b" " * (5 << 20)), r"manifest\.json: must have at most"),
    (rewrite(files={}), r"not listed in the manifest"),
    (rewrite(files={"../trees.txt": "0" * 64}), r"\.\./trees\.txt: listed in the manifest, must exist"),
    (rewrite(files=["trees.txt"]), r"manifest\.json: files: input should be"),
    (rewrite(run="os.system"), r"manifest\.json: run: extra inputs are not permitted"),
    (rewrite(digest="0" * 64), r"files: digest must be 0000"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_a_folder_that_was_changed_is_refused_with_file_and_rule(
    folder: Path, change: Callable[[Path], object], message: str
) -> None:
    bundle.seal(folder, LINEAGE)
    change(folder)
    with pytest.raises(BadBundle, match=message) as caught:
        bundle.verify(folder)
    assert "\n" not in str(caught.value)


def test_another_bundle_than_the_one_asked_for_is_refused(folder: Path) -> None:
    digest = bundle.seal(folder, LINEAGE)
    (folder / "trees.txt").write_text("other\n")
    bundle.seal(folder, LINEAGE)
    bundle.verify(folder)
    with pytest.raises(BadBundle, match=f"manifest.json: digest must be {digest}"):
        bundle.verify(folder, digest)


@pytest.mark.parametrize("name", ["objects.npy", "objects.npz"])
def test_pickled_arrays_are_refused_and_never_loaded(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = np.array([{"run": "me"}], dtype=object)
    if name.endswith("npy"):
        np.save(folder / name, objects, allow_pickle=True)
    else:
        np.savez(folder / name, fine=np.arange(3), objects=objects)
    with pytest.raises(BadBundle, match=f"{name}: must hold NumPy arrays without Python objects: dtype is object"):
        bundle.seal(folder, LINEAGE)
    assert not (folder / bundle.MANIFEST).exists()
    monkeypatch.setattr(bundle, "_check_arrays", lambda path: None)
    bundle.seal(folder, LINEAGE)  # as an attacker would
    monkeypatch.undo()
    with pytest.raises(BadBundle, match=f"{name}: must hold NumPy arrays without Python objects: dtype is object"):
        bundle.verify(folder)


@pytest.mark.parametrize("name", ["raw.npy", "raw.npz"])
@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"\x93NUMPY\x09\x00", b"PK\x03\x04"])
def test_what_is_no_array_is_refused(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(BadBundle, match=f"{name}: must hold NumPy arrays"):
        bundle.seal(folder, LINEAGE)


def test_nothing_is_parsed_before_it_is_verified(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle.seal(folder, LINEAGE)
    (folder / "tables.npz").write_bytes(b"an archive made to crash its reader")
    parsed: list[Path] = []
    monkeypatch.setattr(bundle, "_check_arrays", parsed.append)
    with pytest.raises(BadBundle, match="tables.npz: SHA-256 must be"):
        bundle.verify(folder)
    assert parsed == []


def test_a_folder_that_is_none_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    for path in (tmp_path / "link", tmp_path / "absent", folder / "trees.txt"):
        with pytest.raises(BadBundle, match=f"{path.name}: must be a folder"):
            bundle.digest(path)
