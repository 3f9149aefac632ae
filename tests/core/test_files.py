import hashlib
import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from truefit.core.files import atomic_folder, atomic_path, naming, sha256, write_bytes, write_json

SRC = Path(__file__).parents[2] / "src"

# Writes the argument's file: half of it, then says so and waits for a line, then the rest.
SLOW_WRITER = """
import sys
from pathlib import Path
from truefit.core.files import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary, temporary.open("w") as file:
    file.write("half")
    file.flush()
    print("begun", flush=True)
    sys.stdin.readline()
    file.write(" and half")
"""
# Writes the argument's file again and again, each time whole lines of one number, whoever else does so too.
RIVAL = """
import os, sys
from pathlib import Path
from truefit.core.files import atomic_path
path, number = Path(sys.argv[1]), sys.argv[2]
written = refused = 0
while written < 200:
    try:
        with atomic_path(path) as temporary:
            temporary.write_text((number + "\\n") * 5_000)
        written += 1
        lines = set(path.read_text().split())
        assert len(lines) == 1, lines
    except BlockingIOError:
        refused += 1
print(refused)
"""


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


# --- several writers


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(SRC)}, stdin=pipe, stdout=pipe, text=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.txt"


@pytest.fixture
def writer(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has written half of `path`; a line on its stdin lets it go on."""
    with start(SLOW_WRITER, path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield process
        process.kill()


@pytest.mark.usefixtures("writer")
def test_a_second_writer_of_a_file_is_refused_before_it_writes(path: Path) -> None:
    with pytest.raises(BlockingIOError) as caught, atomic_path(path):
        pytest.fail("the block must not run")

    assert caught.value.filename == str(path)
    assert caught.value.strerror == "being written by another process; try again when that has ended"
    assert [(name, (path.parent / name).read_text()) for name in names(path.parent)] == [(".file.txt.tmp", "half")]


def test_a_refused_writer_does_not_disturb_the_first(path: Path, writer: subprocess.Popen[str]) -> None:
    with pytest.raises(BlockingIOError):
        write_bytes(path, b"second")
    writer.communicate("go on\n")

    assert writer.returncode == 0
    assert path.read_text() == "half and half"
    write_bytes(path, b"second")
    assert path.read_text() == "second"


def test_what_a_killed_writer_leaves_is_replaced(path: Path, writer: subprocess.Popen[str]) -> None:
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    left = names(path.parent)
    write_bytes(path, b"new")

    assert left == [".file.txt.tmp"]
    assert names(path.parent) == ["file.txt"]
    assert path.read_text() == "new"


def test_the_mode_of_a_leftover_is_not_kept(path: Path) -> None:
    leftover = path.with_name(".file.txt.tmp")
    leftover.write_text("half")
    leftover.chmod(0o600)
    write_bytes(path, b"new")
    write_bytes(path.with_name("other.txt"), b"new")

    assert path.stat().st_mode == path.with_name("other.txt").stat().st_mode


def test_rivals_for_one_file_write_it_whole_or_are_refused(path: Path) -> None:
    rivals = [start(RIVAL, path, number) for number in (1, 2)]
    refused = [int(rival.communicate()[0]) for rival in rivals]

    assert [rival.returncode for rival in rivals] == [0, 0]
    assert sum(refused) > 0
    assert names(path.parent) == ["file.txt"]


# --- what the file system refuses

# Writes more than the 64 KiB that a file may have in this process.
LARGE_WRITER = """
import resource, sys
from pathlib import Path
from truefit.core import errors
from truefit.core.files import atomic_path
import pyarrow as pa, pyarrow.csv
resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, 65_536))
def main():
    with atomic_path(Path(sys.argv[1])) as temporary:
        if sys.argv[2] == "write":
            temporary.write_bytes(b"x" * 100_000)
        else:
            pyarrow.csv.write_csv(pa.table({"x": pa.array(range(100_000))}), str(temporary))
