"""What a long training takes of its machine: CPU, memory, disk, network and GPU, measured by MLflow's own monitors."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from truefit.core.errors import TrackingError
from truefit.core.terminal import say

START_SECONDS = 60.0  # a shorter training is not worth its curves
INTERVAL_SECONDS = 10.0  # MLflow's own


class SystemMetrics:
    """Measures the machine from `start_seconds` on, as MLflow's environment variables say; these may also turn it off.

    Raises TrackingError where such a variable has no value that it may have.
    """

    def __init__(self, start_seconds: float = START_SECONDS) -> None:
        from mlflow import environment_variables

        known: Any = environment_variables
        switch, every = known.MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING, known.MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL
        samples = known.MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING
        self._start_seconds = start_seconds
        try:
            self._on = switch.get() or not switch.is_set()
            self._interval, self._samples = every.get() or INTERVAL_SECONDS, samples.get() or 1
        except ValueError as error:  # names the variable
            raise TrackingError(str(error)) from None
        for variable, number in (every, self._interval), (samples, self._samples):
            if not 0 < number < threading.TIMEOUT_MAX:
                raise TrackingError(f"{variable.name}: found {number}, allowed: a number above 0")
        self._over = threading.Event()

    @contextmanager
    def recorded(self, record: Callable[[Mapping[str, float]], None]) -> Iterator[None]:
        """Hand what is measured to `record`, in a thread of its own, until the block ends."""
        if not self._on:
            yield
            return
        thread = threading.Thread(target=self._watch, args=(record,), name="system metrics", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _watch(self, record: Callable[[Mapping[str, float]], None]) -> None:
        if self._over.wait(self._start_seconds):
            return
        monitors = _monitors()
        for monitor in monitors:
            monitor.collect_metrics()  # the use of the CPU is counted since it was asked for before
            monitor.clear_metrics()
        while self._collect(monitors):
            try:
                record({name: value for monitor in monitors for name, value in monitor.aggregate_metrics().items()})
            except (OSError, TrackingError) as error:  # such as of a full disk, which the training meets as well
                say(f"warning: no more system metrics: {error}", error=True)
                return
            for monitor in monitors:
                monitor.clear_metrics()

    def _collect(self, monitors: list[Any]) -> bool:
        """Collect the samples of one record; return False where the training has ended meanwhile."""
        for _ in range(self._samples):
            if self._over.wait(self._interval):
                return False
            for monitor in monitors:
                monitor.collect_metrics()
        return True


def _monitors() -> list[Any]:
    """Return MLflow's monitors; that of the GPU needs the package nvidia-ml-py."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    monitors: list[Any] = []
    for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
        with suppress(ImportError, RuntimeError, AttributeError):  # without its package; without a GPU; without a network
            monitors.append(kind())
    return monitors
