"""One measurement on a GPU, in a process of its own: a case in JSON on standard input, its result on standard output.

The step is the runtime's own (`ratc_runtime.training.step`), as it is for the trace; only the tensors are real.
`gpu.py` starts it.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from recording import Recorder, write

#: Optimizer steps of a measurement: the state exists from the second on, and the third shows that nothing grows.
STEPS = 3
#: Bytes that may be left between the tries of a bisection; more would falsify the next one.
LEFT_OVER = 64 << 20


def facts() -> dict[str, Any]:
    """Return the card, its driver and the versions that the numbers belong to."""
    from importlib import metadata

    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda, "python": sys.version.split()[0]}
    for name in ("resolution-aware-transformer", "timm", "transformers", "accelerate", "deepspeed"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    # Before anything of CUDA: a context takes memory of its own.
    seen = _nvml()
    if not torch.cuda.is_available():
        return {"card": None, "versions": found}
    about = torch.cuda.get_device_properties(0)
    found["cudnn"] = torch.backends.cudnn.version()
    card = {
        "name": about.name,
        "compute_capability": f"{about.major}.{about.minor}",
        "memory_bytes": about.total_memory,
        **{f"nvml_{key}": value for key, value in seen.items()},
    }
    return {"card": card, "versions": found}


def _nvml() -> dict[str, Any]:
    """Return the driver's version and what it says of the card, in bytes; nothing where NVML cannot be asked."""
    try:
        import pynvml

        pynvml.nvmlInit()
        memory = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0))
        return {"driver": pynvml.nvmlSystemGetDriverVersion(), "total_bytes": memory.total, "used_bytes": memory.used}
    except Exception as error:  # of many kinds; the data file says that it is unknown
        print(f"NVML: {error}", file=sys.stderr)
        return {}


class Step:
    """The training step of a request on a device, at a micro-batch."""

    def __init__(self, case: dict[str, Any], micro_batch: int) -> None:
        from ratc_runtime.models.build import build_model
        from ratc_runtime.tasks import make_task
        from ratc_runtime.trace.request import read

        self.micro_batch, self.device = micro_batch, torch.device(case["device"])
        request = read({**case["request"], "batch_sizes": [micro_batch]})
        # The lock of a request never compiles, since a trace does that another way; here the engine does.
        compiled = bool(case["request"]["training"].get("compile", False))
        lock = request.lock.replace(
            hardware=request.lock.hardware.replace(device=self.device.type),
            training=request.lock.training.replace(compile=compiled),
        )
        request = dataclasses.replace(request, lock=lock)
        self.request = request
        torch.backends.cuda.matmul.allow_tf32 = lock.training.tf32
        torch.backends.cudnn.allow_tf32 = lock.training.tf32
        torch.manual_seed(0)
        model = build_model(lock)
        self.task = make_task(lock)
        self.criterion = self.task.loss()
        self.engine = _deepspeed(lock, model, case) if case.get("zero_stage") is not None else _torch(request, model)
        self.engine.module.train()

    def follow(self, phase: Callable[[str], str]) -> None:
        """Say in which phase of the step it is, as the trace does; not with DeepSpeed, whose optimizer has no hooks."""
        from ratc_runtime.trace.workload import PhasedEngine

        if not self.engine.deepspeed:
            self.engine = PhasedEngine(self.engine, phase)

    def __call__(self) -> None:
        from ratc_runtime.training.step import training_step

        training = self.request.lock.training
        training_step(
            self.engine,
            self.criterion,
            self._batches(),
            self.request.accumulation,
            training.learning_rate,
            training.gradient_clipping,
        )

    def _batches(self) -> Iterator[tuple[Any, Any]]:
        """Yield images and targets as the loader does; the sizes are those of the trace."""
        from ratc_runtime.data import pytree
        from ratc_runtime.training.memory_rehearsal import noise

        while True:
            drawn = noise(self.task, self.request.lock, self.micro_batch, torch.device("cpu"))
            image, target = (pytree.to_device(part, self.device) for part in drawn)
            del drawn
            yield image, target
            del image, target


def _torch(request: Any, model: Any) -> Any:
    from ratc_runtime.trace.workload import make_engine

    return make_engine(request, model)


