"""Debug runs (`debug: true` in the lock): additional checks and output, so that one run of a few steps shows all.

The loop uses `Inspector` in one line, and other runs import nothing else of this package. This module needs no torch:
it is used before torch is imported.
"""

from __future__ import annotations

import faulthandler
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ratc_runtime.config.lock import Lock

#: Read by CUDA, torch and NCCL when they start.
VARIABLES = {
    "CUDA_LAUNCH_BLOCKING": "1",  # a kernel's error is raised where it was launched
    "TORCH_SHOW_CPP_STACKTRACES": "1",
    "TORCH_DISABLE_ADDR2LINE": "1",  # looking up C++ lines takes minutes if libraries are large
    "NCCL_DEBUG": "INFO",
}
#: DETAIL names collectives that do not match, with their shapes. Over gloo torch 2.13 crashes with it where DDP logs
#: its settings: it takes the group's wrapper for the group (c10d::Logger::set_env_variables).
DISTRIBUTED = {"nccl": "DETAIL", "gloo": "INFO"}
#: Micro-batches of each process in an evaluation.
EVALUATED = 2


def prepare(environment: MutableMapping[str, str], backend: str) -> None:
    """Set the variables of a debug run, before torch is imported. The user's own values stay.

    It also enables faulthandler, which shows the Python stack of a crash in native code.
    """
    faulthandler.enable()
    for name, value in {**VARIABLES, "TORCH_DISTRIBUTED_DEBUG": DISTRIBUTED[backend]}.items():
        environment.setdefault(name, value)


class FirstSamples:
    """The first samples of a dataset. All other attributes are those of the whole one."""

    def __init__(self, dataset: Any, length: int) -> None:
        self.dataset, self.length = dataset, min(length, len(dataset))
        if hasattr(dataset, "names"):
            self.names = list(dataset.names[: self.length])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.length:
            raise IndexError(index)  # this ends a `for` over it
        return self.dataset[index]

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)


def few(datasets: dict[str, Any], lock: Lock) -> dict[str, Any]:
    """Return the splits cut to the length of a debug run: the steps of its epoch, and a short evaluation."""
    training = lock.training
    steps = training.max_steps_per_epoch
    lengths = dict.fromkeys(("val", "test"), EVALUATED * training.micro_batch_size * lock.parallel.world_size)
    if steps is not None:
        lengths["train"] = steps * training.global_batch_size
    cut = {}
    for key, data in datasets.items():
        length = lengths.get(key.partition("/")[0])  # of several tasks each has its own, named `split/task`
        cut[key] = data if length is None else FirstSamples(data, length)
    return cut
