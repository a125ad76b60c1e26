"""Who may publish and promote: Ed25519 keys, in a folder outside the state that they vouch for."""

import fcntl
import hashlib
import os
import re
import secrets
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from common.data.snapshots import sync
from common.errors import BadBundle, BadSetting, Damaged, NotFound

PRIVATE, TRUSTED, SECRET = "signing.pem", "trusted", "secret"
KEY_LIMIT = 4_096  # bytes; a PEM of Ed25519 has about 120
SECRET_SIZE = 32  # bytes
MENDED = "restore it, or make a new one: mlsys rotate-key"


@dataclass(frozen=True)
class Signature:
    """Written as one line, `ed25519 KEY VALUE`: 16 and 128 hex digits."""

    key: str
    value: bytes

    def __str__(self) -> str:
        return f"ed25519 {self.key} {self.value.hex()}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises BadBundle."""
        found = re.fullmatch(r"ed25519 ([0-9a-f]{16}) ([0-9a-f]{128})\n?", text)
        if not found:
            raise BadBundle(f"signature: must be ed25519, 16 and 128 hex digits, got {text[:40]!r}")
        return cls(found[1], bytes.fromhex(found[2]))


class Keys:
    """One private key signs, `signing.pem`; the public keys in `trusted/` are believed. Processes may share the folder.

    To distrust all that a key has signed, delete `trusted/<key id>.pem`. What is signed should say what it is, so that
    no signature serves for something else. Raises BadSetting for a folder or a private key that others may touch.
    """

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda line: None) -> None:
        """`say` is told when the first key is made, which happens when there is something to sign and no key at all."""
        if folder.exists() and not folder.is_dir():
            raise BadSetting(f"MLSYS_KEYS: must be a folder, got {folder}")
        self.folder, self._say = folder, say
        self._private, self._trusted, self._secret = folder / PRIVATE, folder / TRUSTED, folder / SECRET

    def check_outside(self, home: Path) -> None:
        """Whoever may write, copy or restore the state must not get the key with it; raises BadSetting."""
        folder, state = self.folder.resolve(), home.resolve()
        if folder.is_relative_to(state) or state.is_relative_to(folder):
            raise BadSetting(f"MLSYS_KEYS: must lie outside MLSYS_HOME and not around it, got {folder} and {state}")

    def sign(self, content: bytes) -> Signature:
        """Raises NotFound when the key is gone but others are trusted, Damaged when it is no key or another one."""
        try:
            private = self._read_private()
        except FileNotFoundError:
            private = self._first()
        key = _key_id(private.public_key())
        if not self._path(key).is_file():
            raise Damaged(f"{self._private}: its key {key} must be in {self._trusted}: damaged or distrusted; {MENDED}")
        return Signature(key, private.sign(content))

    def verify(self, content: bytes, signature: Signature) -> None:
        """Raises BadBundle unless a trusted key has signed exactly this."""
        path = self._path(signature.key)
        try:
            pem = self._read(path)
        except FileNotFoundError:
            raise BadBundle(f"signature: key {signature.key} is not trusted: there is no {path}") from None
        try:
            public = serialization.load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm):
            raise Damaged(f"{path}: must hold an Ed25519 public key as PEM; restore it") from None
        if not isinstance(public, Ed25519PublicKey) or _key_id(public) != signature.key:
            raise Damaged(f"{path}: must hold the Ed25519 public key that it is named by; restore it")
        try:
            public.verify(signature.value, content)
        except InvalidSignature:
            raise BadBundle(f"signature: is not one of key {signature.key} for this content") from None

    def rotate(self) -> str:
        """Make a new key that signs from now on, destroy the private one before it, and return the new key's id.

        What the old key has signed stays trusted, as its public key does.
        """
        with self._locked():
            old = None
            if self._private.exists():
                self._private.chmod(0o600)
                old = self._private.open("r+b")
            key = _key_id(self._make().public_key())
            if old is not None:
                with old:  # its name is gone already; where the file system writes in place, its content is, too
                    size = os.fstat(old.fileno()).st_size
                    old.write(bytes(size))
                    old.flush()
                    os.fsync(old.fileno())
            return key

    def secret(self, purpose: str) -> bytes:
        """32 bytes that this installation alone knows, other ones for every purpose; made when first asked for.

        Raises Damaged when the file they are derived from has not exactly 32 bytes.
        """
        try:
            root = self._read(self._secret)
        except FileNotFoundError:
            root = self._first_secret()
        if len(root) != SECRET_SIZE:
            raise Damaged(
                f"{self._secret}: must hold {SECRET_SIZE} bytes, got {len(root)}; restore it, or delete it: "
                "then a new one is made, and what was made with this one, such as API keys, is worth nothing"
            )
        return hashlib.blake2b(purpose.encode(), key=root, digest_size=SECRET_SIZE).digest()

    def _first_secret(self) -> bytes:
        with self._locked():
            if self._secret.exists():  # another process was faster
                return self._read(self._secret)
            root = secrets.token_bytes(SECRET_SIZE)
            _write(self._secret, root, 0o600)
        self._say(f"made the secret of this installation, {self._secret}: keep a copy of it, API keys depend on it")
        return root

    def _first(self) -> Ed25519PrivateKey:
        with self._locked():
            if self._private.exists():  # another process was faster
                return self._read_private()
            if any(self._trusted.glob("*.pem")):
                raise NotFound(f"{self._private}: is gone, but {self._trusted} holds keys; {MENDED}")
            private = self._make()
        self._say(f"made the first signing key, {_key_id(private.public_key())}, in {self.folder}: keep a copy of it")
        return private

    def _make(self) -> Ed25519PrivateKey:
        private = Ed25519PrivateKey.generate()
        pem = serialization.Encoding.PEM
        public = private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
        secret = private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        _write(self._path(_key_id(private.public_key())), public, 0o644)
        _write(self._private, secret, 0o600)  # last: a key that signs is always trusted
        return private

    def _read_private(self) -> Ed25519PrivateKey:
        pem = self._read(self._private)
        try:
            private = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm, InternalError):
            private = None
        if not isinstance(private, Ed25519PrivateKey):
            raise Damaged(f"{self._private}: must hold an Ed25519 private key as PKCS8 PEM; {MENDED}")
        return private

    def _read(self, path: Path) -> bytes:
        with path.open("rb") as file:
            for place in {path, path.parent, self.folder}:
                secret = place in (self._private, self._secret)
                mode = stat.S_IMODE(place.stat().st_mode)
                if mode & (0o077 if secret else 0o022):
                    rule = "read or write" if secret else "write"
                    raise BadSetting(f"{place}: nobody but its owner may {rule} it, its mode is {mode:04o}; chmod it")
            return file.read(KEY_LIMIT)

    def _path(self, key: str) -> Path:
        return self._trusted / f"{key}.pem"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time makes keys."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._trusted.mkdir(mode=0o700, exist_ok=True)
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _key_id(public: Ed25519PublicKey) -> str:
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()[:16]


def _write(path: Path, content: bytes, mode: int) -> None:
    """Whole or not at all, durable, and never readable by more than `mode` says."""
    temporary = path.with_name(f".{uuid.uuid4().hex}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)
