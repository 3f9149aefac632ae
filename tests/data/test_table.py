import gc
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_data import numbered_csv, prepare

from truefit.core.errors import TableError
from truefit.core.files import sha256
from truefit.data.columns import KINDS
from truefit.data.table import SplitFile, Table, read_table
from truefit.data.writing import ArrayWriter

FOLDER = Path("prepared")
X1 = {"kind": "number", "name": "x1"}
ANEW = "`dvc repro --force prepare` writes it anew"


@pytest.fixture(autouse=True)
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    """A table of 16 training rows, prepared in the current folder: features x1 and x2, target y."""
    monkeypatch.chdir(tmp_path)
    return prepare(Path(), numbered_csv(20, features=2))


def description() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / "table.json").read_text())
    return content


def reading_error() -> str:
    with pytest.raises(TableError) as caught:
        read_table(FOLDER)
    return str(caught.value)


def opening_error(table: Table) -> str:
    with pytest.raises(TableError) as caught:
        SplitFile(FOLDER, "train", table)
    return str(caught.value)


# --- table.json


def test_what_was_written_is_read(table: Table) -> None:
    assert read_table(FOLDER) == table


def test_names_are_the_features_and_then_the_target(table: Table) -> None:
    assert table.names == ["x1", "x2", "y"]


def test_the_digest_changes_with_the_arrays_and_only_with_what_they_are(table: Table) -> None:
    assert table.digest == read_table(FOLDER).digest
    assert table.digest != prepare(Path(), numbered_csv(20, features=2), split={"seed": 1}).digest
    assert len(table.digest) == 64


def test_a_missing_description_is_an_error() -> None:
    (FOLDER / "table.json").unlink()

    assert reading_error() == ("prepared/table.json: cannot be read: No such file or directory; `dvc repro prepare` writes it")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Invalid JSON: EOF while parsing a value at line 1 column 0"),
        (b'{"csv": {"path"', "Invalid JSON: EOF while parsing an object at line 1 column 15"),
        (b"\xff\xfe", "Invalid JSON: expected value at line 1 column 1"),
        (b"[]", "Input should be an object"),
        (b"{}", "csv: Field required"),
    ],
)
def test_a_damaged_description_is_an_error(content: bytes, reason: str) -> None:
    (FOLDER / "table.json").write_bytes(content)

    assert reading_error() == f"prepared/table.json: {reason}; `dvc repro --force prepare` writes it anew"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": "float16"}, "dtype: Input should be 'float32' or 'float64'"),
        ({"rows": {"train": "16", "validation": 2, "test": 2}}, "rows.train: Input should be a valid integer"),
        ({"rows": {"train": 16}}, "rows and sha256 must have train, validation and test"),
        ({"sha256": {}}, "rows and sha256 must have train, validation and test"),
        ({"mean": [0.0]}, "mean and std must have a number for each feature and the target"),
        ({"columns": [X1]}, "mean and std must have a number for each feature and the target"),
        ({"columns": [X1, X1 | {"name": "y"}]}, "features and target must have different names"),
        ({"columns": [X1, X1]}, "features and target must have different names"),
        ({"columns": [X1, X1 | {"kind": "text"}]}, f"columns.1: found the kind 'text', allowed: {', '.join(KINDS)}"),
        ({"columns": [X1, X1 | {"kind": ["number"]}]}, f"columns.1: found the kind ['number'], allowed: {', '.join(KINDS)}"),
        ({"columns": [X1, "x2"]}, f"columns.1: found the kind null, allowed: {', '.join(KINDS)}"),
        ({"columns": [X1, X1 | {"names": []}]}, "columns.1.names: Extra inputs are not permitted"),
        ({"columns": [X1, X1 | {"fill": [1.0, 2.0]}]}, "columns.1: fill must have 1 numbers"),
        (
            {"columns": [X1, {"kind": "date", "name": "x2", "format": "%d"}]},
            "columns.1.format: Input should be a format with a year, and of %Y %y %m %d %H %M %S %j %b %B each once at most, "
            "such as '%d/%m/%Y'",
        ),
        ({"rows": {"train": 0, "validation": 1, "test": 1}}, "rows.train: Input should be greater than or equal to 1"),
        ({"std": [1.0, -1.0, 1.0]}, "std.1: Input should be greater than or equal to 0"),
        ({"mean": [float("nan"), 0.0, 0.0]}, "mean.0: Input should be a finite number"),
        ({"csv": {"path": "data.csv"}}, "csv.sha256: Field required"),
        ({"csv": {"path": "data.csv", "sha256": "", "rows": 1}}, "csv.rows: Extra inputs are not permitted"),
        ({"version": 2}, "version: Extra inputs are not permitted"),
    ],
)
def test_a_description_that_is_no_tables_is_an_error(change: dict[str, Any], reason: str) -> None:
    (FOLDER / "table.json").write_text(json.dumps(description() | change))

    assert reading_error() == f"prepared/table.json: {reason}; `dvc repro --force prepare` writes it anew"


