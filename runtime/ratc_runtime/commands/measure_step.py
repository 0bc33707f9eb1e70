"""Run the real training step on this machine's GPU and measure it: `python -m ratc_runtime.commands.measure_step`.

Standard input holds the request of docs/reference/trace.md and a `micro_batch`; OUTPUT gets one JSON object. One
process measures one micro-batch, so that measurements do not affect each other. Exit status 0 and a file, which also
reports if memory ran out; 1 and one line of JSON on standard error (R515, R316); 2 for wrong usage or a bad request.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ratc_runtime.config.lock import Lock
    from ratc_runtime.trace.failure import Failure

#: Optimizer steps before the clock starts (state is made, kernels are chosen), and those that are timed.
WARM_UP, TIMED = 2, 4


def main(argv: list[str]) -> int:
    """Measure the request from standard input; return the exit status."""
    if len(argv) != 1:
        print("usage: python -m ratc_runtime.commands.measure_step OUTPUT < request.json", file=sys.stderr)
        return 2
    warnings.simplefilter("ignore")
    # One process, even if a launcher's variables are set.
    for variable in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        os.environ.pop(variable, None)
    from ratc_runtime.trace.request import BadRequest

    try:
        lock = lock_of(json.load(sys.stdin))
    except (ValueError, RecursionError) as error:  # JSON's errors and BadRequest are ValueErrors
        kind = "" if isinstance(error, BadRequest) else f"{type(error).__name__}: "
        print(f"the request cannot be read: {kind}{error}", file=sys.stderr)
        return 2
    result, failure = measure(lock)
    if failure is not None:
        print(failure.line(), file=sys.stderr)
        return 1
    Path(argv[0]).write_text(json.dumps(result) + "\n", encoding="utf-8")
    return 0


def lock_of(content: Any) -> Lock:
    """Return the lock of a request, on cuda. Raises BadRequest if the request is invalid."""
    from ratc_runtime.trace.request import BadRequest, read

    size = content.get("micro_batch") if isinstance(content, dict) else None
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise BadRequest(f"the request's micro_batch is {size!r:.40}")
    request = read({**content, "batch_sizes": [size]})
    if request.engine != "torch":
        raise BadRequest("the request's engine is not torch: a step of DeepSpeed on one GPU is not that of several")
    compiled = bool(content["training"].get("compile", False))
    training = request.lock.training.replace(compile=compiled)
    hardware = request.lock.hardware.replace(device="cuda")
    return request.lock.replace(seed=0, training=training, hardware=hardware)


def measure(lock: Lock) -> tuple[dict[str, Any], Failure | None]:
    """Return the measurement, or the failure that prevented it."""
    import torch

    from ratc_runtime.trace.failure import Failure, explain
    from ratc_runtime.training import out_of_memory

    if not torch.cuda.is_available():
        said = f"there is no GPU to measure on: torch {torch.__version__} sees no CUDA device"
        return {}, Failure("R515", said)
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    # The caller ignores the model's own output.
    try:
        return run(lock, device), None
    except Exception as error:  # the model is the user's
        text = out_of_memory.explain(error, device)
        if text is None:
            return {}, explain(error, "the training step")
    return {"micro_batch": lock.training.micro_batch_size, "fits": False, "error": text}, None


def run(lock: Lock, device: torch.device, probe: Any = None) -> dict[str, Any]:
    """Make the steps and return the measurement. `probe` is `gpu_memory`, or its replacement without a GPU."""
    import torch

    from ratc_runtime.commands import gpu_memory
    from ratc_runtime.engine import TorchEngine
    from ratc_runtime.models.build import build_model
    from ratc_runtime.tasks import make_task
    from ratc_runtime.training.memory_rehearsal import noise
    from ratc_runtime.training.open_run import seed_everything
    from ratc_runtime.training.step import training_step

    probe = probe or gpu_memory
    training = lock.training
    torch.backends.cuda.matmul.allow_tf32 = training.tf32
    torch.backends.cudnn.allow_tf32 = training.tf32
    seed_everything(lock, 0)
    model, task = build_model(lock), make_task(lock)
    criterion = task.loss()
    engine = TorchEngine(lock, model)
    if isinstance(criterion, torch.nn.Module):
        criterion.to(device)
    engine.train()
    probe.forget(device)
    since = 0.0
    for step in range(WARM_UP + TIMED):
        if step == WARM_UP:
            since = probe.clock(device)
        batches = (
            noise(task, lock, training.micro_batch_size, device) for _ in range(training.gradient_accumulation_steps)
        )
        result = training_step(
            engine,
            criterion,
            batches,
            training.gradient_accumulation_steps,
            training.learning_rate,
            training.gradient_clipping,
        )
        result.losses.cpu()  # as the loop does, which reads the loss of every step
    seconds = probe.clock(device) - since
    found = probe.peaks(device)
    samples = TIMED * training.micro_batch_size * training.gradient_accumulation_steps
    return {
        "micro_batch": training.micro_batch_size,
        "fits": True,
        "peak_allocated_bytes": found.allocated,
        "peak_reserved_bytes": found.reserved,
        "device_used_bytes": found.used,
        "outside_bytes": found.outside,
        "device_total_bytes": found.total,
        "samples_per_second": samples / seconds,
        "gradient_bytes": sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad),
        "card": probe.name(device),
        "compute_capability": probe.capability(device),
        "driver": probe.driver(),
        "torch": str(torch.__version__),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
