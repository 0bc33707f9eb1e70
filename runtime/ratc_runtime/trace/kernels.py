"""Differences of CUDA's kernels from the CPU's in memory: dropout, statistics of norms, workspaces.

Sources: `aten/src/ATen/native/Dropout.cpp`, `SoftMax.cpp`, `cuda/SoftMax.cu`, `layer_norm.cpp`, `group_norm.cpp`,
`aten/src/ATen/cuda/CublasHandlePool.cpp` (default workspaces) of torch 2.13.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

from ratc_runtime.trace import attention, autocast, recurrent

aten: Any = torch.ops.aten

PRODUCTS = frozenset(
    operator.default
    for operator in (aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.addmv, aten.mv, aten.addbmm, aten.dot)
)
STATISTICS = frozenset(
    operator.default
    for operator in (
        aten.native_layer_norm,
        aten.native_group_norm,
        aten.native_batch_norm,
        aten._native_batch_norm_legit,
    )
)
_libraries: list[torch.library.Library] = []


def workspace_bytes(capability: tuple[int, int]) -> int:
    """Return the size of a cuBLAS workspace: `:4096:2:16:8`, and 32 MiB on compute capabilities 9, 10 and 12."""
    return 32 * 2**20 if capability[0] in (9, 10, 12) else 2 * 4096 * 1024 + 8 * 16 * 1024


def widen_statistics(operator: Any, out: Any) -> Any:
    """Return a norm's output with mean and deviation in float32. On the CPU they have a half input's type."""
    if operator not in STATISTICS or out[1].dtype not in attention.HALF:
        return out
    return (out[0], out[1].to(torch.float32), out[2].to(torch.float32))


def copied_bytes(operator: Any, args: Any) -> int:
    """Return the bytes of a CUDA kernel's copy of its input, made before its result and freed at its end.

    Layer norm needs a contiguous one (`layer_norm_cuda` of cuda/layer_norm_kernel.cu). On the CPU no operator shows it.
    """
    place = {aten.native_layer_norm.default: 0, aten.native_layer_norm_backward.default: 1}.get(operator)
    if place is None or args[place].is_contiguous():
        return 0
    return int(args[place].numel() * args[place].element_size())


def working_bytes(operator: Any, args: Any) -> int:
    """Return the bytes that a CUDA kernel allocates after its result and frees at its end.

    Softmax's backward multiplies the gradient by the output first (`softmax_backward_cuda_out` of cuda/SoftMax.cu): one
    more tensor like the gradient.
    """
    if operator is not aten._softmax_backward_data.default:
        return 0
    return int(args[0].numel() * args[0].element_size())


def _softmax(fused: Any) -> Any:
    """Return a softmax that widens a half input inside its kernel if float32 is asked for: `softmax` of SoftMax.cpp."""

    def run(input: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        if input.dtype == torch.float16 and dtype == torch.float32:
            return fused(input, dim, True)
        return fused(input if dtype is None else input.to(dtype), dim, False)

    return run


def _dropout(input: torch.Tensor, p: float, train: bool) -> torch.Tensor:
    if p == 0 or not train or input.numel() == 0:
        return input
    if p == 1:
        return input * torch.zeros((), dtype=input.dtype, device=input.device)
    return aten.native_dropout(input, p, train)[0]


def _without_onednn(call: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.backends.mkldnn.flags(enabled=False):
            return call(*args, **kwargs)

    return run


def install(capability: tuple[int, int]) -> None:
    """Run dropout and attention as CUDA does, and autocast with its rules, in this process."""
    autocast.install()
    if _libraries:
        return
    library = torch.library.Library("aten", "IMPL", "AutogradCPU")

    def attend(*args: Any, **kwargs: Any) -> torch.Tensor:
        return attention.attend(capability, *args, **kwargs)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        library.impl("dropout", _dropout, "AutogradCPU")
        library.impl("softmax.int", _softmax(aten._softmax.default), "AutogradCPU")
        library.impl("log_softmax.int", _softmax(aten._log_softmax.default), "AutogradCPU")
        library.impl("scaled_dot_product_attention", attend, "AutogradCPU")
    _libraries.append(library)
    # Fake tensors have no reserve for oneDNN's fused LSTM: if cuDNN is not taken, the layer runs step by step.
    torch._VF.lstm = _without_onednn(torch._VF.lstm)
    recurrent.install(capability)