# --- the arrays


def test_a_split_is_the_array_in_its_file(table: Table) -> None:
    rows = SplitFile(FOLDER, "train", table).rows

    assert rows.shape == (16, 3)
    assert rows.dtype == np.float32
    assert np.array_equal(rows, np.load(FOLDER / "train.npy"))


def test_writing_to_the_map_does_not_reach_the_file(table: Table) -> None:
    before = (FOLDER / "train.npy").read_bytes()
    rows = SplitFile(FOLDER, "train", table).rows
    rows[:] = -1.0

    assert (rows == -1.0).all()
    assert (FOLDER / "train.npy").read_bytes() == before
    assert (SplitFile(FOLDER, "train", table).rows != -1.0).all()


def test_opening_a_file_far_larger_than_memory_loads_nothing(table: Table) -> None:
    rows = 2**38  # 3 TiB, which the file system holds as a hole
    with (FOLDER / "train.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, 3)})
        file.truncate(file.tell() + rows * 3 * 4)

    described = table.model_copy(update={"rows": {**table.rows, "train": rows}})
    opened = SplitFile(FOLDER, "train", described).rows

    assert opened.shape == (rows, 3)
    assert opened[rows - 1].tolist() == [0.0, 0.0, 0.0]


def test_a_missing_array_is_an_error(table: Table) -> None:
    (FOLDER / "train.npy").unlink()

    assert opening_error(table) == (
        "prepared/train.npy: cannot be read: No such file or directory; `dvc repro prepare` writes it"
    )


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((15, 3), np.float32), "float32 (15, 3)"),
        (np.zeros((16, 4), np.float32), "float32 (16, 4)"),
        (np.zeros(16, np.float32), "float32 (16,)"),
        (np.zeros((16, 3), np.float64), "float64 (16, 3)"),
        (np.zeros((16, 3), np.int32), "int32 (16, 3)"),
        (np.zeros((16, 3), ">f4"), ">f4 (16, 3)"),
    ],
)
def test_an_array_of_another_shape_or_type_is_an_error(array: np.ndarray[Any, Any], found: str, table: Table) -> None:
    np.save(FOLDER / "train.npy", array)

    assert opening_error(table) == (f"prepared/train.npy: found {found}, allowed: float32 (16, 3), as table.json says; {ANEW}")


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (0, "EOF: reading magic string, expected 8 bytes got 0"),
        (5, "EOF: reading magic string, expected 8 bytes got 5"),
        (100, "EOF: reading array header, expected 118 bytes got 90"),
    ],
)
def test_a_truncated_array_is_an_error(size: int, reason: str, table: Table) -> None:
    content = (FOLDER / "train.npy").read_bytes()
    (FOLDER / "train.npy").write_bytes(content[:size])

    assert opening_error(table) == f"prepared/train.npy: not a whole .npy file: {reason}"


@pytest.mark.parametrize("size", [319, 321])
def test_an_array_of_another_size_is_an_error(size: int, table: Table) -> None:
    os.truncate(FOLDER / "train.npy", size)

    assert opening_error(table) == f"prepared/train.npy: found {size} bytes, allowed: 320, as table.json says; {ANEW}"


def test_an_array_in_the_order_of_columns_is_read_as_it_is_meant(table: Table) -> None:
    rows = SplitFile(FOLDER, "train", table).rows.copy()
    np.save(FOLDER / "train.npy", np.asfortranarray(rows))

    assert np.array_equal(SplitFile(FOLDER, "train", table).rows, rows)


