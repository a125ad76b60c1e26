"""What a file of a bundle may be: formats that run no code when they are loaded, told by what is in them."""

import codecs
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, BinaryIO

from common.errors import BadBundle

CHUNK = 1 << 20  # bytes
SAFETENSORS_LIMIT = 100_000_000  # bytes of its header, by its specification
ARRAY = re.compile(  # what NumPy writes for numbers, times and text; a record may hide an object, so there are none
    rb"\{'descr': '([<>|=])([biufcmMSU])(\d+(?:\[\w+\])?)', 'fortran_order': (?:True|False), "
    rb"'shape': \((?:\d+,|\d+(?:, \d+)+)?\), \} *\n"
)


def check(path: Path, file: BinaryIO) -> None:
    """A name is a claim: an allowed suffix may hide a pickle, which runs code. Raises BadBundle."""
    what, fits = FORMATS[path.suffix]
    try:
        fits(file)
    except (ValueError, EOFError, OSError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile) as error:
        raise BadBundle(f"{path}: must hold {what}: {error}") from None


def _begins(file: IO[bytes], pattern: bytes, size: int) -> None:
    head = file.read(size)
    if not re.match(pattern, head, re.DOTALL):
        raise ValueError(f"it begins with {head[:12]!r}")


def _is_text(file: BinaryIO, pattern: bytes) -> None:
    _begins(file, pattern, CHUNK)
    file.seek(0)
    decoder = codecs.getincrementaldecoder("utf-8")()
    while chunk := file.read(CHUNK):
        if "\0" in decoder.decode(chunk):
            raise ValueError("it has a zero byte")
    decoder.decode(b"", final=True)


def _is_array(file: IO[bytes]) -> None:
    magic = file.read(8)
    if magic not in (b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00"):
        raise ValueError(f"it begins with {magic!r}")
    length = file.read(2 if magic[6] == 1 else 4)
    header = file.read(min(int.from_bytes(length, "little"), CHUNK))
    if not ARRAY.fullmatch(header):
        raise ValueError(f"a header must be that of plain numbers, times or text, got {header[:60]!r}")


def _is_archive(file: BinaryIO) -> None:
    _begins(file, rb"PK\x03\x04|PK\x05\x06", 4)
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{member.filename[:60]!r} must be stored or deflated")
            with archive.open(member) as part:
                _is_array(part)


def _is_parquet(file: BinaryIO) -> None:
    _begins(file, rb"PAR1", 4)
    size = file.seek(0, 2)
    file.seek(max(size - 4, 4))
    if file.read() != b"PAR1":
        raise ValueError("it must end with PAR1")


def _is_safetensors(file: BinaryIO) -> None:
    length, brace = int.from_bytes(file.read(8), "little"), file.read(1)
    rest = file.seek(0, 2) - 8
    if brace != b"{" or not 2 <= length <= min(rest, SAFETENSORS_LIMIT):
        raise ValueError(f"its header must be JSON of 2 to {max(rest, 2)} bytes, got {length} and {brace!r}")


FORMATS: Mapping[str, tuple[str, Callable[[BinaryIO], None]]] = {
    ".txt": ("LightGBM text in UTF-8", lambda file: _is_text(file, rb"tree\r?\n")),
    ".json": ("JSON in UTF-8", lambda file: _is_text(file, rb"[ \t\r\n]*[{\[]")),
    ".npy": ("a NumPy array without Python objects", _is_array),
    ".npz": ("NumPy arrays without Python objects", _is_archive),
    ".parquet": ("Parquet", _is_parquet),
    ".safetensors": ("safetensors", _is_safetensors),
    # protobuf: field 1, ir_version, a small number; then another field of ModelProto
    ".onnx": ("ONNX", lambda file: _begins(file, rb"\x08[\x01-\x7f][\x12\x1a\x22\x28\x32\x3a\x42\x72\xa2\xca\xd2]", 3)),
    ".faiss": ("a FAISS index", lambda file: _begins(file, rb"I[A-Za-z][A-Za-z0-9]{2}", 4)),  # its four-letter code
}
