"""The device that a name stands for, and a process held to threads and determinism."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import truefit
from truefit.core.errors import TruefitError
from truefit.training.device import available_devices, choose_device

SRC = Path(truefit.__file__).parents[1]

REPORT = """
import json, os, sys
import torch

def switches():
    return [torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()]

before_import = switches()
from threadpoolctl import threadpool_info
import truefit
from truefit.training.device import available_devices, choose_device, configure
after_import = switches()
configure(int(sys.argv[1]))
try:
    torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
    refused = None
except RuntimeError as error:
    refused = str(error)
print(json.dumps({
    "import changes nothing": before_import == after_import,
    "devices": [str(choose_device("auto")), available_devices()],
    "torch": torch.get_num_threads(),
    "pools": {info["user_api"]: info["num_threads"] for info in threadpool_info()},
    "deterministic": torch.are_deterministic_algorithms_enabled(),
    "only warns": torch.is_deterministic_algorithms_warn_only_enabled(),
    "refused": refused,
    "cublas": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
}))
"""


@cache
def configured(threads: int, **variables: str) -> dict[str, Any]:
    """Return what is so in a new process after `configure(threads)`; no thread count is there to begin with."""
    command = [sys.executable, "-W", "error", "-c", REPORT, str(threads)]
    started_with = {"PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "3"}
    done = subprocess.run(command, env=started_with | variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def expected_devices() -> list[str]:
    """Return the devices that torch reports, as settings name them."""
    cuda = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["cpu", *(["cuda", *cuda] if cuda else []), *(["mps"] if torch.backends.mps.is_available() else [])]


def test_the_devices_are_those_that_torch_reports() -> None:
    assert available_devices() == expected_devices()


def test_auto_is_the_accelerator_that_there_is_or_else_the_cpu() -> None:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    assert choose_device("auto").type == (accelerator.type if accelerator else "cpu")


def test_auto_is_the_cpu_where_no_gpu_can_be_seen() -> None:
    gpu = "mps" if torch.backends.mps.is_available() else None  # which no variable hides
    expected = [gpu or "cpu", ["cpu", *([gpu] if gpu else [])]]
    assert configured(1, CUDA_VISIBLE_DEVICES="")["devices"] == expected


def test_every_device_there_is_can_be_chosen_by_name() -> None:
    for name in expected_devices():
        device = choose_device(name)
        assert str(device) == name
        assert torch.zeros(1, device=device).device.type == device.type


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    missing = f"cuda:{torch.cuda.device_count()}"
    listed = ", ".join(expected_devices())
    with pytest.raises(TruefitError) as error:
        choose_device(missing)
    assert str(error.value) == f"train.device: found '{missing}', allowed on this machine: auto, {listed}"


def test_each_kind_of_device_that_is_not_there_is_refused() -> None:
    listed = ", ".join(expected_devices())
    for name in {"cuda", "mps"} - set(expected_devices()):
        with pytest.raises(TruefitError) as error:
            choose_device(name)
        assert str(error.value) == f"train.device: found '{name}', allowed on this machine: auto, {listed}"


@pytest.mark.parametrize(
    ("threads", "variables"), [(1, {"CUDA_VISIBLE_DEVICES": ""}), (2, {"CUBLAS_WORKSPACE_CONFIG": ":16:8"})]
)
def test_configure_holds_torch_and_blas_to_the_threads_asked_for(threads: int, variables: dict[str, str]) -> None:
    found = configured(threads, **variables)
    assert found["torch"] == threads
    assert found["pools"] == dict.fromkeys(found["pools"], threads)
    assert "blas" in found["pools"]


def test_configure_makes_torch_refuse_what_cannot_repeat_its_bits() -> None:
    found = configured(1, CUDA_VISIBLE_DEVICES="")
    assert (found["deterministic"], found["only warns"]) == (True, False)
    assert found["refused"].startswith("put_ does not have a deterministic implementation")


def test_configure_asks_cublas_for_equal_bits_unless_the_user_did() -> None:
    assert configured(1, CUDA_VISIBLE_DEVICES="")["cublas"] == ":4096:8"
    assert configured(2, CUBLAS_WORKSPACE_CONFIG=":16:8")["cublas"] == ":16:8"


def test_importing_the_module_sets_neither_threads_nor_determinism() -> None:
    assert configured(1, CUDA_VISIBLE_DEVICES="")["import changes nothing"]
