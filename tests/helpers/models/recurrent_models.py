"""Recurrent layers for the tests of the trace: rows of an image as a sequence, (B, C, H, W) to (B, C x H, classes)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class Layer(nn.Module):
    """One `nn.LSTM`, `nn.GRU` or `nn.RNN` and a head.

    `packed`: sequences of different lengths, "sorted" or "unsorted"; "unknown": lengths that only real data have.
    """

    def __init__(self, kind: str, width: int, hidden: int, layers: int = 1, packed: str = "", **changes: Any) -> None:
        super().__init__()
        make = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[kind]
        self.layer = make(width, hidden, layers, batch_first=True, **changes)
        sides = 2 if changes.get("bidirectional") else 1
        self.head = nn.Linear(sides * (changes.get("proj_size") or hidden), 10)
        self.packed = packed

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = image.flatten(1, 2)
        if not self.packed:
            return self.head(self.layer(x)[0])  # type: ignore[no-any-return]
        steps = x.shape[1]
        lengths = torch.full((x.shape[0],), steps // 2)
        if self.packed == "unknown":
            lengths = (x[:, :, 0] > 0).sum(1).cpu()
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=self.packed == "sorted")
        out, _ = pad_packed_sequence(self.layer(packed)[0], batch_first=True, total_length=steps)
        return self.head(out)  # type: ignore[no-any-return]


class WithoutCudnn(Layer):
    """The same with cuDNN switched off by the model."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        with torch.backends.cudnn.flags(enabled=False):
            return super().forward(image)


class Frozen(Layer):
    """A layer that is not trained, before one that is: it keeps nothing for backward."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.layer.requires_grad_(False)


class Reused(Layer):
    """One layer called twice in a step."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(image) + super().forward(image.flip(0))


class Evaluating(Layer):
    """A layer in evaluation mode that a gradient passes through, which cuDNN refuses."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.layer.eval()
        return super().forward(image)
