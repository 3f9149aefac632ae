"""Parts that other hosts predict: the bytes and the faults of one process."""

from pathlib import Path
from typing import Any

import pytest
from helpers_data import numbered_csv, prepare
from helpers_joining import free_address, hold, joining, line_with, make_clone, wait_for_help
from helpers_torture import long
from helpers_training import UNSCALED, save_untrained

from truefit.cli import prediction_parts
from truefit.cli.prediction import predict
from truefit.cli.prediction_parts import predict_parts
from truefit.core.errors import TruefitError
from truefit.core.launch import LaunchSettings
from truefit.model.files import ModelDescription, open_model
from truefit.model.models import ModelSettings

IN = Path("new")
Model = tuple[Any, ModelDescription]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model for x1 and x2 that nobody trained, and parts for it."""
    monkeypatch.chdir(tmp_path)
    IN.mkdir()
    for part in range(8):
        (IN / f"{part}.csv").write_text("x1,x2\n" + "".join(f"{row},{part}\n" for row in range(100)))
    save_untrained(
        Path("model"), prepare(Path(), numbered_csv(20, 2)), ModelSettings(name="mlp", hidden=(5,)), UNSCALED, seed=3
    )
    return open_model(Path("model"))


@pytest.fixture
def launch(model: Model, monkeypatch: pytest.MonkeyPatch) -> LaunchSettings:
    """Two hosts, of which the first waits for the other one's help."""
    launch = LaunchSettings(processes=2, hosts=2, rendezvous=free_address(), timeout=5)
    make_clone(Path(), launch)
    hold(monkeypatch, prediction_parts, wait_for_help)
    return launch


@long  # as tests/ingest/test_part_hosts.py has it of prepare, by the same pool
def test_a_host_in_the_same_folder_predicts_parts(model: Model, launch: LaunchSettings) -> None:
    with joining(launch) as other:
        predict_parts(*model, IN, Path("together"))
        done = line_with(other, "parts done").removeprefix("predict: ").removesuffix(f" parts done for {launch.address}")
    assert 0 < int(done) <= 8
    for part in IN.iterdir():
        predict(*model, part, Path("alone"), part=True)
        assert (Path("together") / part.name).read_bytes() == Path("alone").read_bytes()


@long
def test_a_fault_that_another_host_finds_is_told_as_by_one_process(model: Model, launch: LaunchSettings) -> None:
    for part in IN.iterdir():
        part.write_text("x1,x2\n1,one\n")
    with joining(launch), pytest.raises(TruefitError) as caught:
        predict_parts(*model, IN, Path("out"))
    assert str(caught.value).startswith("new/0.csv: line 2, column 'x2': found 'one', allowed: a number")
    assert not Path("out").exists()