def test_an_array_of_pickled_objects_is_refused(table: Table) -> None:
    np.save(FOLDER / "train.npy", np.array([[Path()] * 3] * 16, dtype=object), allow_pickle=True)

    assert opening_error(table) == (
        f"prepared/train.npy: found object (16, 3), allowed: float32 (16, 3), as table.json says; {ANEW}"
    )


class _Trap:
    """Creates the file `sprung` when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("sprung"),))


def test_a_pickle_is_refused_and_not_loaded(table: Table) -> None:
    (FOLDER / "train.npy").write_bytes(pickle.dumps(_Trap()))

    assert opening_error(table).startswith("prepared/train.npy: not a whole .npy file: the magic string is not correct")
    assert not Path("sprung").exists()


@pytest.mark.parametrize("content", [b"x1,x2,y\n1,2,3\n", b"PK\x03\x04 and no more"])
def test_a_file_of_another_kind_is_refused(content: bytes, table: Table) -> None:
    (FOLDER / "train.npy").write_bytes(content)

    assert opening_error(table) == (
        "prepared/train.npy: not a whole .npy file: the magic string is not correct; "
        f"expected b'\\x93NUMPY', got {content[:6]!r}"
    )


def test_an_archive_of_arrays_is_refused(table: Table) -> None:
    with (FOLDER / "train.npy").open("wb") as file:
        np.savez(file, rows=np.zeros((16, 3), np.float32))

    assert opening_error(table).startswith("prepared/train.npy: not a whole .npy file: ")


def test_the_arrays_that_were_prepared_have_the_digests_of_the_description(table: Table) -> None:
    for split in table.rows:
        SplitFile(FOLDER, split, table).verify()


@pytest.mark.parametrize("place", [0, 100, 128, 319], ids=["magic", "header", "first value", "last byte"])
def test_one_changed_bit_is_refused(place: int, table: Table) -> None:
    opened = SplitFile(FOLDER, "train", table)
    with (FOLDER / "train.npy").open("r+b") as file:
        file.seek(place)
        value = file.read(1)[0]
        file.seek(place)
        file.write(bytes([value ^ 1]))
    found = sha256(FOLDER / "train.npy")

    with pytest.raises(TableError) as caught:
        opened.verify()
    allowed = f"{table.sha256['train'][:12]}…, as table.json says"
    assert str(caught.value) == f"prepared/train.npy: found the SHA-256 {found[:12]}…, allowed: {allowed}; {ANEW}"


def test_no_descriptor_is_left_open(table: Table) -> None:
    def count() -> int:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    (FOLDER / "test.npy").write_bytes(b"no array")
    before = count()
    for _ in range(1000):
        SplitFile(FOLDER, "train", table)
        with pytest.raises(TableError):
            SplitFile(FOLDER, "test", table)

    assert count() == before


# --- writing arrays


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_array_written_in_chunks_is_that_which_numpy_writes(dtype: Any, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(100, 3)).astype(dtype)
    np.save(tmp_path / "whole.npy", rows)

    with ArrayWriter(tmp_path / "chunks.npy", 100, 3, dtype) as writer:
        for chunk in (rows[:1], rows[1:1], rows[1:60], rows[60:]):
            writer.write(chunk)

    assert (tmp_path / "chunks.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert writer.sha256 == sha256(tmp_path / "whole.npy")


def test_a_chunk_that_is_not_contiguous_is_written_row_by_row(tmp_path: Path) -> None:
    rows = np.arange(60, dtype=np.float64).reshape(20, 3)
    with ArrayWriter(tmp_path / "rows.npy", 10, 2, "float64") as writer:
        writer.write(rows[::2, :2])

    assert np.array_equal(np.load(tmp_path / "rows.npy"), rows[::2, :2])


@pytest.mark.parametrize("rows", [1, 10_000], ids=["buffered until it is closed", "written at once"])
def test_a_full_disk_is_an_error_that_names_the_array(rows: int) -> None:
    full = Path("/dev/full")  # which takes nothing

    with pytest.raises(OSError, match="No space left on device: '/dev/full'"), ArrayWriter(full, rows, 2, "float64") as writer:
        writer.write(np.zeros((rows, 2)))
