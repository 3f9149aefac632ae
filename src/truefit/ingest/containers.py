"""What a file is by its first bytes: a CSV as it is, one in a container that is opened here, or what is no CSV at all."""

import lzma
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa

from truefit.core.errors import TableError

START_BYTES = 512  # by which a file is known
MOST_NAMES = 10  # of a zip's members, that an error shows
# What the containers' readers raise for damaged data.
DAMAGED = (OSError, EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile)

_ENCRYPTED = 1  # a bit of a zip member's flags
_CONTAINERS = {
    "gzip": rb"\x1f\x8b",
    "zstd": rb"\x28\xb5\x2f\xfd",
    "bz2": rb"BZh[1-9](1AY&SY|\x17rE8P\x90)",
    "xz": rb"\xfd7zXZ\x00",
    "zip": rb"PK(\x03\x04|\x05\x06)",
}
_PARQUET = rb"PAR1\x15"
_NO_CSV = {
    "a Parquet file": _PARQUET,
    "an Excel workbook": rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    "a web page (HTML)": rb"(\xef\xbb\xbf)?\s*(?i:<!doctype html|<html)",
}


def is_parquet(path: Path) -> bool:
    """Return whether a file begins as Parquet does; one that is no regular file, or cannot be read, does not."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return re.match(_PARQUET, file.read(START_BYTES)) is not None
    except OSError:
        return False


def container_of(path: Path, start: bytes) -> str | None:
    """Return the container that a file beginning so is; raises TableError for what is no CSV."""
    for name, magic in _NO_CSV.items():
        if re.match(magic, start):
            raise _no_csv(path, name)
    return next((name for name, magic in _CONTAINERS.items() if re.match(magic, start)), None)


def opened(path: Path, file: Any, container: str) -> Any:
    """Return the content of a file in a container as a file; a zip must be one that can be sought in.

    Raises TableError for a zip that does not hold one file alone, and one of `DAMAGED`, here or later, for damaged data.
    """
    if container == "zip":
        return _only_member(path, zipfile.ZipFile(file))
    return lzma.LZMAFile(file) if container == "xz" else pa.CompressedInputStream(pa.PythonFile(file, "r"), container)


def _only_member(path: Path, archive: zipfile.ZipFile) -> Any:
    names = [member.filename for member in archive.infolist() if not member.is_dir()]
    if "xl/workbook.xml" in names:
        raise _no_csv(path, "an Excel workbook")
    if len(names) != 1:
        listed = f" ({', '.join(map(repr, names[:MOST_NAMES]))}{', …' * (len(names) > MOST_NAMES)})" if names else ""
        raise TableError(f"{path}: found a zip of {len(names)} files{listed}, allowed: a zip of one, or one CSV out of it")
    if archive.getinfo(names[0]).flag_bits & _ENCRYPTED:
        raise TableError(f"{path}: found a zip with a password, allowed: a zip without one, or the CSV without the zip")
    try:
        return archive.open(names[0])
    except NotImplementedError as error:
        raise TableError(f"{path}: found a zip that cannot be read ({error}), allowed: the CSV without the zip") from None


def _no_csv(path: Path, name: str) -> TableError:
    return TableError(f"{path}: found {name}, allowed: a CSV, to which it has to be converted")
