import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from truefit.files import atomic_path, sha256, write_bytes, write_json


@pytest.fixture
def _umask_027() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atomic_path_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    with atomic_path(path) as temporary:
        temporary.write_text("new")

    assert path.read_text() == "new"
    assert names(tmp_path) == ["file.txt"]


def test_the_old_file_stays_whole_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_the_old_file_and_no_temporary(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise error

    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_block_that_raises_before_it_writes_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too soon"), atomic_path(tmp_path / "file.txt"):
        raise ValueError("too soon")

    assert names(tmp_path) == []


def test_atomic_path_makes_the_folder(tmp_path: Path) -> None:
    write_bytes(tmp_path / "some" / "folder" / "file.txt", b"content")

    assert (tmp_path / "some" / "folder" / "file.txt").read_bytes() == b"content"


def test_two_files_can_be_written_at_once(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.txt") as first, atomic_path(tmp_path / "b.txt") as second:
        first.write_text("a")
        second.write_text("b")

    assert [(tmp_path / name).read_text() for name in names(tmp_path)] == ["a", "b"]


@pytest.mark.usefixtures("_umask_027")
def test_the_files_mode_is_what_the_umask_leaves(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file.txt", b"content")

    assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == 0o640


def test_write_bytes_replaces_a_longer_file(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    write_bytes(path, b"a long content")
    write_bytes(path, b"\x00short")

    assert path.read_bytes() == b"\x00short"


def test_write_json_is_indented_and_ends_with_a_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"b": [1, 0.1], "a": None})

    assert (tmp_path / "file.json").read_text() == '{\n  "b": [\n    1,\n    0.1\n  ],\n  "a": null\n}\n'


def test_write_json_keeps_every_digit_of_a_float(tmp_path: Path) -> None:
    values = [0.1 + 0.2, 1e-300, 2**53 + 1.0, 1 / 3]
    write_json(tmp_path / "file.json", values)

    assert json.loads((tmp_path / "file.json").read_text()) == values


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_write_json_refuses_what_json_does_not_have(value: float, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text("old")

    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"r2": value})

    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.json"]


@pytest.mark.parametrize("content", [b"", b"abc", bytes(range(256)) * 10_000])
def test_sha256_is_the_digest_of_the_bytes(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)

    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_sha256_knows_the_standards_example(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")  # FIPS 180-4, the one-block example

    assert sha256(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
