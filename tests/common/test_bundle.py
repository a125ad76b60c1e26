import io
import json
import os
import pickle
import re
import shutil
import socket
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from common.errors import BadBundle
from common.registry import bundle, formats
from common.registry.keys import Keys

LINEAGE: dict[str, JsonValue] = {"snapshot": "ab12", "seed": 7}
SYSTEM = "search"


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys")


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was parsed by `verify`: manifests and the content of files."""
    seen: list[object] = []
    parse, check = bundle.Manifest.parse.__func__, formats.check  # type: ignore[attr-defined]
    monkeypatch.setattr(bundle.Manifest, "parse", classmethod(lambda c, body: seen.append(body) or parse(c, body)))
    monkeypatch.setattr(formats, "check", lambda path, file: seen.append(path) or check(path, file))
    return seen


def safetensors(header: bytes = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}') -> bytes:
    return struct.pack("<Q", len(header)) + header + b"\0"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One file of each format."""
    folder = tmp_path / "model"
    (folder / "encoder").mkdir(parents=True)
    (folder / "trees.txt").write_text("tree\nversion=v4\n")
    (folder / "settings.json").write_text('\n {"price": "5 €"}')
    np.save(folder / "encoder/weights.npy", np.arange(6.0).reshape(2, 3))
    np.savez_compressed(folder / "tables.npz", a=np.arange(3), b=np.array(["x", "y"]), c=np.float64(1), d=np.empty(0))
    pq.write_table(pa.table({"a": [1, 2]}), folder / "rows.parquet")
    (folder / "encoder/tensors.safetensors").write_bytes(safetensors())
    (folder / "encoder/net.onnx").write_bytes(b"\x08\x08\x12\x07pytorch")
    (folder / "items.faiss").write_bytes(b"IHNf" + bytes(40))
    return folder


def test_a_sealed_folder_is_verified(folder: Path, keys: Keys) -> None:
    digest = bundle.seal(folder, SYSTEM, LINEAGE, keys)
    manifest = bundle.verify(folder, SYSTEM, keys, digest)
    assert manifest == bundle.verify(folder, SYSTEM, keys)
    assert manifest.digest == digest == bundle.digest(folder)
    assert manifest.lineage == LINEAGE
    assert manifest.system == SYSTEM
    assert {Path(name).suffix for name in manifest.files} == set(formats.FORMATS)


def test_the_digest_is_that_of_paths_and_contents_alone(folder: Path, keys: Keys, tmp_path: Path) -> None:
    digest = bundle.digest(folder)
    assert bundle.seal(folder, SYSTEM, LINEAGE, keys) == bundle.seal(folder, "other", {}, keys) == digest
    os.utime(folder / "trees.txt", (1, 1))
    os.rename(folder, tmp_path / "elsewhere")
    assert bundle.digest(tmp_path / "elsewhere") == digest
    os.rename(tmp_path / "elsewhere/trees.txt", tmp_path / "elsewhere/forest.txt")
    assert bundle.digest(tmp_path / "elsewhere") != digest


def swap(folder: Path) -> None:
    os.rename(folder / "trees.txt", folder / "moved.txt")
    (folder / "settings.json").rename(folder / "trees.txt")
    (folder / "moved.txt").rename(folder / "settings.json")