sys.exit(errors.run(main))
"""


@pytest.mark.parametrize("how", ["write", "pyarrow"])
def test_a_write_that_fails_names_the_file_and_leaves_the_old_one(how: str, path: Path) -> None:
    path.write_text("old")
    # Without -B the limit would cut the bytecode that Python writes into the environment for what it imports.
    command = [sys.executable, "-B", "-c", LARGE_WRITER, str(path), how]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(SRC)}, capture_output=True, text=True)

    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {path}: File too large\n")
    assert names(path.parent) == ["file.txt"]
    assert path.read_text() == "old"


def test_a_folder_in_the_place_of_the_file_is_an_error_that_names_it(path: Path) -> None:
    path.mkdir()

    with pytest.raises(IsADirectoryError, match=re.escape(f"Is a directory: '{path}'")):
        write_bytes(path, b"content")
    assert names(path.parent) == ["file.txt"]


@pytest.fixture
def irregular(path: Path, request: pytest.FixtureRequest) -> Path:
    """Return `path`, at which there is what the parameter says."""
    kind = request.param
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"link to nothing": "nothing", "link to a device": os.devnull, "link": "target"}[kind])
        (path.parent / "target").write_text("target")
    return path


@pytest.mark.parametrize(
    ("irregular", "found"),
    [
        ("pipe", "a named pipe"),
        ("link", "a symbolic link"),
        ("link to nothing", "a symbolic link"),
        ("link to a device", "a symbolic link"),
    ],
    indirect=["irregular"],
)
@pytest.mark.parametrize("place", ["of the file", "of the temporary file"])
def test_what_is_no_regular_file_is_neither_replaced_nor_written_to(irregular: Path, found: str, place: str) -> None:
    path = irregular if place == "of the file" else irregular.parent / "own.txt"
    if path != irregular:
        irregular = irregular.rename(path.with_name(".own.txt.tmp"))
    before, there = irregular.lstat(), names(path.parent)

    with pytest.raises(FileExistsError) as caught, atomic_path(path):
        pytest.fail("the block must not run")

    assert caught.value.filename == str(irregular)
    assert caught.value.strerror == f"found {found}, allowed: a regular file, which is replaced, or a new name"
    assert (irregular.lstat().st_ino, names(path.parent)) == (before.st_ino, there)
    assert not (path.parent / "target").exists() or (path.parent / "target").read_text() == "target"


def test_a_device_is_not_replaced() -> None:
    with pytest.raises(FileExistsError, match="found a device or a socket, allowed: "), atomic_path(Path(os.devnull)):
        pytest.fail("the block must not run")


def test_a_folder_behind_a_link_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    write_bytes(tmp_path / "link" / "file.txt", b"content")

    assert (tmp_path / "real" / "file.txt").read_bytes() == b"content"


def test_a_file_in_the_place_of_the_folder_is_an_error_that_names_it(path: Path) -> None:
    path.write_text("old")

    with pytest.raises(OSError, match=re.escape(f"'{path}")):
        write_bytes(path / "inner.txt", b"content")
    assert path.read_text() == "old"


def test_naming_keeps_the_name_of_another_file_and_a_text_without_a_number(path: Path) -> None:
    with pytest.raises(FileNotFoundError) as other, naming(path):
        Path("nowhere").read_bytes()
    with pytest.raises(OSError, match="encoder error") as unnumbered, naming(path):
        raise OSError("encoder error")

    assert other.value.filename == "nowhere"
    assert (unnumbered.value.filename, unnumbered.value.strerror) == (str(path), "encoder error")


# --- contents


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


# --- folders


def tree(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("before", [None, {}, {"a": "former", "b": "former"}], ids=["absent", "empty", "full"])
def test_a_folder_takes_its_name_when_the_block_ends_well(before: dict[str, str] | None, tmp_path: Path) -> None:
    path = tmp_path / "deep/out"
    if before is not None:
        path.mkdir(parents=True)
    for name, content in (before or {}).items():
        (path / name).write_text(content)
    with atomic_folder(path) as folder:
        assert list(folder.iterdir()) == []
        (folder / "a").write_text("new")
        assert tree(path) == (before or {})

    assert tree(tmp_path) == {"deep/out/a": "new"}
    assert names(tmp_path / "deep") == ["out"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_folder_whose_block_raises_is_as_it_was(error: BaseException, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a").write_text("former")
    with pytest.raises(type(error)), atomic_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("new")
        raise error

    assert tree(tmp_path) == {"out/a": "former"}
    assert names(tmp_path) == ["out"]


def test_a_second_writer_of_a_folder_is_refused_and_what_a_killed_one_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out"
    for left in ("new", "former"):
        (tmp_path / f".out.tmp/{left}/deep").mkdir(parents=True)
    (tmp_path / ".out.tmp/lock").write_bytes(b"")
    with atomic_folder(path) as folder:
        assert list(folder.iterdir()) == []
        with pytest.raises(OSError, match="being written by another process; try again when that has ended") as caught:
            atomic_folder(path).__enter__()
        assert caught.value.filename == str(path)
        (folder / "a").write_text("new")

    assert tree(tmp_path) == {"out/a": "new"}
    assert names(tmp_path) == ["out"]


def test_a_link_in_the_place_of_the_temporary_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".out.tmp").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="found a symbolic link, allowed: a folder"):
        atomic_folder(tmp_path / "out").__enter__()

    assert names(tmp_path / "elsewhere") == []
