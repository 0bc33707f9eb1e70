"""The workspaces of cuBLAS, which `CUBLAS_WORKSPACE_CONFIG` sizes: a common variable, for it makes products repeatable.

Source: `aten/src/ATen/cuda/CublasHandlePool.cpp` of torch 2.13 (`parseChosenWorkspaceSize`). Each thread that computes
products has one workspace, which cublasLt shares.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

NAME = "CUBLAS_WORKSPACE_CONFIG"
#: With `0` cublasLt has workspaces of its own, which no prediction follows.
UNIFIED = "TORCH_CUBLASLT_UNIFIED_WORKSPACE"
_PAIR = re.compile(r":([0-9]{1,9}):([0-9]{1,9})", re.ASCII)


def workspace_bytes(variables: Mapping[str, object]) -> int | None:
    """Return the bytes of a workspace by an environment's variables; None if it is torch's default for the card."""
    pairs = _PAIR.findall(str(variables.get(NAME, "")))
    return sum(int(size) * 1024 * int(count) for size, count in pairs) if pairs else None


def fault(text: str) -> str | None:
    """Return the error in a value of `NAME`, as the rest of a sentence; None if cuBLAS accepts it."""
    if re.fullmatch(rf"({_PAIR.pattern})+", text):
        return None
    return f"is `{text}`, and cuBLAS takes `:SIZE:COUNT` in KiB, such as `:4096:8`"


def unfollowed(variables: Mapping[str, object]) -> bool:
    """Return whether the variables ask for workspaces that no prediction follows."""
    return str(variables.get(UNIFIED, "")) == "0"
