"""A whole training step of RAT by attention and image size: `python benchmarks/rat_step.py` prints a table.

The model is the product document's (128 features, 4 blocks, 16 heads, bf16, two samples), the step the runtime's own.
Each runs in a process of its own. Times are medians of ten steps after three; "first" is the first step, in which
FlexAttention's kernels are compiled. Ratios are to `chunked` at the same image size. On a CPU, where `fused` does not
run, a small model is taken.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(ROOT / "runtime"), str(HERE / "memory")]

GIB = 1 << 30
WARM, STEPS = 3, 10
ATTENTIONS = ("chunked", "fused", "full")
LARGE = {"feature_dims": 128, "num_blocks": 4, "num_heads": 16}
SMALL = {"feature_dims": 16, "num_blocks": 1, "num_heads": 2}


def measured(attention: str, side: int, device: str) -> dict[str, Any]:
    """Run the steps here; return seconds of the first, milliseconds of the others, and the peak in bytes."""
    import torch
    from gpu_case import Step

    from tests.helpers.tracing import request

    model = {"name": "rat", "multi_scale": False, "args": LARGE if device == "cuda" else SMALL}
    wanted = request(
        model={**model, "attention_memory": attention},
        data__image_size=[side, side],
        training__precision="bf16",
    )
    step = Step({"request": wanted, "device": device}, 2)

    def timed() -> float:
        began = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    first, *_ = [timed() for _ in range(WARM)]
    times = [timed() for _ in range(STEPS)]
    peak = torch.cuda.max_memory_reserved() if device == "cuda" else None
    return {"first_s": first, "step_ms": 1000 * statistics.median(times), "peak_reserved_bytes": peak}


def apart(*what: str) -> dict[str, Any]:
    """Measure in a process of its own; what failed says so."""
    command = [sys.executable, __file__, "--one", *what]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:90]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", metavar="PIXELS", help="image sizes (96 128 256; 32 on a CPU)")
    parser.add_argument("--one", nargs=3, metavar=("ATTENTION", "PIXELS", "DEVICE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measured(args.one[0], int(args.one[1]), args.one[2])))
        return 0
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU, a small model"
    print(f"{name}, torch {torch.__version__}\n")
    print("| image | attention | first, s | step, ms | over chunked | peak reserved, GiB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for side in args.sides or ((96, 128, 256) if device == "cuda" else (32,)):
        floor = None
        for attention in ATTENTIONS:
            if device == "cpu" and attention == "fused":
                continue
            found = apart(attention, str(side), device)
            if "failed" in found:
                print(f"| {side} | {attention} | {found['failed']} | | | |", flush=True)
                continue
            floor = floor or found["step_ms"]
            peak = found["peak_reserved_bytes"]
            memory = f"{peak / GIB:.2f}" if peak else ""
            times = f"{found['first_s']:.1f} | {found['step_ms']:.0f} | {found['step_ms'] / floor:.2f}"
            print(f"| {side} | {attention} | {times} | {memory} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
