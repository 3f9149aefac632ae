"""Writing a split's array: to one file, or to so many parts that none is too large."""

import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from truefit.core.files import atomic_path, naming
from truefit.data import table
from truefit.data.table import Dtype, Split, divided


class ArrayWriter:
    """Writes an array [rows, columns] to a .npy file chunk by chunk."""

    def __init__(self, path: Path, rows: int, columns: int, dtype: Dtype) -> None:
        header = io.BytesIO()
        described = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (rows, columns)}
        np.lib.format.write_array_header_1_0(header, described)
        self._digest = hashlib.sha256()
        self._path = path
        self._file = path.open("wb")
        self._write(header.getvalue())

    def write(self, chunk: NDArray[Any]) -> None:
        """Append rows [C, columns] of the array's own dtype."""
        self._write(np.ascontiguousarray(chunk).reshape(-1).data)

    @property
    def sha256(self) -> str:
        """The digest of what has been written."""
        return self._digest.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the file, which then has all that was written."""
        with naming(self._path):
            self._file.close()

    def _write(self, content: bytes | memoryview) -> None:
        with naming(self._path):
            self._file.write(content)
        self._digest.update(content)


class SplitWriter:
    """Writes a split's rows to its files, one after another, which are those of `files` as soon as that ends well."""

    def __init__(self, files: ExitStack, folder: Path, split: Split, rows: int, columns: int, dtype: Dtype) -> None:
        self._files, self._folder, self._columns, self._dtype = files, folder, columns, dtype
        most = max(1, table.PART_BYTES // (columns * np.dtype(dtype).itemsize))
        parts = divided(split, rows, -(-rows // most))
        self.names = [name for name, _ in parts]
        self._next = iter(parts)
        self._left = 0  # rows that the file which was begun last has yet to get
        self._writers: list[ArrayWriter] = []
        self._begin()

    def write(self, chunk: NDArray[Any]) -> None:
        """Append rows [C, columns] of the array's own dtype."""
        while len(chunk):
            if not self._left:
                self._writers[-1].close()
                self._begin()
            self._writers[-1].write(chunk[: self._left])
            chunk, self._left = chunk[self._left :], max(0, self._left - len(chunk))

    @property
    def sha256(self) -> str | list[str]:
        """The digest of what has been written, or those of the parts where there are several."""
        digests = [writer.sha256 for writer in self._writers]
        return digests[0] if len(self.names) == 1 else digests

    def _begin(self) -> None:
        name, self._left = next(self._next)
        path = self._files.enter_context(atomic_path(self._folder / name))
        self._writers.append(self._files.enter_context(ArrayWriter(path, self._left, self._columns, self._dtype)))


@contextmanager
def split_writer(folder: Path, split: Split, rows: int, columns: int, dtype: Dtype) -> Iterator[SplitWriter]:
    """Give what writes a split of so many rows; when the block ends well, its files are there, and no others of the split."""
    with ExitStack() as files:
        writer = SplitWriter(files, folder, split, rows, columns, dtype)
        yield writer
    for path in folder.iterdir():
        if re.fullmatch(rf"{split}(-\d{{5,}})?\.npy", path.name) and path.name not in writer.names and path.is_file():
            path.unlink()
