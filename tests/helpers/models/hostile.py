"""Models that misbehave, each in its own way, while they are built or called."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import numpy
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


class Triangle(_Layer):
    """Keeps a tensor with an element for each pair of samples, half of a square."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        count = image.shape[0]
        kept = super().forward(image).mean()
        return kept * torch.ones(100 + count * (count - 1) // 2, device=image.device)


class Padded(_Layer):
    """Fills a batch up to a multiple of 8 samples: 2 and 4 look alike."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        full = -(-image.shape[0] // 8) * 8
        return super().forward(image).mean() * torch.ones(full, full, 100, device=image.device)


class Branching(_Layer):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out = super().forward(image)
        return (out * out).exp() if image.shape[0] > 16 else out


class Triples(_Layer):
    """Compares every three samples."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        one = super().forward(image).mean((1, 2, 3))
        return (one[:, None, None] - one[None, :, None] * one[None, None, :]).sum(0)


class Shrinking(_Layer):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image).mean() * torch.ones(100 - image.shape[0], device=image.device)


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
    """Takes host memory without end, and touches none of it: the test's machine may have little."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.kept = [numpy.empty(2**33, numpy.uint8) for _ in range(64)]
        return super().forward(image)


class HostValues(_Layer):
    """Reads values of small host tensors, which is no dependence on data."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        count = int(torch.prod(torch.tensor(image.shape[1:])))
        scale = float(torch.linspace(0, 1, 5)[3])
        positions = torch.arange(image.shape[-1])
        return super().forward(image) * scale / count + positions.to(image.device)


class KnownMask(_Layer):
    """Asks for values of tensors on the device that depend on no data."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.linspace(0, 1, 4))
        self.register_buffer("causal", torch.tril(torch.ones(8, 8)).bool())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out = super().forward(image)
        mask = torch.ones(image.shape[0], image.shape[-1], device=image.device)
        if not mask.all() or (mask == 0).any() or self.causal.all():
            return image.numpy()  # type: ignore[return-value]  # never
        lengths = mask.sum(1).long()
        longest = int(lengths.max())
        assert lengths.tolist() == [longest] * image.shape[0]
        assert longest == image.shape[-1]
        wide = mask[:, None, None, :].expand(-1, 1, longest, -1)
        assert bool((wide > 0.5).all())
        assert torch.equal(mask, torch.full_like(mask, 1.0))
        mask[:, 3:] = 0  # a view of it changes the whole
        assert mask.sum().item() == 3 * image.shape[0]
        assert int(mask.nonzero().shape[0]) == 3 * image.shape[0]
        ids = torch.zeros(longest, dtype=torch.long, device=image.device)
        ids[5:].fill_(1)
        ids.scatter_(0, torch.arange(2, device=image.device), 2)
        assert ids.unique().numel() == 3
        assert float(self.weights[3]) == 1.0
        columns = out[..., mask[0].bool()]  # as many as the mask has
        assert columns.shape[-1] == 3
        return out + columns.mean() + torch.arange(image.shape[0], device=image.device).max().item() * 0


class _Forgotten(_Layer):
    """A known mask becomes unknown; then its value is asked for."""

    def change(self, mask: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        out = super().forward(image)
        mask = self.change(torch.ones(4, 4, device=image.device), out.detach())
        return out if mask.all() else -out


class Overwritten(_Forgotten):
    def change(self, mask: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        mask[0] = out[0, 0, 0, :4]
        return mask


class OverwrittenView(_Forgotten):
    """A view that was taken before sees what is written into the whole later."""

    def change(self, mask: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        view = mask.view(-1)[2:6]
        mask.mul_(out.mean())
        return view


class Randomised(_Forgotten):
    def change(self, mask: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return mask.bernoulli_(0.5)


class Drawn(_Forgotten):
    def change(self, mask: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return torch.rand_like(mask) * 0 + 1


class FromWeights(_Forgotten):
    """A bias begins as zeros, but does not stay so."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.layer.bias)  # type: ignore[arg-type]

    def change(self, mask: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return self.layer.bias + mask[0]  # type: ignore[operator, no-any-return]


class RunningMean(_Forgotten):
    """Batch norm's statistics begin as zeros and ones."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def change(self, mask: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        self.norm(out)
        return self.norm.running_mean + 1  # type: ignore[operator, no-any-return]


class Empty(_Forgotten):
    def change(self, mask: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return torch.empty_like(mask)


class FromTarget(_Layer):
    """The image, made of noise by the tracer, is data even if it is compared with itself."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image) if (image == image).all() else image


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


class Stepping(torch.optim.SGD):
    """An optimizer that fails in its step."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        raise ValueError("no step")


class Inputs:
    """A data set whose example has no target."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> object:
        raise AssertionError("a prediction reads no data")

    @staticmethod
    def example() -> dict[str, torch.Tensor]:
        return {"image": torch.zeros(4)}


class Scoring(nn.Module):
    """A loss that fails when it is called."""

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        raise ValueError("no score")
