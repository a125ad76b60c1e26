import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import BadBundle, BadSetting, Damaged, NotFound
from common.registry.keys import Keys, Signature


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def keys(folder: Path) -> Keys:
    return Keys(folder)


def test_what_was_signed_is_verified_and_nothing_else_is(keys: Keys) -> None:
    signature = keys.sign(b"this")
    keys.verify(b"this", signature)
    with pytest.raises(BadBundle, match=f"signature: is not one of key {signature.key} for this content"):
        keys.verify(b"that", signature)


def test_a_signature_is_one_line_and_read_back(keys: Keys) -> None:
    signature = keys.sign(b"this")
    assert Signature.parse(f"{signature}\n") == signature
    text = str(signature)
    for bad in ("", text[:-2], text + "00", text.upper(), text.replace("ed25519", "none"), text.replace(" ", "\n", 1)):
        with pytest.raises(BadBundle, match="signature: must be ed25519, 16 and 128 hex digits"):
            Signature.parse(bad)


def test_the_first_key_is_made_when_something_is_signed_and_said_in_one_line(folder: Path) -> None:
    said: list[str] = []
    keys = Keys(folder, said.append)
    with pytest.raises(BadBundle, match="key 0000000000000000 is not trusted"):
        keys.verify(b"", Signature("0" * 16, bytes(64)))
    assert not folder.exists()
    key = keys.sign(b"").key
    assert keys.sign(b"").key == key
    assert said == [f"made the first signing key, {key}, in {folder}: keep a copy of it"]


def test_only_the_owner_may_read_the_private_key(keys: Keys, folder: Path) -> None:
    keys.sign(b"")
    assert (folder / "signing.pem").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    for place, mode in (("signing.pem", 0o640), ("signing.pem", 0o604), (".", 0o770), (".", 0o702)):
        before = (folder / place).stat().st_mode
        (folder / place).chmod(mode)
        with pytest.raises(BadSetting, match=f"nobody but its owner may .* its mode is {mode:04o}"):
            keys.sign(b"")
        (folder / place).chmod(before)
    keys.sign(b"")


def test_nobody_else_may_decide_whom_to_trust(keys: Keys, folder: Path) -> None:
    signature = keys.sign(b"")
    for place, mode in ((folder / "trusted", 0o777), (folder / f"trusted/{signature.key}.pem", 0o666)):
        before = place.stat().st_mode
        place.chmod(mode)
        with pytest.raises(BadSetting, match="nobody but its owner may write it"):
            keys.verify(b"", signature)
        place.chmod(before)
    keys.verify(b"", signature)


