"""Outputs as they are: a NumPy file for each sample, for tasks whose outputs ratc does not know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ratc_runtime.data.unlabelled import Piece
from ratc_runtime.output.atomic import replacing


class ArrayWriter:
    """Writes `NAME.npz` with the array `output`; of a mapping or list an array each, by its keys with dots between."""

    together = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path_of(self, image: Path) -> Path:
        """Return the sample's file."""
        return self.folder / f"{image.name}.npz"

    def add(self, piece: Piece, output: Any) -> None:
        """Write the output of one sample, without the dimension of the batch."""
        arrays = {name or "output": tensor[0].numpy() for name, tensor in _named(output)}
        with replacing(self.path_of(piece.path)) as work, work.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    def close(self) -> None:
        """Do nothing: every file is already written."""


def _named(output: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(output, torch.Tensor):
        yield name, output
    elif isinstance(output, (Mapping, list, tuple)):
        items = output.items() if isinstance(output, Mapping) else enumerate(output)
        for key, item in items:
            yield from _named(item, f"{name}.{key}" if name else str(key))
