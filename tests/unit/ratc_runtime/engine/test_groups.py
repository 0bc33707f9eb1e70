"""The groups of an optimizer: rates and decays of their own, for every built-in optimizer and for own ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ratc_runtime.config.lock import Lock
from ratc_runtime.config.sections import ParameterGroup
from ratc_runtime.engine import TorchEngine, make_optimizer
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.training.step import training_step
from torch import nn

from tests.helpers.lockfile import lock_with
from tests.helpers.packages import EIGHT_BITS

RATE = 0.01


def model() -> nn.Module:
    torch.manual_seed(0)
    parts = {"body": nn.Linear(4, 4), "norm": nn.LayerNorm(4), "head": nn.Linear(4, 1)}
    return nn.ModuleDict(parts)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = model()

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return self.parts["head"](self.parts["norm"](self.parts["body"](value)))


def groups(*values: tuple[list[str], float, float]) -> list[ParameterGroup]:
    return [
        ParameterGroup(match=match, learning_rate_factor=factor, weight_decay=decay) for match, factor, decay in values
    ]


def lock_of(folder: Path, own: list[ParameterGroup], **training: Any) -> Lock:
    lock = lock_with(folder)
    values = {"learning_rate": RATE, "weight_decay": 0.1, "parameter_groups": own, **training}
    return lock.replace(training=lock.training.replace(**values))


def values(optimizer: Any, net: nn.Module) -> dict[str, tuple[float, float]]:
    """Return the rate and the decay of each parameter, by its name."""
    found = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    return {name.removeprefix("parts."): found[id(p)] for name, p in net.named_parameters() if id(p) in found}


OPTIMIZERS = ["adamw", "adam", "sgd", "adafactor", "lion", "muon"]


@pytest.mark.parametrize("name", [*OPTIMIZERS, pytest.param("adamw_8bit", marks=EIGHT_BITS), "torch.optim:NAdam"])
def test_the_first_group_that_matches_gives_rate_and_decay(tmp_path: Path, name: str) -> None:
    own = groups((["*.bias"], 2.0, 0.5), (["parts.body.*", "*norm*"], 0.1, 0.0))
    net = Net()
    momentum = {"momentum": 0.9} if name in ("sgd", "muon") else {}
    optimizer = make_optimizer(net, lock_of(tmp_path, own, optimizer=name, **momentum))
    assert values(optimizer, net) == {
        "body.weight": (0.1 * RATE, 0.0),
        "body.bias": (2 * RATE, 0.0),  # biases have no decay
        "norm.weight": (0.1 * RATE, 0.0),
        "norm.bias": (2 * RATE, 0.0),
        "head.weight": (RATE, 0.1),
        "head.bias": (2 * RATE, 0.0),
    }


def test_each_step_multiplies_the_rate_of_the_schedule(tmp_path: Path) -> None:
    lock = lock_of(tmp_path, groups((["parts.body.*"], 0.5, 0.3)), optimizer="sgd", momentum=0.0)
    net = Net()
    engine = TorchEngine(lock, net)
    engine.verify(lock)
    batch = [(torch.ones(2, 4), torch.zeros(2, 1))] * engine.accumulation
    for rate in (0.2, 0.4):
        training_step(engine, lambda output, target: (output - target).sum(), batch, engine.accumulation, rate, None)
        found = values(engine.optimizer, net)
        assert found["body.weight"] == (0.5 * rate, 0.3)
        assert found["head.weight"] == (rate, 0.1)


def test_a_decay_that_no_group_of_the_lock_has_is_refused(tmp_path: Path) -> None:
    lock = lock_of(tmp_path, groups((["parts.body.*"], 0.5, 0.3)), optimizer="adamw")
    engine = TorchEngine(lock, Net())
    with pytest.raises(RuntimeFinding, match=r"weight decay \[0.0, 0.1, 0.3\], lock \[0.0, 0.1, 0.2\]"):
        engine.verify(lock_of(tmp_path, groups((["parts.body.*"], 0.5, 0.2)), optimizer="adamw"))


def test_frozen_parameters_are_in_no_group(tmp_path: Path) -> None:
    net = Net()
    net.parts["body"].requires_grad_(False)
    own = groups((["parts.body.*"], 0.1, 0.0))
    assert values(make_optimizer(net, lock_of(tmp_path, own)), net).keys() == {
        "norm.weight",
        "norm.bias",
        "head.weight",
        "head.bias",
    }


def test_a_pattern_that_matches_nothing_is_named(tmp_path: Path) -> None:
    own = groups((["parts.body.*"], 0.1, 0.0), (["decoder.*"], 0.1, 0.0))
    with pytest.raises(RuntimeFinding, match=r"parameter_groups: no parameter of the model matches 'decoder") as raised:
        make_optimizer(Net(), lock_of(tmp_path, own))
    assert raised.value.code == "R586"


def test_a_group_that_earlier_ones_leave_nothing_is_named(tmp_path: Path) -> None:
    own = groups((["parts.*"], 0.1, 0.0), (["parts.head.*", "parts.norm.*"], 5.0, 0.0))
    with pytest.raises(RuntimeFinding, match=r"no parameter is left for the group of parts.head.\*, parts") as raised:
        make_optimizer(Net(), lock_of(tmp_path, own))
    assert raised.value.code == "R586"


@pytest.mark.parametrize("made", ["flat", "swapped", "without_the_last"])
def test_an_own_optimizer_with_other_groups_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: str
) -> None:
    (tmp_path / "flat_optimizer.py").write_text(
        "import torch\n"
        "def flat(params):\n"
        "    return torch.optim.SGD([p for group in params for p in group['params']], lr=0.1)\n"
        "def swapped(params):\n"
        "    params[0]['params'], params[-1]['params'] = params[-1]['params'], params[0]['params']\n"
        "    return torch.optim.SGD(params, lr=0.1)\n"
        "def without_the_last(params):\n"
        "    params[-1]['params'] = params[-1]['params'][:-1]\n"
        "    return torch.optim.SGD(params, lr=0.1)\n"
    )
    monkeypatch.chdir(tmp_path)
    own = groups((["parts.body.*"], 0.1, 0.0))
    with pytest.raises(RuntimeFinding, match=r"has not the groups of `training.parameter_groups`") as raised:
        make_optimizer(Net(), lock_of(tmp_path, own, optimizer=f"flat_optimizer:{made}"))
    assert raised.value.code == "R509"


def test_without_groups_a_fingerprint_stays_as_it_was(tmp_path: Path) -> None:
    plain = lock_of(tmp_path, [])
    assert "parameter_groups" not in plain.learnt()["training"]
    assert plain.fingerprint() != lock_of(tmp_path, groups((["*"], 1.0, 0.1))).fingerprint()
