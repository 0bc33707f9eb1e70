"""The units of FSDP2, chosen by the classes of a model's layers."""

from __future__ import annotations

from ratc_runtime.engine.units import classes, repeated, units
from torch import nn


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))


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
    assert classes(Net()) == ["Block", "LayerNorm", "Linear", "ModuleList", "Sequential"]
