"""The device, the threads and the determinism of a process."""

import os
import re
from typing import Annotated

import torch
from pydantic import AfterValidator
from threadpoolctl import threadpool_limits

from truefit.core.errors import TruefitError


def _check_name(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", name):
        raise ValueError("auto, cpu, cuda, cuda:N or mps")
    return name


DeviceName = Annotated[str, AfterValidator(_check_name)]


def available_devices() -> list[str]:
    """Return the devices on this machine, by the names that `choose_device` takes."""
    cuda = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["cpu", *(["cuda", *cuda] if cuda else []), *(["mps"] if torch.backends.mps.is_available() else [])]


def choose_device(name: str) -> torch.device:
    """Return the device, for `auto` the accelerator or else the CPU; raises TruefitError for one that is not here."""
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if name not in available_devices():
        raise TruefitError(f"train.device: found {name!r}, allowed on this machine: auto, {', '.join(available_devices())}")
    return torch.device(name)


def configure(threads: int) -> None:
    """Hold torch and NumPy's BLAS to `threads` threads each, and torch to algorithms that give the same bits each time."""
    # Read by cuBLAS when it starts; without it torch refuses to promise equal bits there.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    threadpool_limits(threads)
    torch.set_num_threads(threads)
    # Does what torch.use_deterministic_algorithms does, without that function's import of the whole compiler.
    torch.set_deterministic_debug_mode("error")
    # Deterministic mode would also fill every fresh tensor, which only hides bugs here and costs time at each step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
