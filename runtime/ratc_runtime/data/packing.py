"""Lossless serialisation of a sample, for the cache of decoded images.

Most images are bytes divided by 255, and most masks are 0 and 1. If that is exact, bit by bit, as checked when packing,
a number takes one byte instead of four.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import torch

_HEAD = struct.Struct("<I")
_ALIGN = 64
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.bool,
    )
}


def pack(image: Any, target: Any, name: str) -> bytes | None:
    """Return the sample as bytes; None if it holds anything else than tensors, text and numbers."""
    blocks: list[torch.Tensor] = []
    try:
        head = json.dumps([_plan(image, blocks), _plan(target, blocks), name], allow_nan=False).encode()
    except (TypeError, ValueError):
        return None
    packed = bytearray(_HEAD.pack(len(head)) + head)
    for block in blocks:
        packed += b"\0" * (-len(packed) % _ALIGN)
        if block.numel():
            packed += block.reshape(-1).view(torch.uint8).numpy().data
    return bytes(packed)


def unpack(packed: memoryview) -> tuple[Any, Any, str]:
    """Return image, target and name, in new memory.

    Raises ValueError, KeyError, TypeError or struct.error if the bytes are not a packed sample.
    """
    (length,) = _HEAD.unpack_from(packed)
    image, target, name = json.loads(bytes(packed[_HEAD.size : _HEAD.size + length]))
    reader = _Reader(packed, _HEAD.size + length)
    return reader.read(image), reader.read(target), name


def _plan(value: Any, blocks: list[torch.Tensor]) -> Any:
    if type(value) is torch.Tensor:
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype not in _DTYPES or value.layout is not torch.strided or value.requires_grad:
            raise TypeError("a tensor of another kind")
        coding, block = _coded(value.detach().contiguous())
        blocks.append(block)
        return {"t": dtype, "c": coding, "s": list(value.shape)}
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("a key that is not text")
        return {"d": {key: _plan(item, blocks) for key, item in value.items()}}
    if isinstance(value, list):
        return [_plan(item, blocks) for item in value]
    if value is None or type(value) in (bool, int, float, str):
        return {"v": value}
    raise TypeError(f"a {type(value).__name__}")


def _coded(tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    if tensor.dtype is torch.float32:
        for coding, factor in (("byte", 1.0), ("byte/255", 255.0)):
            small = (tensor * factor).round_().clamp_(0, 255).to(torch.uint8)
            # Bit by bit: -0.0 equals 0.0 and is not the same.
            if torch.equal(_decoded(coding, small).view(torch.int32), tensor.view(torch.int32)):
                return coding, small
    return "", tensor


def _decoded(coding: str, small: torch.Tensor) -> torch.Tensor:
    full = small.to(torch.float32)
    return full.div_(255) if coding == "byte/255" else full


class _Reader:
    def __init__(self, packed: memoryview, at: int) -> None:
        self.packed, self.at = packed, at

    def read(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.read(item) for item in value]
        if "d" in value:
            return {key: self.read(item) for key, item in value["d"].items()}
        return value["v"] if "v" in value else self._tensor(value["t"], value["c"], value["s"])

    def _tensor(self, dtype: str, coding: str, shape: list[int]) -> torch.Tensor:
        stored = torch.uint8 if coding else _DTYPES[dtype]
        self.at += -self.at % _ALIGN
        number = 1
        for side in shape:
            number *= side
        start, self.at = self.at, self.at + number * stored.itemsize
        if self.at > len(self.packed):
            raise ValueError("a packed sample that is too short")
        if not number:
            return torch.empty(shape, dtype=_DTYPES[dtype])
        view = torch.frombuffer(self.packed[start : self.at], dtype=stored)
        return _decoded(coding, view).reshape(shape) if coding else view.clone().reshape(shape)
