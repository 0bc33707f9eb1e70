"""Settings of PyTorch's CUDA allocator in variables: ``max_split_size_mb:128,expandable_segments:True``.

Which variable is read depends on the version of torch: up to 2.8 `PYTORCH_CUDA_ALLOC_CONF` is; 2.9 ignores
`expandable_segments` in `PYTORCH_ALLOC_CONF` for CUDA (pytorch/pytorch#183387); in 2.13 parts of torch read the one
first and parts the other (c10/core/AllocatorConfig.h, c10/cuda/CUDAAllocatorConfig.h). So both always get one value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

NATIVE, EXPANDABLE = "native", "expandable_segments"
#: The variables that a script sets.
NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
#: Those that torch reads; the last one with ROCm alone, and only if the second is not set.
READ = (*NAMES, "PYTORCH_HIP_ALLOC_CONF")

_NUMBER, _FRACTION, _SWITCH = r"[0-9]{1,18}", r"0|1(?:\.0*)?|0?\.[0-9]+", "True|False"
_POWER = f"(?:{'|'.join(str(1 << bits) for bits in range(17))})"
#: Options of torch 2.13 by name (c10/core/AllocatorConfig.h, c10/cuda/CUDAAllocatorConfig.h), with the values that it
#: takes; it refuses all others.
_KNOWN = {
    "backend": "native|cudaMallocAsync",
    "expandable_segments": _SWITCH,
    "garbage_collection_threshold": r"0?\.[0-9]*[1-9][0-9]*",
    "graph_capture_record_stream_reuse": _SWITCH,
    "large_segment_size_mb": r"1[1-9]|[2-9][0-9]|[0-9]{3,18}",
    "max_non_split_rounding_mb": _NUMBER,
    "max_split_size_mb": r"[2-9][0-9]|[0-9]{3,18}",
    "per_process_memory_fraction": _FRACTION,
    "pinned_free_catch_all": _SWITCH,
    "pinned_max_cached_size_mb": _NUMBER,
    "pinned_max_round_threshold_mb": _NUMBER,
    "pinned_num_register_threads": _NUMBER,
    "pinned_reserve_segment_size_mb": _NUMBER,
    "pinned_use_background_threads": _SWITCH,
    "pinned_use_cuda_host_register": _SWITCH,
    "pinned_use_hip_host_register": _SWITCH,
    "release_lock_on_cudamalloc": _SWITCH,
    "release_lock_on_hipmalloc": _SWITCH,
    "roundup_power2_divisions": rf"{_POWER}|\[{_POWER}:(0|{_POWER})(,{_POWER}:(0|{_POWER}))*(,>:(0|{_POWER}))?\]",
    "throw_on_cudamalloc_oom": _SWITCH,
}
#: Options that change how much is reserved, and that the replay of the allocator does not follow.
_UNFOLLOWED = frozenset((
    "garbage_collection_threshold", "large_segment_size_mb", "max_non_split_rounding_mb", "max_split_size_mb",
    "roundup_power2_divisions",
))  # fmt: skip
_SHARE = "per_process_memory_fraction"
_SHAPE = re.compile(r"(\w+:(\[[^\[\]]*\]|[^,:\[\]]+)(,|$))*", re.ASCII)
_OPTION = re.compile(r"([^,:\[\]]+)(?::(\[[^\]]*\]|[^,\[\]]*))?(?:,|$)")


def options(text: str) -> dict[str, str]:
    """Return the options of a variable's value, in order; an option without a value has an empty one."""
    return {match[1].strip(): (match[2] or "").strip() for match in _OPTION.finditer(text) if match[1].strip()}


def fault(text: str) -> str | None:
    """Return torch's objection to a variable's value, as the rest of a sentence; None if it accepts it."""
    plain = "".join(text.split())  # torch leaves out white space, too
    if not _SHAPE.fullmatch(plain):
        return "is not a list of `option:value` separated by commas"
    for name, value in options(plain).items():
        if name in _KNOWN and not re.fullmatch(_KNOWN[name], value):
            return f"sets `{name}` to `{value}`, which torch does not accept"
    return None


def unknown(text: str) -> list[str]:
    """The options of a variable's value that torch 2.13 does not know, in order."""
    return [name for name in options(text) if name not in _KNOWN]


def unfollowed(text: str) -> list[str]:
    """The options of a variable's value that change how much is reserved, and that no prediction follows, in order."""
    return [name for name in options(text) if name in _UNFOLLOWED]


def fraction(variables: Mapping[str, object]) -> float:
    """Return the least share of a card's memory, 0 to 1, that variables of an environment let the allocator reserve."""
    said = [options(str(variables.get(name, ""))).get(_SHARE, "") for name in READ]
    return min((float(text) for text in said if re.fullmatch(_FRACTION, text)), default=1.0)


def implied(text: str) -> str | None:
    """Return the allocator that a variable's value selects; None if it selects none, or another backend."""
    found = options(text).get(EXPANDABLE)
    return {"True": EXPANDABLE, "False": NATIVE}.get(found or "")


def by_variables(variables: Mapping[str, object]) -> str | None:
    """Return the allocator that an environment's variables select; None if they leave it open."""
    said = [allocator for name in READ if (allocator := implied(str(variables.get(name, ""))))]
    return said[0] if said else None


def settings(allocator: str, variables: Mapping[str, str]) -> str:
    """The value of both variables for an allocator, with every other option that the given variables hold."""
    found: dict[str, str] = {}
    for name in reversed(READ):
        found |= options(variables.get(name, ""))
    found.pop(EXPANDABLE, None)
    return ",".join([*(f"{key}:{value}" for key, value in found.items()), f"{EXPANDABLE}:{allocator == EXPANDABLE}"])
