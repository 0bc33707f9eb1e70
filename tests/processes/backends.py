"""The small run of the backends' matrix, and the process that trains it on every backend it is told.

All cases of one world size run in one launch, one after the other: starting processes takes longer than training. As a
program it is such a process: `backends.py FOLDER NAME...`, under torchrun where the world has two processes.
`python tests/processes/backends.py` trains everything and rewrites losses.json; read the difference before committing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parents[1] / "runtime"), str(HERE.parents[1])]

from tests.effort import HANGS_S  # noqa: E402
from tests.helpers.lockfile import BASE, RUNTIME, environment, results, write_data, write_lock  # noqa: E402

GOLDEN = HERE / "losses.json"
#: Relative differences allowed. fp32: sums are taken in another order (ranks, micro-batches, kernels of another CPU),
#: and ten steps carry the last bits on. bf16 keeps 8 bits: one rounding that falls the other way is 0.4 %.
TOLERANCE = {"fp32": 2e-5, "bf16": 1e-2, "fp16": 5e-3}


@dataclass(frozen=True)
class Case:
    """One backend and the values it is tried with; `stage` is DeepSpeed's, `fsdp2` what is sharded, `shards` its
    groups.
    """

    world: int
    accelerate: bool = False
    stage: int | None = None
    precision: str = "fp32"
    accumulation: int = 2
    checkpointing: bool | list[str] = False
    compile: bool = False
    last_batch: str = "drop"
    offload: bool = False
    fsdp2: str | None = None
    shards: int = 0

    @property
    def reference(self) -> str:
        """The case with one process of torch in fp32 that this one must agree with."""
        return "torch-keep" if self.last_batch == "keep" else "torch"


#: As `activation_checkpointing: auto` chooses: not all blocks.
ONE_BLOCK = ["backbone.sga_layers.0"]
#: Every backend hands the optimizer's groups on, or its losses are others.
GROUPS = [{"match": ["backbone.*", "*.bias"], "learning_rate_factor": 0.25, "weight_decay": 0.5}]
#: Each backend with fp32 and bf16; accumulation 1 and 2, checkpointing, kept batches and offload with several.
CASES = {
    "torch": Case(1),
    "torch-keep": Case(1, last_batch="keep"),
    "torch-bf16": Case(1, precision="bf16", accumulation=1),
    "torch-compile": Case(1, compile=True),
    "accelerate": Case(1, accelerate=True, accumulation=1, checkpointing=True),
    "accelerate-bf16": Case(1, accelerate=True, precision="bf16"),
    "ddp": Case(2, checkpointing=True),
    "ddp-keep": Case(2, accumulation=1, last_batch="keep", checkpointing=ONE_BLOCK),
    "ddp-bf16": Case(2, precision="bf16"),
    "accelerate-ddp": Case(2, accelerate=True, accumulation=1),
    "accelerate-ddp-keep": Case(2, accelerate=True, last_batch="keep"),
    "accelerate-ddp-bf16": Case(2, accelerate=True, precision="bf16", checkpointing=True),
    "zero0": Case(2, stage=0, accumulation=1),
    "zero1-bf16-keep": Case(2, stage=1, precision="bf16", last_batch="keep"),
    "zero2-keep": Case(2, stage=2, last_batch="keep"),
    "zero2-bf16": Case(2, stage=2, precision="bf16", accumulation=1, checkpointing=True),
    "zero3": Case(2, stage=3, checkpointing=ONE_BLOCK),
    "zero1-offload": Case(2, stage=1, offload=True, accumulation=1),
    "accelerate-zero0-bf16": Case(2, accelerate=True, stage=0, precision="bf16"),
    "accelerate-zero1": Case(2, accelerate=True, stage=1, checkpointing=True),
    "accelerate-zero2-offload": Case(2, accelerate=True, stage=2, offload=True),
    "fsdp2": Case(2, fsdp2="full", checkpointing=ONE_BLOCK),
    "fsdp2-grads-bf16-keep": Case(2, fsdp2="grads", precision="bf16", last_batch="keep", checkpointing=True),
    "hsdp": Case(4, fsdp2="hybrid", shards=2, accumulation=1),
    "accelerate-fsdp2": Case(2, accelerate=True, fsdp2="full", checkpointing=ONE_BLOCK),
    "accelerate-fsdp2-grads-bf16": Case(2, accelerate=True, fsdp2="grads", precision="bf16", checkpointing=True),
    "accelerate-fsdp2-keep": Case(2, accelerate=True, fsdp2="full", last_batch="keep", checkpointing=True),
    "accelerate-fsdp2-of-four": Case(4, accelerate=True, fsdp2="full", accumulation=1),
    "accelerate-hsdp": Case(4, accelerate=True, fsdp2="hybrid", shards=2, accumulation=1),
    "accelerate-zero3-bf16": Case(2, accelerate=True, stage=3, precision="bf16", accumulation=1),
}


def write_case(folder: Path, name: str, case: Case, device: str = "cpu") -> Path:
    """Write the lock of a case, and deepspeed.json; return the lock's path."""
    micro = 4 // (case.world * case.accumulation)
    artifacts = {} if case.stage is None else {"deepspeed.json": json.dumps(deepspeed_json(case, device))}
    engine = {
        "use_accelerate": case.accelerate,
        "deepspeed": case.stage is not None,
        "zero_stage": case.stage or 0,
        "offload_optimizer": case.offload,
    }
    backend = "nccl" if device == "cuda" else "gloo"
    fsdp2 = {
        "shard": case.fsdp2,
        "shard_size": case.shards or case.world,
        "wrap": None,
        "offload": False,
        "weights": "fp32",
    }
    return write_lock(
        folder / name,
        artifacts,
        engine=engine,
        parallel={**BASE["parallel"], "world_size": case.world, "processes_per_node": case.world, "backend": backend},
        **({"fsdp2": fsdp2} if case.fsdp2 else {}),
        hardware__device=device,
        model__args={**BASE["model"]["args"], "mlp_dropout": 0.0},
        training__micro_batch_size=micro,
        training__gradient_accumulation_steps=case.accumulation,
        training__precision=case.precision,
        training__activation_checkpointing=case.checkpointing,
        training__compile=case.compile,
        training__last_batch=case.last_batch,
        training__parameter_groups=GROUPS,
        output_dir=f"out-{name}",
    )


