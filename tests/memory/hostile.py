"""Models that misbehave, each in its own way, while they are built or called."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import torch
from torch import nn


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(image)
        return out


class DataDependent(_Layer):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out = super().forward(image)
        if out.mean() > 0:  # the line that the finding names
            return out
        return -out


class BooleanMask(_Layer):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out = super().forward(image)
        return out[out > 0]


class Numpy(_Layer):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image) * float(image.detach().numpy().max())


class BatchDependent(_Layer):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out = super().forward(image)
        for _ in range(image.shape[0]):
            out = out + 1
        return out


class Raising(_Layer):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        raise KeyError("no such scale")


class Shapes(_Layer):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image) @ torch.ones(7, 7, device=image.device)


class Chatty(_Layer):
    """Prints a lot, to every stream, also from below Python."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        for _ in range(2000):
            print("x" * 1000)
            print("y" * 1000, file=sys.stderr)
        os.write(1, b"raw")
        return super().forward(image)


class Crashing(_Layer):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        print("last words", flush=True)
        os.abort()


class Greedy(_Layer):
    """Takes host memory without end."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.kept = [bytearray(2**33) for _ in range(64)]
        return super().forward(image)


class HostValues(_Layer):
    """Reads values of small host tensors, which is no dependence on data."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        count = int(torch.prod(torch.tensor(image.shape[1:])))
        scale = float(torch.linspace(0, 1, 5)[3])
        positions = torch.arange(image.shape[-1])
        return super().forward(image) * scale / count + positions.to(image.device)


def exits() -> Any:
    sys.exit(3)


def exits_hard() -> Any:
    os._exit(4)


def raises() -> Any:
    raise ValueError("width must be even")


def sleeps(note: str) -> Any:
    with open(note, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)


def large() -> nn.Module:
    """256 GiB of weights, which tracing must not allocate."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2**23), nn.Linear(2**23, 2**13, bias=False))


def numbers() -> nn.Module:
    """Needs real numbers while it is built: the fake build fails, the real one serves."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 3))
    model[0].weight.data /= model[0].weight.abs().max().item()
    return model