def test_keys_lie_outside_the_state_also_through_links(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(home / "inner")
    Keys(tmp_path / "keys").check_outside(home)
    Keys(tmp_path / "home-keys").check_outside(home)
    for folder in (home, home / "keys", tmp_path, tmp_path / "link/keys", tmp_path / "keys/../home/keys"):
        with pytest.raises(BadSetting, match="MLSYS_KEYS: must lie outside MLSYS_HOME"):
            Keys(folder).check_outside(home)


def test_threads_that_make_the_first_key_at_once_end_with_one(folder: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        signatures = list(pool.map(lambda _: Keys(folder).sign(b"x"), range(32)))
    assert len({signature.key for signature in signatures}) == 1
    assert [path.stem for path in (folder / "trusted").iterdir()] == [signatures[0].key]


def test_processes_that_make_the_first_key_at_once_end_with_one(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from common.registry.keys import Keys; sys.stdin.read(1);"
        "print(Keys(Path(sys.argv[1])).sign(b'x').key)"
    )
    command = [sys.executable, "-c", code, str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, **pipes) for _ in range(4)]  # type: ignore[call-overload]
    for process in running:
        process.stdin.write("x")
        process.stdin.flush()
    found = {process.communicate(timeout=60)[0] for process in running}
    assert found == {f"{path.stem}\n" for path in (folder / "trusted").iterdir()}
    assert len(found) == 1


def test_a_private_key_that_is_gone_is_not_replaced_in_silence(keys: Keys, folder: Path) -> None:
    signature = keys.sign(b"")
    (folder / "signing.pem").unlink()
    with pytest.raises(NotFound, match=r"signing\.pem: is gone, .*; restore it, or make a new one: mlsys rotate-key"):
        keys.sign(b"")
    keys.verify(b"", signature)
    assert keys.rotate() == keys.sign(b"").key != signature.key


def test_after_a_rotation_the_new_key_signs_and_the_old_one_is_still_believed(keys: Keys, folder: Path) -> None:
    old = keys.sign(b"this")
    secret = (folder / "signing.pem").read_bytes()
    with (folder / "signing.pem").open("rb") as held:
        new = keys.rotate()
        assert held.read() == bytes(len(secret))
    assert new != old.key
    assert keys.sign(b"this").key == new
    keys.verify(b"this", old)
    assert sorted(path.stem for path in (folder / "trusted").iterdir()) == sorted((old.key, new))
    assert all(secret not in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_key_that_is_no_longer_trusted_vouches_for_nothing(keys: Keys, folder: Path) -> None:
    old = keys.sign(b"this")
    keys.rotate()
    (folder / f"trusted/{old.key}.pem").unlink()
    with pytest.raises(BadBundle, match=f"signature: key {old.key} is not trusted"):
        keys.verify(b"this", old)
    (folder / f"trusted/{keys.sign(b'').key}.pem").unlink()
    with pytest.raises(Damaged, match=r"signing\.pem: its key .* damaged or distrusted"):
        keys.sign(b"this")


def rsa(_: bytes) -> bytes:
    return generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


DAMAGE: list[Callable[[bytes], bytes]] = [
    lambda _: b"",
    lambda pem: pem[:60],
    lambda pem: bytes(len(pem)),
    lambda _: b"\xff" * 10_000,
    rsa,
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_key_file_is_one_clear_line(keys: Keys, folder: Path, damage: Callable[[bytes], bytes]) -> None:
    signature = keys.sign(b"")
    for path, use in (
        (folder / "signing.pem", lambda: keys.sign(b"")),
        (folder / f"trusted/{signature.key}.pem", lambda: keys.verify(b"", signature)),
    ):
        before = path.read_bytes()
        path.write_bytes(damage(before))
        with pytest.raises(Damaged, match=f"{path.name}: must hold .*restore it") as caught:
            use()
        assert "\n" not in str(caught.value)
        path.write_bytes(before)


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_in_a_key_file_never_makes_another_key(keys: Keys, folder: Path, data: st.DataObject) -> None:
    """A private key has no checksum: that of a flipped one is told by its public key, which nobody trusts."""
    signature = keys.sign(b"")
    name = data.draw(st.sampled_from(["signing.pem", f"trusted/{signature.key}.pem"]))
    before = (folder / name).read_bytes()
    bit = data.draw(st.integers(0, 8 * len(before) - 1))
    (folder / name).write_bytes(before[: bit // 8] + bytes([before[bit // 8] ^ 1 << bit % 8]) + before[bit // 8 + 1 :])
    try:
        made = keys.sign(b"")
        keys.verify(b"", signature)
        assert made == signature  # a bit that says nothing, as that of a line's end
    except Damaged:
        pass
    finally:
        (folder / name).write_bytes(before)


def test_a_key_under_another_keys_name_is_refused(keys: Keys, folder: Path, tmp_path: Path) -> None:
    signature = keys.sign(b"")
    forged = Keys(tmp_path / "others").sign(b"this")
    os.replace(tmp_path / f"others/trusted/{forged.key}.pem", folder / f"trusted/{signature.key}.pem")
    with pytest.raises(Damaged, match="must hold the Ed25519 public key that it is named by"):
        keys.verify(b"this", Signature(signature.key, forged.value))


def test_each_purpose_has_a_secret_of_its_own_which_stays(keys: Keys, folder: Path) -> None:
    found = [keys.secret(purpose) for purpose in ("api keys", "api key", "", "unit")]
    assert [len(secret) for secret in found] == [32] * 4
    assert len({*found, (folder / "secret").read_bytes()}) == 5
    assert Keys(folder).secret("api keys") == found[0]
    keys.rotate()
    assert keys.secret("api keys") == found[0]


def test_another_installation_has_another_secret(keys: Keys, tmp_path: Path) -> None:
    assert keys.secret("api keys") != Keys(tmp_path / "others").secret("api keys")


def test_the_secret_is_made_when_first_asked_for_and_said_in_one_line(folder: Path) -> None:
    said: list[str] = []
    keys = Keys(folder, said.append)
    keys.sign(b"")
    said.clear()
    assert not (folder / "secret").exists()
    assert keys.secret("a") == keys.secret("a") != keys.secret("b")
    assert said == [f"made the secret of this installation, {folder}/secret: keep a copy of it, API keys depend on it"]
    assert sorted(path.name for path in folder.iterdir()) == ["secret", "signing.pem", "trusted"]


def test_only_the_owner_may_read_the_secret(keys: Keys, folder: Path) -> None:
    secret = keys.secret("a")
    assert (folder / "secret").stat().st_mode & 0o777 == 0o600
    for place, mode in (("secret", 0o640), ("secret", 0o604), ("secret", 0o620), (".", 0o770), (".", 0o702)):
        before = (folder / place).stat().st_mode
        (folder / place).chmod(mode)
        with pytest.raises(BadSetting, match=f"nobody but its owner may .* its mode is {mode:04o}"):
            keys.secret("a")
        (folder / place).chmod(before)
    assert keys.secret("a") == secret


@pytest.mark.parametrize("size", [0, 31, 33, 10_000])
def test_a_secret_of_another_length_is_damaged_and_not_replaced(keys: Keys, folder: Path, size: int) -> None:
    keys.secret("a")
    (folder / "secret").write_bytes(b"s" * size)
    with pytest.raises(Damaged, match=r"secret: must hold 32 bytes, got \d+; restore it, or delete it") as caught:
        keys.secret("a")
    assert "sss" not in str(caught.value)
    assert (folder / "secret").read_bytes() == b"s" * size


def test_processes_that_make_the_secret_at_once_end_with_one(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from common.registry.keys import Keys; sys.stdin.read(1);"
        "print(Keys(Path(sys.argv[1])).secret('x').hex())"
    )
    command = [sys.executable, "-c", code, str(folder)]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in running:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    assert {process.communicate(timeout=60)[0] for process in running} == {f"{Keys(folder).secret('x').hex()}\n"}


def test_threads_that_make_the_secret_at_once_end_with_one(folder: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: Keys(folder).secret("x"), range(32)))) == 1
