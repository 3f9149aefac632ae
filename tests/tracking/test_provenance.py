"""What a run records of the code and the environment, and what is said at the start of what it lacks."""

from pathlib import Path

import torch

from truefit.core.code import code_digest, read_code
from truefit.tracking.provenance import ENVIRONMENT, read_environment


def test_code_is_told_apart_by_content_and_by_name(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.py").write_text("a = 1\n")
    (tmp_path / "sub/b.py").write_text("b = 1\n")
    (tmp_path / "notes.txt").write_text("no code\n")
    code = read_code(tmp_path)
    assert list(code) == ["a.py", "sub/b.py"]
    (tmp_path / "a.py").rename(tmp_path / "c.py")
    assert code_digest(read_code(tmp_path)) != code_digest(code)


def test_environment_names_all_that_may_change_the_bits() -> None:
    environment = read_environment(torch.device("cpu"))
    assert environment["torch"] == torch.__version__
    assert environment["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert environment["threads"] == str(torch.get_num_threads())
    assert environment["device"] == "cpu"
    assert set(environment) == set(ENVIRONMENT) >= {"python", "numpy", "mlflow", "dvc", "pandas", "platform", "device_name"}
