"""The step of a language model, as the spec of a program describes it, and data for trainers that make it."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset


class Pieces(Dataset[dict[str, torch.Tensor]]):
    """Random pieces of a text: `input_ids` and `labels`, each (length,)."""

    def __init__(self, length: int, vocabulary: int) -> None:
        self.length, self.vocabulary = length, vocabulary

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(self.vocabulary, (self.length,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}

    @staticmethod
    def example(length: int, vocabulary: int, labels: bool) -> dict[str, Any]:
        ids = torch.zeros(length, dtype=torch.int64)
        return {"image": {"input_ids": ids, **({"labels": ids} if labels else {})}, "target": ids}


def own_loss() -> Any:
    """The loss that the model computes itself."""
    return lambda output, target: output.loss


def next_token() -> Any:
    """The loss of the next token, outside the model."""

    def loss(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    return loss