def _deepspeed(lock: Any, model: Any, case: dict[str, Any]) -> Any:
    """Return the runtime's DeepSpeed engine of one process, with the file that the compiler would write."""
    from ratc_runtime.engine import make_engine

    for name, value in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1), ("MASTER_ADDR", "127.0.0.1")):
        os.environ.setdefault(name, str(value))
    os.environ.setdefault("MASTER_PORT", str(20000 + os.getpid() % 20000))
    bucket = min(50_000_000, sum(p.numel() for p in model.parameters() if p.requires_grad))
    training = lock.training
    content = {
        "train_batch_size": training.global_batch_size,
        "train_micro_batch_size_per_gpu": training.micro_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "gradient_clipping": training.gradient_clipping,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1_000_000_000,
        "bf16": {"enabled": training.precision == "bf16"},
        "fp16": {"enabled": training.precision == "fp16"},
        "zero_optimization": {
            "stage": case["zero_stage"],
            "contiguous_gradients": True,
            "overlap_comm": True,
            "reduce_scatter": True,
            "reduce_bucket_size": bucket,
            "allgather_partitions": True,
            "allgather_bucket_size": bucket,
            "round_robin_gradients": case["zero_stage"] == 2,
            **({"stage3_prefetch_bucket_size": bucket} if case["zero_stage"] == 3 else {}),
        },
    }
    lock = lock.replace(
        artifacts={},
        engine=lock.engine.replace(use_accelerate=True, deepspeed=True, zero_stage=case["zero_stage"]),
        parallel=lock.parallel.replace(backend="nccl" if lock.hardware.device == "cuda" else "gloo"),
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "deepspeed.json").write_text(json.dumps(content))
        return make_engine(lock, model, Path(folder))


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Return the peaks of some steps, from the first byte on, in bytes. Running out of memory is a result."""
    on_gpu = torch.device(case["device"]).type == "cuda"
    _cap(case)
    recorder = Recorder() if on_gpu and case.get("record") else None
    try:
        step = Step(case, case["micro_batch"])
        if recorder:
            recorder.mark("built")
            step.follow(recorder.mark)
        for number in range(STEPS):
            if recorder:
                recorder.mark(f"step {number}")
            step()
    except torch.OutOfMemoryError as error:
        return {"out_of_memory": str(error)[:300]}
    if not on_gpu:
        return {"peak_allocated_bytes": None, "peak_reserved_bytes": None, "device_used_bytes": None}
    torch.cuda.synchronize()
    found = {
        "peak_allocated_bytes": torch.cuda.max_memory_allocated(),
        "peak_reserved_bytes": torch.cuda.max_memory_reserved(),
        "reserved_bytes": torch.cuda.memory_reserved(),
        "device_used_bytes": _nvml().get("used_bytes") if case["alone"] else None,
        "peak_requested_bytes": torch.cuda.memory_stats().get("requested_bytes.all.peak"),
        "retries": torch.cuda.memory_stats().get("num_alloc_retries", 0),
    }
    if recorder:
        recorder.mark("end")
        kept = {key: case[key] for key in ("name", "micro_batch", "request", "zero_stage")}
        write(Path(case["record"]), {**recorder.stop(), **kept, "found": found})
    return found


def bisect(case: dict[str, Any]) -> dict[str, Any]:
    """Return the largest micro-batch whose steps run under the cap, to 1 %, and every one that was tried."""
    _cap(case)
    tried: list[list[Any]] = []

    def fits(micro_batch: int) -> bool:
        tried.append([micro_batch, _runs(case, micro_batch)])
        left = torch.cuda.memory_allocated()
        if left > LEFT_OVER:
            raise RuntimeError(f"{left} bytes are left over after micro-batch {micro_batch}: no fair next try")
        return bool(tried[-1][1])

    low, high = 0, max(1, int(case["guess"]))
    while fits(high):
        low, high = high, 2 * high
        if high > 1 << 16:
            raise RuntimeError("the cap was never met")
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return {"largest": low, "tried": tried}


def _runs(case: dict[str, Any], micro_batch: int) -> bool:
    step = None
    try:
        step = Step(case, micro_batch)
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
        fits = True
    except torch.OutOfMemoryError as error:
        error.__traceback__ = None  # its frames hold the tensors
        fits = False
    del step
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    return fits


def _cap(case: dict[str, Any]) -> None:
    if case.get("cap_bytes"):
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(case["cap_bytes"] / total, 0)


def main() -> int:
    """Do what the case says."""
    warnings.simplefilter("ignore")
    case = json.load(sys.stdin)
    found = {"facts": lambda _: facts(), "measure": measure, "bisect": bisect}[case["mode"]](case)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
