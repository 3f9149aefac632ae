"""Checkpoints: all that a training needs to go on after it was killed, as if it had not been. Nothing in one is unpickled."""

import hashlib
import io
import json
import platform
import shutil
import signal
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from filelock import FileLock, Timeout
from pydantic import Field

from truefit.core.code import decisive, read_code
from truefit.core.config import Settings
from truefit.core.errors import TruefitError, is_final
from truefit.core.files import write_bytes
from truefit.core.signals import Deferred
from truefit.core.terminal import say
from truefit.model.files import read_tensors

State = dict[str, Any]
_OVER = ".over"  # ends the name of a folder whose training is over


class CheckpointSettings(Settings):
    """Section `checkpoint`: how often a training saves where it is, the earlier of the two; null: not by this measure."""

    epochs: int | None = Field(None, ge=1)
    seconds: float | None = Field(10.0, gt=0)


def fingerprint(device: torch.device, *given: object) -> str:
    """Return a digest of what is `given`, which JSON can hold, and of the decisive code, the libraries and the hardware."""
    hardware = [platform.machine(), torch.backends.cpu.get_cpu_capability(), str(device)]
    hardware += [torch.cuda.get_device_name(device)] if device.type == "cuda" else []
    content = [given, decisive(read_code()), torch.__version__, np.__version__, hardware]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Checkpoints:
    """The latest two checkpoints of one training, and the signals that ask it to save another and stop.

    As a context it holds the folder, and removes it when the training is over (`errors.is_final`); raises TruefitError where
    another process holds it. Inside the context `deferred_signals` the first SIGINT or SIGTERM makes a checkpoint `due`, and
    the second ends the training at once.
    """

    def __init__(self, folder: Path, settings: CheckpointSettings) -> None:
        self._folder = folder
        self._settings = settings
        self._saved = time.monotonic()
        self._lock = FileLock(folder / "lock", timeout=0)
        self.deferred_signals = Deferred((signal.SIGINT, signal.SIGTERM), second_ends=True)

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            raise TruefitError(
                f"{self._folder}: a training with the same settings, table and code is running; wait until it has ended"
            ) from None
        self._remove_finished()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if is_final(error):
            # Renamed first: a training killed in the middle of the removal must not leave some of the checkpoints.
            self._remove_finished()
            self._folder.rename(self._folder.with_name(f"{self._folder.name}{_OVER}"))
            self._remove_finished()
        self._lock.release()

    @property
    def signal(self) -> int | None:
        """The signal that asks the training to stop."""
        return self.deferred_signals.first

    def due(self, ended_epoch: int | None = None) -> bool:
        """Say whether it is time for a checkpoint: after `ended_epoch`, or inside an epoch."""
        every = self._settings
        by_epochs = bool(every.epochs and ended_epoch and ended_epoch % every.epochs == 0)
        by_seconds = every.seconds is not None and time.monotonic() - self._saved >= every.seconds
        return by_epochs or by_seconds or self.signal is not None

    def save(self, content: State) -> None:
        """Write a checkpoint, of tensors and plain values, and remove all but the one before it."""
        buffer = io.BytesIO()
        torch.save(content, buffer)
        digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
        former = self._paths()
        number = int(former[-1].stem) + 1 if former else 1
        write_bytes(self._folder / f"{number:08d}.checkpoint", f"{digest}\n".encode() + buffer.getbuffer())
        for path in former[:-1]:
            path.unlink()
        self._saved = time.monotonic()

    def load(self) -> bytes:
        """Return the latest checkpoint that is whole, for `read_tensors`, or nothing; says on stderr which are damaged."""
        for path in reversed(self._paths()):
            digest, _, content = path.read_bytes().partition(b"\n")
            fault = "damaged: its digest is not that of its content"
            if hashlib.sha256(content).hexdigest().encode() == digest:
                try:
                    read_tensors(content)
                except ValueError as error:
                    fault = str(error)
                else:
                    return content
            say(f"warning: {path}: {fault}; going on from what was saved before it", error=True)
        return b""

    def _remove_finished(self) -> None:
        """Remove the checkpoints of all trainings that are over, also of those that were killed while they did it."""
        for folder in self._folder.parent.glob(f"*{_OVER}"):
            shutil.rmtree(folder, ignore_errors=True)  # another may be at it

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("[0-9]*.checkpoint"))
