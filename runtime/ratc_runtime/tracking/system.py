"""System metrics: processor, memory, disk, network, and each GPU's use, memory and power.

MLflow's monitors measure them. Its own monitor thread is not used: it sends each sample itself, and ends for good at
the first request that fails. The names are MLflow's, so that it shows them among its system metrics.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

#: Seconds between measurements, as in MLflow.
INTERVAL = 10.0


def monitors() -> list[Any]:
    """Return MLflow's monitors for this machine's devices."""
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
    from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

    found: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
    for kind in (GPUMonitor, ROCMMonitor):
        try:
            found.append(kind())
            break
        except Exception:  # no such GPU, no driver, no library
            continue
    return found


class SystemMonitor(threading.Thread):
    """Measures every `interval` seconds and passes the values to `put`, numbered from `first`."""

    def __init__(self, measured: list[Any], put: Callable[[dict[str, float], int], None], first: int) -> None:
        super().__init__(name="system-metrics", daemon=True)
        self._monitors, self._put, self._number = measured, put, first
        text = os.environ.get("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "")
        try:
            self.interval = max(0.1, float(text))
        except ValueError:
            self.interval = INTERVAL
        self._ending = threading.Event()
        self.start()

    def run(self) -> None:
        # psutil returns the processor's load since the previous call, so the first result is dropped.
        self._monitors[0].collect_metrics()
        self._monitors[0].clear_metrics()
        pause = min(1.0, self.interval)
        while not self._ending.wait(pause):
            pause = self.interval
            values: dict[str, float] = {}
            for monitor in self._monitors:
                try:
                    monitor.collect_metrics()
                    values |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
                    monitor.clear_metrics()
                except Exception:  # one measurement less
                    continue
            self._put(values, self._number)
            self._number += 1

    def close(self) -> None:
        """Stop measuring."""
        self._ending.set()