def deepspeed_json(case: Case, device: str) -> dict[str, Any]:
    """What ratc/targets/deepspeed.py writes, with buckets for a small model."""
    zero: dict[str, Any] = {
        "stage": case.stage,
        "contiguous_gradients": True,
        "overlap_comm": device == "cuda",
        "reduce_scatter": True,
        "reduce_bucket_size": 50_000,
        "allgather_bucket_size": 50_000,
        "round_robin_gradients": case.stage == 2,
    }
    if case.offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device == "cuda"}
    return {
        "train_batch_size": 4,
        "train_micro_batch_size_per_gpu": 4 // (case.world * case.accumulation),
        "gradient_accumulation_steps": case.accumulation,
        "gradient_clipping": 1.0,
        "zero_optimization": zero,
        "bf16": {"enabled": case.precision == "bf16"},
        "fp16": {"enabled": case.precision == "fp16", "initial_scale_power": 12},
        "steps_per_print": 1_000_000_000,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def prepare(folder: Path) -> None:
    """Write the images: 10 global batches of 4 in two epochs, and one sample left over in each."""
    write_data(folder / "data", train=21, val=5)


def names_of(world: int, compiled: bool = False) -> list[str]:
    """Return the cases of one world size, those with torch.compile or the others."""
    return [name for name, case in CASES.items() if case.world == world and case.compile == compiled]


def train_cases(folder: Path, names: list[str], device: str = "cpu") -> dict[str, list[float]]:
    """Train cases of one world size in one launch; return each one's training and validation losses by epoch."""
    world = CASES[names[0]].world
    for name in names:
        write_case(folder, name, CASES[name], device)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)] if world > 1 else []
    command = [sys.executable, *launcher, str(HERE / "backends.py"), str(folder), *names]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=2 * HANGS_S)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return {name: losses(folder, name) for name in names}


def losses(folder: Path, name: str) -> list[float]:
    """Return the losses of a finished run, epoch by epoch: training, validation."""
    return [epoch[key] for epoch in results(folder / f"out-{name}")["epochs"] for key in ("train_loss", "val_loss")]


def work(folder: Path, names: list[str]) -> None:
    """Train the cases, one after the other, in this process, which may be one of two.

    Where torch's DDP is used, reductions-RANK.json beside the lock says how often gradients were reduced.
    """
    from ratc_runtime.config.lock import read_lock
    from ratc_runtime.distributed import world
    from ratc_runtime.training import loop
    from ratc_runtime.training.components import Own

    train = loop.train
    for name in names:
        path = folder / name / "lock.yaml"
        lock = read_lock(path)
        loop.prepare_environment(lock)
        counter = Counter()
        loop.train = counter.around(train)
        assert (
            loop.start(lock, path, folder / "data", folder / f"out-{name}", False, Own(), time.perf_counter()) == 0
        ), name
        (folder / name / f"reductions-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(counter.reductions))
        if lock.engine.use_accelerate:
            from accelerate.state import AcceleratorState

            AcceleratorState._reset_state(reset_partial_state=True)
    world.leave(0)


class Counter:
    """Counts how often DDP reduces a bucket of gradients, and does it as DDP would."""

    def __init__(self) -> None:
        self.reductions = 0

    def around(self, loop: Callable[[Any], int]) -> Callable[[Any], int]:
        """Return the training loop with this counting in it."""
        from torch.nn.parallel import DistributedDataParallel

        def counted(run: Any) -> int:
            if isinstance(run.engine.model, DistributedDataParallel):
                run.engine.model.register_comm_hook(self, Counter.reduce)
            return loop(run)

        return counted

    @staticmethod
    def reduce(self: Counter, bucket):  # type: ignore[no-untyped-def]  # torch refuses an annotation that is text
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        self.reductions += 1
        return allreduce_hook(None, bucket)


def regenerate() -> None:
    """Train everything on the CPU and write losses.json."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        found = {}
        for names in (names_of(1), names_of(2), names_of(4), names_of(1, compiled=True)):
            found |= train_cases(folder, names)
    import torch

    about = "losses of the backends' matrix on a CPU: python tests/processes/backends.py; docs/concepts/backends.md"
    content = {"about": about, "torch": torch.__version__, "losses": found}
    GOLDEN.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = str(RUNTIME)
    if len(sys.argv) > 1:
        work(Path(sys.argv[1]), sys.argv[2:])
    else:
        regenerate()
