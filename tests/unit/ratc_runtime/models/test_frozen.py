"""Frozen parameters: the names that patterns match, and patterns that are refused."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from ratc_runtime.engine import TorchEngine
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models.build import build_model
from ratc_runtime.models.frozen import freeze
from torch import nn

from tests.helpers.lockfile import lock_with


def model() -> nn.Module:
    torch.manual_seed(0)
    parts = {"backbone": nn.Linear(4, 4), "norm": nn.LayerNorm(4), "head": nn.Linear(4, 1)}
    return nn.Sequential(OrderedDict(parts))


@pytest.mark.parametrize(
    ("patterns", "trained"),
    [
        ([], ["backbone.weight", "backbone.bias", "norm.weight", "norm.bias", "head.weight", "head.bias"]),
        (["backbone.*"], ["norm.weight", "norm.bias", "head.weight", "head.bias"]),
        (["*.bias", "[bn]*"], ["head.weight"]),
    ],
)
def test_patterns_match_whole_names(patterns: list[str], trained: list[str]) -> None:
    net = model()
    freeze(net, patterns)
    assert [name for name, parameter in net.named_parameters() if parameter.requires_grad] == trained


@pytest.mark.parametrize(
    ("patterns", "code", "words"),
    [
        (["head.*", "backbone"], "R586", "no parameter of the model matches 'backbone'"),
        (["*"], "R585", "no parameter of the model is trained"),
    ],
)
def test_patterns_that_match_nothing_or_everything_are_refused(patterns: list[str], code: str, words: str) -> None:
    with pytest.raises(RuntimeFinding, match=words) as raised:
        freeze(model(), patterns)
    assert raised.value.code == code


def test_frozen_weights_do_not_change_and_have_no_optimizer_state(tmp_path: Path) -> None:
    lock = lock_with(tmp_path)
    plain = build_model(lock)
    names = [name for name, _ in plain.named_parameters()]
    frozen = names[:-2]
    lock = lock.replace(training=lock.training.replace(frozen=frozen, weight_decay=0.5))
    engine = TorchEngine(lock, build_model(lock))
    before = {name: parameter.detach().clone() for name, parameter in engine.module.named_parameters()}
    for parameter in engine.module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    engine.optimizer.step()
    moved = [name for name, parameter in engine.module.named_parameters() if not torch.equal(parameter, before[name])]
    assert moved == names[-2:]
    assert len(engine.optimizer.state) == 2