def link(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / name).rename(folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return change


def listen(folder: Path) -> None:
    at = os.getcwd()
    os.chdir(folder)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as door:
        door.bind("door.txt")
    os.chdir(at)


def replace(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def rewrite(**said: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        manifest = json.loads((folder / bundle.MANIFEST).read_text())
        (folder / bundle.MANIFEST).write_text(json.dumps({**manifest, **said}))

    return change


def forge(folder: Path) -> None:
    """As whoever has a key of his own would."""
    (folder / "trees.txt").write_text("tree\nmine\n")
    bundle.seal(folder, SYSTEM, LINEAGE, Keys(folder.parent / "others"))


def other_manifest(folder: Path) -> None:
    """A signature that is good, but of something else."""
    other = folder.parent / "another"
    other.mkdir()
    bundle.seal(other, SYSTEM, LINEAGE, Keys(folder.parent / "keys"))
    shutil.copy(other / bundle.SIGNATURE, folder)


def head_of_an_audit_trail(folder: Path) -> None:
    content = (folder / bundle.MANIFEST).read_bytes()
    (folder / bundle.SIGNATURE).write_text(f"{Keys(folder.parent / 'keys').sign(content)}\n")


def cut_signature(folder: Path) -> None:
    (folder / bundle.SIGNATURE).write_bytes((folder / bundle.SIGNATURE).read_bytes()[:-3])


UNSIGNED = r"manifest\.sig: signature: "
CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a changed file": (replace("trees.txt", b"tree!"), r"trees\.txt: SHA-256 must be "),
    "an empty file": (replace("encoder/weights.npy", b""), r"encoder/weights\.npy: SHA-256 must be "),
    "an added file": (replace("more.json", b"{}"), r"more\.json: not listed in the manifest, must not exist"),
    "an added manifest": (replace("encoder/manifest.json", b"{}"), r"encoder/manifest\.json: not listed"),
    "an added signature": (replace("encoder/manifest.sig", b""), r"encoder: manifest\.sig: suffix must be"),
    "a missing file": (lambda f: (f / "trees.txt").unlink(), r"trees\.txt: listed in the manifest, must exist"),
    "a renamed file": (lambda f: (f / "trees.txt").rename(f / "forest.txt"), r"forest\.txt: not listed"),
    "a moved file": (lambda f: (f / "trees.txt").rename(f / "encoder/trees.txt"), r"encoder/trees\.txt: not listed"),
    "a renamed folder": (lambda f: (f / "encoder").rename(f / "coder"), r"coder/net\.onnx: not listed"),
    "swapped files": (swap, r"settings\.json: SHA-256 must be "),
    "a link": (link("trees.txt"), r"trees\.txt: must be a plain file"),
    "a link to a folder": (link("encoder"), r"encoder: must be a plain file"),
    "a link to a manifest": (link("manifest.json"), r"manifest\.json: must be a plain file"),
    "a link to a signature": (link("manifest.sig"), r"manifest\.sig: must be a plain file"),
    "a link that leads nowhere": (lambda f: (f / "a.json").symlink_to("nowhere"), r"a\.json: must be a plain file"),
    "a link that climbs out": (lambda f: (f / "a.json").symlink_to("../../x"), r"a\.json: must be a plain file"),
    "a link in the folder's place": (lambda f: link(f.name)(f.parent), r"model: must be a folder"),
    "a pipe": (lambda f: os.mkfifo(f / "pipe.txt"), r"pipe\.txt: must be a plain file"),
    "a socket": (listen, r"door\.txt: must be a plain file"),
    "a suffix that may run code": (replace("code.pkl", b""), r"code\.pkl: suffix must be one of \.faiss"),
    "a suffix in capitals": (lambda f: (f / "trees.txt").rename(f / "trees.TXT"), r"trees\.TXT: suffix must be one of"),
    "no suffix": (lambda f: (f / "trees.txt").rename(f / "trees"), r"trees: suffix must be one of"),
    "a hidden file": (replace(".hidden.json", b"{}"), r"'\.hidden\.json': a name must match"),
    "a hidden folder": (lambda f: (f / ".git").mkdir(), r"'\.git': a name must match"),
    "a name in two lines": (replace("a\nb.txt", b"tree\n"), r"'a\\nb\.txt': a name must match"),
    "a name that looks like another": (replace("trеes.txt", b"tree\n"), r"a name must match"),
    "folders without end": (lambda f: (f / "/".join("d" * 50)).mkdir(parents=True), r"must lie at most 8 folders deep"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), r"manifest\.json: must exist"),
    "a folder as manifest": (lambda f: ((f / "manifest.json").unlink(), (f / "manifest.json").mkdir()), "plain file"),
    "a pipe as manifest": (lambda f: ((f / "manifest.json").unlink(), os.mkfifo(f / "manifest.json")), "plain file"),
    "a manifest too large": (replace("manifest.json", b" " * (5 << 20)), r"manifest\.json: must have at most"),
    "another manifest": (replace("manifest.json", b"{}"), UNSIGNED + "is not one of key"),
    "an empty manifest": (replace("manifest.json", b""), UNSIGNED + "is not one of key"),
    "a space more in the manifest": (lambda f: replace("manifest.json", (f / "manifest.json").read_bytes() + b" ")(f),
                                     UNSIGNED + "is not one of key"),
    "no signature": (lambda f: (f / "manifest.sig").unlink(), r"manifest\.sig: must exist"),
    "an empty signature": (replace("manifest.sig", b""), UNSIGNED + "must be ed25519"),
    "a signature cut short": (cut_signature, UNSIGNED + "must be ed25519"),
    "a signature too large": (replace("manifest.sig", b"e" * 300), r"manifest\.sig: must have at most 200 bytes"),
    "a signature of zeros": (replace("manifest.sig", b"ed25519 " + b"0" * 16 + b" " + b"0" * 128), "is not trusted"),
    "a signature of another manifest": (other_manifest, UNSIGNED + "is not one of key"),
    "a signature for another purpose": (head_of_an_audit_trail, UNSIGNED + "is not one of key"),
    "a key of somebody else": (forge, UNSIGNED + "key [0-9a-f]{16} is not trusted"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_folder_that_was_changed_is_refused_with_file_and_rule_before_a_file_is_parsed(
    folder: Path, keys: Keys, name: str, parsed: list[object]
) -> None:
    change, message = CHANGES[name]
    bundle.seal(folder, SYSTEM, LINEAGE, keys)
    signed = (folder / bundle.MANIFEST).read_bytes()
    change(folder)
    parsed.clear()
    with pytest.raises(BadBundle, match=message) as caught:
        bundle.verify(folder, SYSTEM, keys)
    assert "\n" not in str(caught.value)
    assert parsed in ([], [signed])  # nothing, or the manifest that was signed


SIGNED: list[tuple[Callable[[Path], object], str]] = [
    (replace("manifest.json", b"{"), r"manifest\.json: Manifest: invalid json"),
    (replace("manifest.json", b"[" * 100_000), r"manifest\.json: Manifest: invalid json"),
    (rewrite(files={}), r"not listed in the manifest"),
    (rewrite(files={"../trees.txt": "0" * 64}), r"\.\./trees\.txt: listed in the manifest, must exist"),
    (rewrite(files={"/etc/hostname": "0" * 64}), r"/etc/hostname: listed in the manifest, must exist"),
    (rewrite(files={"encoder/../trees.txt": "0" * 64}), r"encoder/\.\./trees\.txt: listed in the manifest, must exist"),
    (rewrite(files=["trees.txt"]), r"manifest\.json: files: input should be"),
    (rewrite(run="os.system"), r"manifest\.json: run: extra inputs are not permitted"),
    (rewrite(digest="0" * 64), r"files: digest must be 0000"),
    (rewrite(system="other"), r"manifest\.json: system: must be search, got other"),
]


@pytest.mark.parametrize(("change", "message"), SIGNED)
def test_a_signed_manifest_is_not_believed_what_is_not_so(
    folder: Path, keys: Keys, change: Callable[[Path], object], message: str, parsed: list[object]
) -> None:
    bundle.seal(folder, SYSTEM, LINEAGE, keys)
    change(folder)
    content = (folder / bundle.MANIFEST).read_bytes()
    (folder / bundle.SIGNATURE).write_text(str(keys.sign(bundle.SIGNED_AS + content)))
    parsed.clear()
    with pytest.raises(BadBundle, match=message) as caught:
        bundle.verify(folder, SYSTEM, keys)
    assert "\n" not in str(caught.value)
    assert parsed == [content]


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_in_any_file_is_refused(
    folder: Path, keys: Keys, parsed: list[object], data: st.DataObject
) -> None:
    bundle.seal(folder, SYSTEM, LINEAGE, keys)
    path = data.draw(st.sampled_from(sorted(path for path in folder.rglob("*") if path.is_file())))
    before = path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(before) - 1))
    signed = (folder / bundle.MANIFEST).read_bytes()
    parsed.clear()
    path.write_bytes(before[: bit // 8] + bytes([before[bit // 8] ^ 1 << bit % 8]) + before[bit // 8 + 1 :])
    with pytest.raises(BadBundle, match=path.name if path.suffix != ".json" else "manifest|settings"):
        bundle.verify(folder, SYSTEM, keys)
    assert parsed in ([], [signed])
    path.write_bytes(before)
    bundle.verify(folder, SYSTEM, keys)


def test_a_bundle_of_one_system_is_none_of_another(folder: Path, keys: Keys) -> None:
    digest = bundle.seal(folder, SYSTEM, LINEAGE, keys)
    with pytest.raises(BadBundle, match=r"manifest\.json: system: must be other, got search"):
        bundle.verify(folder, "other", keys, digest)


def test_another_bundle_than_the_one_asked_for_is_refused(folder: Path, keys: Keys) -> None:
    digest = bundle.seal(folder, SYSTEM, LINEAGE, keys)
    (folder / "trees.txt").write_text("tree\nother\n")
    bundle.seal(folder, SYSTEM, LINEAGE, keys)
    bundle.verify(folder, SYSTEM, keys)
    with pytest.raises(BadBundle, match=f"manifest.json: digest must be {digest}"):
        bundle.verify(folder, SYSTEM, keys, digest)


class Planted:
    """Its pickle runs code when it is loaded."""

    def __reduce__(self) -> tuple[object, ...]:
        return exec, ("raise SystemExit('code of a pickle ran')",)


def objects(protocol: int) -> bytes:
    """An array of objects, which NumPy stores as a pickle behind its own header."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    return file.getvalue() + pickle.dumps([Planted()], protocol)


def archive(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, content in members.items():
            made.writestr(name, content)
    return file.getvalue()


def encrypted() -> bytes:
    made = bytearray(archive(a=b"secret"))
    for at in (6, made.index(b"PK\x01\x02") + 8):  # the flags, at both places
        made[at] |= 1
    return bytes(made)


HOSTILE: dict[str, bytes] = {
    **{f"a pickle of protocol {n}": pickle.dumps(Planted(), n) for n in range(6)},
    **{f"a pickled number, protocol {n}": pickle.dumps(1, n) for n in range(6)},
    **{f"a pickled string, protocol {n}": pickle.dumps("tree\n{", n) for n in range(6)},
    **{f"an array of objects, protocol {n}": objects(n) for n in range(6)},
    "a pickle by hand": b"cos\nsystem\n(S'true'\ntR.",
    "a torch file": archive(**{"archive/data.pkl": pickle.dumps(Planted()), "archive/version": b"3\n"}),
    "an archive of objects": archive(**{"a.npy": objects(4)}),
    "an archive with a pickle beside an array": archive(
        **{"a.npy": b"\x93NUMPY\x01\x00" + struct.pack("<H", 57)
           + b"{'descr': '<f8', 'fortran_order': False, 'shape': (0,), }\n"[:57], "b.npy": pickle.dumps(Planted())}
    ),
    "a record with an object": b"\x93NUMPY\x01\x00" + struct.pack("<H", 77)
    + b"{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,), }".ljust(76) + b"\n",
    "an encrypted archive": encrypted(),
    "an archive cut short": archive(**{"a.npy": bytes(100)})[:60],
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "a script": b"#!/bin/sh\ntrue\n",
    "a program": b"\x7fELF" + bytes(100),
    "nothing": b"",
    "zeros": bytes(100),
    "Latin-1": b"tree\n\xe9",
    "JSON with a zero byte": b'{"a": "\0"}',
    "Latin-1 in JSON": b'{"a": "\xe9"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a magic and no more": b"\x93NUMPY\x01\x00",
    "a later format": b"\x93NUMPY\x09\x00" + bytes(100),
    "brackets without end": b"\x93NUMPY\x01\x00" + struct.pack("<H", 60_000) + b"(" * 60_000,
    "a header that ends nowhere": b"\x93NUMPY\x01\x00" + struct.pack("<H", 60) + b"{'descr': '".ljust(60),
    "an archive's head": b"PK\x03\x04",
    "half a parquet file": b"PAR1" + bytes(100),
    "the shortest that begins and ends as parquet": b"PAR1",
    "an encrypted parquet file": b"PARE" + bytes(100) + b"PARE",
    "a header longer than its file": struct.pack("<Q", 1000) + b"{}",
    "a header of safetensors that is none": struct.pack("<Q", 4) + b"null",
    "protobuf of something else": b"\x0a\x03abc",
}  # fmt: skip


@pytest.mark.parametrize("suffix", sorted(formats.FORMATS))
@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_not_what_its_name_says_is_refused(
    tmp_path: Path, keys: Keys, suffix: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / f"model{suffix}").write_bytes(HOSTILE[what])
    refused = rf"model/model{re.escape(suffix)}: must hold "
    with pytest.raises(BadBundle, match=refused):
        bundle.seal(folder, SYSTEM, LINEAGE, keys)
    assert not (folder / bundle.MANIFEST).exists()
    with monkeypatch.context() as patch:
        patch.setattr(formats, "check", lambda *_: None)
        bundle.seal(folder, SYSTEM, LINEAGE, keys)  # by somebody who has the key, but no good intentions
    with pytest.raises(BadBundle, match=refused):
        bundle.verify(folder, SYSTEM, keys)


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_file_holds_it_fits_or_is_refused(folder: Path, data: st.DataObject) -> None:
    """No content brings another error than the one that says so."""
    path = data.draw(st.sampled_from(sorted(path for path in folder.rglob("*") if path.is_file())))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    with suppress(BadBundle):
        formats.check(path, io.BytesIO(bytes(content[:cut] if data.draw(st.booleans()) else content)))


@pytest.mark.parametrize(
    "array",
    [np.arange(3), np.array(5.0), np.ones((2, 3, 4), np.float32), np.array(["a", "bc"]), np.array([b"x"]),
     np.array([True]), np.array([1j]), np.array(["2024-01-01"], "M8[us]"), np.array([1], "m8[s]"),
     np.asfortranarray(np.ones((2, 2))), np.arange(3, dtype=">i4"), np.empty((0, 7), np.uint8)],
    ids=lambda array: f"{array.dtype.str}{array.shape}",
)  # fmt: skip
def test_arrays_of_numbers_times_and_text_are_taken(folder: Path, keys: Keys, array: np.ndarray) -> None:  # type: ignore[type-arg]
    np.save(folder / "one.npy", array)
    np.savez(folder / "some.npz", array, named=array)
    bundle.seal(folder, SYSTEM, LINEAGE, keys)
    assert {"one.npy", "some.npz"} <= set(bundle.verify(folder, SYSTEM, keys).files)


def test_a_key_that_is_no_longer_trusted_vouches_for_no_bundle(folder: Path, keys: Keys) -> None:
    bundle.seal(folder, SYSTEM, LINEAGE, keys)
    old = keys.sign(b"").key
    keys.rotate()
    bundle.verify(folder, SYSTEM, keys)
    (keys.folder / f"trusted/{old}.pem").unlink()
    with pytest.raises(BadBundle, match=rf"manifest\.sig: signature: key {old} is not trusted"):
        bundle.verify(folder, SYSTEM, keys)


def test_a_folder_that_is_none_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    for path in (tmp_path / "link", tmp_path / "absent", folder / "trees.txt"):
        with pytest.raises(BadBundle, match=f"{path.name}: must be a folder"):
            bundle.digest(path)
