import gc
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from truefit.core import errors
from truefit.core.errors import SettingsError, StoppedError, TableError, TruefitError, is_final

SRC = Path(__file__).parents[2] / "src"


@pytest.fixture(autouse=True)
def _own_garbage_collector() -> Iterator[None]:
    """Give the tests' process its garbage collector's settings back."""
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def run_script(script: str, *arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command, environment = [sys.executable, str(SRC / script), *arguments], os.environ | {"PYTHONPATH": str(SRC)} | variables
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_a_main_that_ends_well_gives_status_0_and_no_output(capfd: pytest.CaptureFixture[str]) -> None:
    called = []

    assert errors.run(lambda: called.append(True)) == 0

    assert called == [True]
    assert capfd.readouterr() == ("", "")


def test_a_main_runs_with_few_searches_for_garbage_and_its_process_ends_without_one() -> None:
    def main() -> None:
        assert gc.isenabled()
        assert gc.get_threshold()[0] > 10_000
        raise SettingsError("params.yaml: bad")

    errors.run(main)

    assert gc.get_freeze_count() > 10_000


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: np.empty(10**15),
        lambda: torch.empty(10**14),
        lambda: torch.empty(2**40, 2**40, device="meta"),
        lambda: [None] * 2**60,
    ],
    ids=["numpy", "torch", "torch, sizes that overflow", "python"],
)
def test_a_lack_of_memory_gives_status_2_and_one_line_with_what_to_try(
    allocate: Callable[[], object], capfd: pytest.CaptureFixture[str]
) -> None:
    assert errors.run(lambda: [allocate()][:0]) == 2  # type: ignore[arg-type]

    (line,) = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"error: not enough memory: .+; try a smaller train\.batch_size or train\.model\.hidden, .+", line)


@pytest.mark.parametrize(
    "text",
    [
        # Of torch 2.11 on a device whose memory another process held: for its context, and for cuBLAS.
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call.",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_a_lack_of_memory_that_cuda_itself_reports_is_one_too(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise RuntimeError(text)  # torch's class for it is one of these

    assert errors.run(main) == 2
    first = text.partition("\n")[0]
    assert capfd.readouterr().err.startswith(f"error: not enough memory: {first}; try a smaller train.batch_size")


def test_another_fault_of_the_libraries_is_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="must match the size"):
        errors.run(lambda: torch.ones(2) + torch.ones(3))  # type: ignore[arg-type]


def subclasses(kind: type[TruefitError]) -> list[type[TruefitError]]:
    """Return the tree below `kind`, each class before those below it."""
    return [found for child in kind.__subclasses__() for found in [child, *subclasses(child)]]


@pytest.mark.parametrize("kind", [TruefitError, *(kind for kind in subclasses(TruefitError) if kind is not StoppedError)])
def test_a_truefit_error_gives_status_2_and_one_line_on_stderr(
    kind: type[TruefitError], capfd: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise kind("params.yaml: train.lr: found 'x', allowed: a valid number")

    assert errors.run(main) == 2

    assert capfd.readouterr() == ("", "error: params.yaml: train.lr: found 'x', allowed: a valid number\n")


def test_a_line_break_in_a_text_is_none_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise SettingsError("data.csv: line 1: found no column 'z', allowed: a\nb, c")

    assert errors.run(main) == 2

    assert capfd.readouterr().err == "error: data.csv: line 1: found no column 'z', allowed: a b, c\n"


def test_several_faults_are_a_line_each_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    error = TableError("data.csv: line 2, column 'x': found 'a\u2028', allowed: a number", "data.csv: and 3 more columns")

    def main() -> None:
        raise error

    assert errors.run(main) == 2

    assert str(error).count("\n") == 1
    assert capfd.readouterr().err == (
        "error: data.csv: line 2, column 'x': found 'a ', allowed: a number\ndata.csv: and 3 more columns\n"
    )


@pytest.mark.parametrize("kind", [ValueError, AssertionError, SystemExit])
def test_any_other_exception_passes_through(kind: type[BaseException], capfd: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise kind("our own bug")

    with pytest.raises(kind, match="our own bug"):
        errors.run(main)

    assert capfd.readouterr() == ("", "")


def test_ctrl_c_gives_status_130_and_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise KeyboardInterrupt

    assert errors.run(main) == 130

    assert capfd.readouterr() == ("", "error: stopped by SIGINT\n")


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (None, True),
        (TruefitError("not finite"), True),
        (StoppedError(15, "here"), False),
        (OSError("disk full"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_a_training_is_over_unless_it_could_end_otherwise(error: BaseException | None, final: bool) -> None:
    assert is_final(error) == final


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    drawn = re.findall(r"[├└]── (\w+) ", errors.__doc__ or "")

    assert drawn == [kind.__name__ for kind in subclasses(TruefitError)]


def test_generate_with_a_wrong_setting_exits_with_2_and_one_line(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("generate: {rows: 0}\n")

    done = run_script("generate.py", "synthetic.csv", cwd=tmp_path)

    line = "error: params.yaml: generate.rows: found 0, allowed: greater than or equal to 1\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
    assert not (tmp_path / "synthetic.csv").exists()


def test_prepare_with_wrong_cells_exits_with_2_and_a_line_for_each_column(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("prepare: {csv: own.csv}\n")
    (tmp_path / "own.csv").write_text("x,y\n1,2\n3,z\n4,5\nz,6\n")

    done = run_script("prepare.py", "prepared", cwd=tmp_path)

    lines = [
        "error: own.csv: line 5, column 'x': found 'z', allowed: a number",
        "own.csv: line 3, column 'y': found 'z', allowed: a number",
    ]
    assert (done.returncode, done.stdout, done.stderr.splitlines()) == (2, "", lines)


@pytest.mark.parametrize(
    ("name", "shown"), [("价格", r"\u4ef7\u683c"), ("sold\nat", r"sold\nat"), ("y" * 300, "y" * 39 + r"\u2026")]
)
def test_any_columns_name_is_printed_on_one_line_whatever_the_encoding(name: str, shown: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("prepare: {csv: own.csv}\n")
    (tmp_path / "own.csv").write_text(f'x,"{name}"\n' + "1,2\n" * 20, encoding="utf-8")

    done = run_script("prepare.py", "prepared", cwd=tmp_path, PYTHONIOENCODING="ascii")

    line = f"own.csv: 1 features, target '{shown}'; rows: 16 train, 2 validation, 2 test\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, line, "")


def test_generate_and_prepare_end_well_with_status_0(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("generate: {rows: 50}\nprepare: {csv: synthetic.csv}\n")

    generated = run_script("generate.py", "synthetic.csv", cwd=tmp_path)
    prepared = run_script("prepare.py", "prepared", cwd=tmp_path)

    assert (generated.returncode, generated.stdout, generated.stderr) == (0, "", "")
    line = "synthetic.csv: 1 features, target 'y'; rows: 40 train, 5 validation, 5 test\n"
    assert (prepared.returncode, prepared.stdout, prepared.stderr) == (0, line, "")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "data/x.csv"), "error: data/x.csv: No space left on device\n"),
        (OSError("[Errno 2] Failed to open local file 'x.csv'"), "error: [Errno 2] Failed to open local file 'x.csv'\n"),
    ],
)
def test_what_the_operating_system_refuses_is_one_line(error: OSError, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise error

    assert errors.run(main) == 2
    assert capsys.readouterr().err == line


def test_a_stage_leaves_with_all_that_it_printed_and_nothing_after_it() -> None:
    code = """
import atexit
from truefit.core import errors
atexit.register(print, "late")
print("printed")
errors.leave(3)
"""
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "printed\n", "")
