"""CUDA's autocast on CPU tensors: the operators that run in the lower precision, in float32, or in the widest type.

CPU autocast keeps softmax, norms and other operators in the lower precision that CUDA's raises to float32. This affects
a third of the memory of an attention model. The lists are those of torch's `ATen/autocast_mode.h` (AT_FORALL_*), which
`aten/src/ATen/autocast_mode.cpp` registers for CUDA; a test compares them with the header of the installed torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

LOWER_PRECISION = [
    "_convolution.deprecated", "_convolution", "conv1d", "conv2d", "conv3d", "conv_tbc", "conv_transpose1d",
    "conv_transpose2d.input", "conv_transpose3d.input", "convolution", "prelu", "addmm", "addmv", "addr", "matmul",
    "einsum", "mm", "mv", "linalg_vecdot", "linear", "addbmm", "baddbmm", "bmm", "chain_matmul", "linalg_multi_dot",
    "_thnn_fused_lstm_cell", "_thnn_fused_gru_cell", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell",
    "_scaled_dot_product_flash_attention", "scaled_dot_product_attention",
]  # fmt: skip
FLOAT32 = [
    "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt",
    "sinh", "tan", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "softplus", "layer_norm",
    "native_layer_norm", "rms_norm", "group_norm", "frobenius_norm.dim", "nuclear_norm", "nuclear_norm.dim",
    "cosine_similarity", "poisson_nll_loss", "cosine_embedding_loss", "nll_loss", "nll_loss2d",
    "hinge_embedding_loss", "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss", "margin_ranking_loss",
    "multilabel_margin_loss", "soft_margin_loss", "triplet_margin_loss", "multi_margin_loss",
    "binary_cross_entropy_with_logits", "dist", "pdist", "cdist", "renorm", "logsumexp", "upsample_nearest1d",
    "_upsample_nearest_exact1d", "upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_nearest3d",
    "_upsample_nearest_exact3d", "upsample_linear1d", "upsample_bilinear2d", "_upsample_bilinear2d_aa",
    "upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bicubic2d_aa",
]  # fmt: skip
FLOAT32_RESULT = [
    "prod", "prod.dim_int", "softmax.int", "log_softmax.int", "cumprod", "cumsum", "linalg_vector_norm",
    "linalg_matrix_norm", "linalg_matrix_norm.str_ord", "sum", "sum.dim_IntList",
]  # fmt: skip
WIDEST = [
    "addcdiv", "addcmul", "atan2", "bilinear", "cross", "dot", "vdot", "grid_sampler", "index_put", "tensordot",
    "scatter_add",
]  # fmt: skip
# norm has no optional dtype: CUDA's rule calls another overload, which takes one.
NORM = {"norm.Scalar": "ScalarOpt_dtype", "norm.ScalarOpt_dim": "ScalarOpt_dim_dtype"}

_KEY = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
# Kept for the life of the process: dropping the Library would take the rules back.
_libraries: list[torch.library.Library] = []
# Lower-precision copies of weights, made once per autocast region, as torch's own cache does.
_copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}


def _eligible(value: Any) -> bool:
    # Only fake tensors, and those that AOTAutograd wraps, stand for tensors on the card; real ones lie on the host,
    # where CUDA's rules do not reach.
    return (
        isinstance(value, (FakeTensor, FunctionalTensor)) and value.is_floating_point() and value.dtype != torch.float64
    )


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_cast(item, dtype) for item in value)
    if not _eligible(value) or value.dtype == dtype:
        return value
    lower = dtype != torch.float32
    weight = value.dtype == torch.float32 and value.requires_grad and value.is_leaf and not value._is_view()
    if not (lower and weight and torch.is_autocast_cache_enabled()):
        return value.to(dtype)
    known = _copies.get(id(value))
    if known is None:
        known = _copies[id(value)] = (value, value.to(dtype))
    return known[1]


def _cast_call(args: tuple[Any, ...], kwargs: dict[str, Any], dtype: torch.dtype) -> tuple[tuple[Any, ...], Any]:
    """Cast a call's arguments from the last to the first.

    `WrapFunction_` of autocast_mode.h casts in the arguments of a call, which GCC evaluates from the right: on an H200
    a convolution's weight is copied before its input.
    """
    named = {key: _cast(value, dtype) for key, value in reversed(kwargs.items())}
    return tuple(_cast(value, dtype) for value in reversed(args))[::-1], named


def _widest(arguments: Any, found: torch.dtype) -> torch.dtype:
    for value in arguments:
        if isinstance(value, (list, tuple)):
            found = _widest(value, found)
        elif _eligible(value) and value.dtype == torch.float32:
            return torch.float32
    return found


def _operator(name: str) -> Any:
    base, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, base), overload or "default")


def _guarded(rule: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_KEY):
            return rule(*args, **kwargs)

    return run


def _in_lower(operator: Any) -> Callable[..., Any]:
    def rule(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype("cpu")
        args, kwargs = _cast_call(args, kwargs, dtype)
        return operator(*args, **kwargs)

    return rule


def _in_float32(operator: Any) -> Callable[..., Any]:
    def rule(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = _cast_call(args, kwargs, torch.float32)
        return operator(*args, **kwargs)

    return rule


def _to_float32(operator: Any) -> Callable[..., Any]:
    names = [argument.name for argument in operator._schema.arguments]
    place = names.index("dtype")
    softmax = operator in (torch.ops.aten.softmax.int, torch.ops.aten.log_softmax.int)
    fused = torch.ops.aten._softmax if operator is torch.ops.aten.softmax.int else torch.ops.aten._log_softmax

    def rule(*args: Any, **kwargs: Any) -> Any:
        given = args[place] if place < len(args) else kwargs.get("dtype")
        if given is not None or not _eligible(args[0]):
            return operator(*args, **kwargs)
        if softmax and args[0].dtype == torch.float16:
            # ATen/native/SoftMax.cpp: on CUDA a half input is widened inside the kernel, without a copy.
            return fused.default(args[0], args[1] if len(args) > 1 else kwargs["dim"], True)
        kwargs["dtype"] = torch.float32
        return operator(*args[:place], **kwargs)

    return rule


def _norm(name: str, overload: str) -> Callable[..., Any]:
    target = getattr(torch.ops.aten.norm, overload)
    defaults: tuple[Any, ...] = (2,) if name == "norm.Scalar" else (2, None, False)

    def rule(*args: Any) -> Any:
        filled = (*args, *defaults[len(args) - 1 :])
        return target(*filled, dtype=torch.float32 if _eligible(args[0]) else args[0].dtype)

    return rule


def _in_widest(operator: Any) -> Callable[..., Any]:
    def rule(*args: Any, **kwargs: Any) -> Any:
        dtype = _widest([*args, *kwargs.values()], torch.get_autocast_dtype("cpu"))
        args, kwargs = _cast_call(args, kwargs, dtype)
        return operator(*args, **kwargs)

    return rule


def forget_copies() -> None:
    """Drop the lower-precision copies of weights."""
    _copies.clear()


def install() -> None:
    """Give `torch.autocast("cpu")` CUDA's rules, and `torch.autocast("cuda")` the same, in this process."""
    if _libraries:
        return
    rules: dict[str, Callable[..., Any]] = {}
    for names, make in (
        (LOWER_PRECISION, _in_lower),
        (FLOAT32, _in_float32),
        (FLOAT32_RESULT, _to_float32),
        (WIDEST, _in_widest),
    ):
        for name in names:
            rules[name] = make(_operator(name))
    rules.update({name: _norm(name, overload) for name, overload in NORM.items()})
    library = torch.library.Library("aten", "IMPL", "AutocastCPU")
    registered = torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCPU")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, rule in rules.items():
            library.impl(name, _guarded(rule), "AutocastCPU", allow_override=True)
        for full in registered:
            name = full.removeprefix("aten::")
            if full.startswith("aten::") and name not in rules:  # CUDA has no rule for it
                library.impl(name, torch.library.fallthrough_kernel, "AutocastCPU", allow_override=True)
    _libraries.append(library)
    _follow_regions()


def _follow_regions() -> None:
    """Clear the copies together with torch's own, and let models that name "cuda" use the traced device."""
    clear = torch.clear_autocast_cache

    def clear_both() -> None:
        forget_copies()
        clear()

    torch.clear_autocast_cache = clear_both
    original = torch.amp.autocast_mode.autocast.__init__

    def init(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        original(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    torch.amp.autocast_mode.autocast.__init__ = init  # type: ignore[method-assign]  # for good: a trace is a process
