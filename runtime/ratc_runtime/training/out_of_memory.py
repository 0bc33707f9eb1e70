"""Out-of-memory errors: how they are recognised, and the message if no smaller micro-batch is left to try."""

from __future__ import annotations

import gc
import re
from pathlib import Path

import torch

from ratc_runtime.errors import RuntimeFinding

#: torch raises these as plain RuntimeErrors: CUDA's own allocation, and those of cuBLAS and cuDNN for their handles.
_ON_A_DEVICE = re.compile(r"(CUDA|HIP) out of memory|CUDA error: out of memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED")
_ON_THE_HOST = re.compile(r"DefaultCPUAllocator: (can't allocate|not enough) memory")


def explain(error: BaseException, device: torch.device) -> str | None:
    """Return torch's message if an error, or its cause, is that the device is out of memory; else None.

    The host's memory counts only if training runs on the CPU.
    """
    seen: list[BaseException] = []
    step: BaseException | None = None if isinstance(error, RuntimeFinding) else error
    while step is not None and step not in seen:
        seen.append(step)
        text = str(step)
        known = isinstance(step, torch.OutOfMemoryError) or (
            isinstance(step, RuntimeError)
            and (_ON_A_DEVICE.search(text) or (device.type == "cpu" and _ON_THE_HOST.search(text)))
        )
        if known:
            # The first sentences give the requested and the free memory; the rest is advice on the allocator.
            return " ".join(text.split())[:400] or type(step).__name__
        step = step.__cause__ or (None if step.__suppress_context__ else step.__context__)
    return None


def give_back(device: torch.device) -> None:
    """Free the rest of a failed step and the allocator's cache. Call this after the error's traceback is gone.

    cuBLAS's workspaces are freed, too (`CublasHandlePool.cpp`). A step makes these tensors at first use, often in a
    large cached block, and such a block cannot be freed while a part of it is in use. A failed step left gigabytes
    reserved that way, in pieces too small for the next one. cuBLAS makes new ones.
    """
    gc.collect()
    if device.type == "cuda":
        clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
        if clear is not None:
            clear()
        torch.cuda.empty_cache()


def nothing_smaller(when: str, error: str, everywhere: bool) -> RuntimeFinding:
    """Return R511: out of memory with one sample at a time."""
    return RuntimeFinding(
        "R511",
        f"out of memory {when}, and a micro-batch of 1 is the smallest there is",
        error,
        "ratc fit SPEC shows what would fit; set training.activation_checkpointing: true, a smaller data.image_size,"
        " model.attention_memory: fused or chunked (RAT), or a higher training.zero_stage\n"
        "see with nvidia-smi whether another process takes the card's memory",
        everywhere,
    )


def outside_a_step(error: str) -> RuntimeFinding:
    """Return R511: out of memory outside a training step, where the micro-batch makes no difference."""
    return RuntimeFinding(
        "R511",
        "out of memory outside a training step",
        error,
        "the model itself, or its optimizer, does not fit: take a higher training.zero_stage, a smaller model or a"
        " larger card\nsee with nvidia-smi whether another process takes the card's memory",
        everywhere=False,
    )


def ended(when: str, error: str, why: str, split: str, record: Path, checkpoint: Path | None) -> RuntimeFinding:
    """Return R512: the run ends, and its next start takes a smaller micro-batch."""
    begins = f"continues from {checkpoint}" if checkpoint else "begins again, because nothing was saved before"
    return RuntimeFinding(
        "R512",
        f"out of memory {when}; {why}",
        f"{error}\nnothing was saved of the step; {record} says that the next start takes {split}",
        f"run the same command again: it {begins}, with the same global batch",
        everywhere=False,
    )
