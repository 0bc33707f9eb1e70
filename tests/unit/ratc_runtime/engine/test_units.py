"""The units of FSDP2, chosen by the classes of a model's layers."""

from __future__ import annotations

import torch
from ratc_runtime.engine.units import classes, possible, repeated, units
from torch import nn


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(value)
        return out


class Net(nn.Module):
    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.norms = nn.ModuleList(nn.LayerNorm(1) for _ in range(4))


def test_repeated_layers_are_units_and_their_children_are_not() -> None:
    assert repeated(Net()) == ["Block"]
    assert list(units(Net(), ["Block"])) == ["blocks.0", "blocks.1", "blocks.2"]


def test_layers_inside_a_single_layer_are_the_repeated_ones() -> None:
    assert repeated(Net(blocks=1)) == ["Linear"]


def test_small_layers_are_no_units() -> None:
    assert "LayerNorm" not in repeated(Net())


def test_a_model_without_lists_is_one_unit() -> None:
    assert repeated(nn.Linear(2, 2)) == []


def test_classes_lists_modules_with_parameters() -> None:
    assert classes(Net()) == ["Block", "LayerNorm", "Linear", "Sequential"]


def test_a_list_of_modules_is_no_unit() -> None:
    """FSDP2 gathers before a module's forward, which a list has not: `fully_shard` refuses it."""
    model = nn.ModuleDict({str(n): nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)]) for n in range(2)})
    assert classes(model) == repeated(model) == ["Linear"]
    assert set(possible(model)) == {"0.0", "0.1", "1.0", "1.1"}
