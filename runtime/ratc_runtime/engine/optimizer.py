"""The optimizer, and the choice among torch's implementations of it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import torch
from torch import nn

from ratc_runtime.config import optimizers
from ratc_runtime.config.lock import Lock
from ratc_runtime.engine.groups import make_groups
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models.import_callable import call, resolve
from ratc_runtime.training.step import FACTOR

#: States of torch's and timm's optimizers that have the shape of their parameter.
_ALIKE = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
#: The states of bitsandbytes' optimizers, and the key under which a saved state has them (`Optimizer8bit.state_dict`).
_PACKED = "__bnb_optimizer_quant_state__"
_BLOCK = 256
#: The names of classes that are not those of a spec in capitals.
_KEYS = {"AdamW8bit": "adamw_8bit", "Lion8bit": "lion_8bit"}


def make_optimizer(model: nn.Module, lock: Lock) -> torch.optim.Optimizer:
    """Return the lock's optimizer, of the groups of `make_groups`.

    The update is one fused kernel if torch has one (`fused_for`), else torch's "foreach" implementation. Adafactor,
    Muon and Lion work weight by weight, so that their temporaries are of one weight. With `muon`, AdamW trains all but
    `matrices`. Raises R585 if nothing is left to train, R598 if the optimizer's package is not installed.
    """
    training = lock.training
    wanted = [p for p in model.parameters() if p.requires_grad]
    if not wanted:
        raise RuntimeFinding("R585", "no weight of the model is trained", "all of them are frozen, or there are none")
    if ":" in training.optimizer:
        return _own_optimizer(make_groups(model, wanted, lock), lock)
    if training.optimizer.endswith("_8bit"):
        return _of_8_bits(model, make_groups(model, wanted, lock), lock)
    if training.optimizer != "muon":
        return _made(training.optimizer, make_groups(model, wanted, lock), lock)
    of_muon = matrices(model)
    if not of_muon:
        raise RuntimeFinding(
            "R585",
            "the model has no weight that muon can train",
            "it trains weights with two dimensions that are not embeddings; adamw trains all others",
            "use `optimizer: adamw`",
        )
    chosen = {id(parameter) for parameter in of_muon}
    others = [p for p in wanted if id(p) not in chosen]
    return Muon(make_groups(model, of_muon, lock), make_groups(model, others, lock), lock)


def _own_optimizer(groups: list[dict[str, Any]], lock: Lock) -> torch.optim.Optimizer:
    """Return the optimizer of the lock's callable, from groups with `params`, `weight_decay` and `lr`.

    Raises R509 if the callable fails, returns another object, drops the factors of the groups' learning rates, or makes
    an optimizer whose step needs an argument, R580 or R581 if it is not allowed.
    """
    training = lock.training
    groups = [{"lr": training.learning_rate, **group} for group in groups]
    factors = _by_parameter(groups)
    target = resolve("optimizer", training.optimizer)
    _check_step(target, training.optimizer)
    made = call("optimizer", training.optimizer, target, training.optimizer_args, params=groups)
    if not isinstance(made, torch.optim.Optimizer):
        raise RuntimeFinding(
            "R509",
            f"optimizer {training.optimizer} returned {type(made).__name__}",
            help="return a torch.optim.Optimizer of the groups in `params`",
        )
    _check_step(type(made), training.optimizer)
    if training.parameter_groups and _by_parameter(made.param_groups) != factors:
        raise RuntimeFinding(
            "R509",
            f"optimizer {training.optimizer} has not the groups of `training.parameter_groups`",
            f"each group in `params` has a {FACTOR!r}, by which every step multiplies the learning rate",
            "hand the groups on to torch.optim.Optimizer as they are",
        )
    return made


def _by_parameter(groups: list[dict[str, Any]]) -> dict[int, float | None]:
    """Return the factor of each parameter's learning rate, by its `id`."""
    return {id(parameter): group.get(FACTOR) for group in groups for parameter in group["params"]}


def _check_step(kind: Any, name: str) -> None:
    """Raise R509 if a class of optimizers calls the model by itself, as LBFGS does: its step needs a closure."""
    if not isinstance(kind, type) or not issubclass(kind, torch.optim.Optimizer):
        return
    needed = [
        parameter.name
        for parameter in list(inspect.signature(inspect.unwrap(kind.step)).parameters.values())[1:]
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise RuntimeFinding(
            "R509",
            f"optimizer {name} needs {needed[0]!r} in each step",
            "a run calls `step()` when the gradients of a whole batch are ready",
            "name an optimizer that does not call the model by itself",
        )


def _made(name: str, groups: list[dict[str, Any]], lock: Lock) -> torch.optim.Optimizer:
    kind: Any = {
        "adamw": torch.optim.AdamW,
        "adam": torch.optim.Adam,
        "sgd": torch.optim.SGD,
        "adafactor": torch.optim.Adafactor,
    }.get(name) or optimizers.load("timm.optim.lion", name).Lion
    # A trace cannot follow torch's fused SGD, which has no kernel for fake tensors (torch 2.13).
    parameters = (parameter for group in groups for parameter in group["params"])
    fused = name not in ("sgd", "adafactor", "lion") and fused_for(parameters)
    kernels = {"foreach": False} if name in ("adafactor", "lion") else {"fused": fused, "foreach": not fused}
    arguments = {key: value for key, value in own_values(lock).items() if key in optimizers.of(name).arguments}
    return kind(groups, lr=lock.training.learning_rate, **kernels, **arguments)


def _of_8_bits(model: nn.Module, groups: list[dict[str, Any]], lock: Lock) -> torch.optim.Optimizer:
    """Return bitsandbytes' optimizer with states of 8 bits. It keeps those of small weights in fp32 by itself.

    Those of embeddings stay in fp32, too, as its authors advise (arXiv 2110.02861, section 2.3) and the Trainer does.
    """
    name = lock.training.optimizer
    optim = optimizers.load("bitsandbytes.optim", name)
    kind = optim.AdamW8bit if name == "adamw_8bit" else optim.Lion8bit
    made = kind(groups, lr=lock.training.learning_rate, **own_values(lock))
    # A manager for this optimizer alone: the one of the process knows weights by their addresses, also later ones.
    made.mng = manager = object.__new__(type(made.mng))
    manager.initialize()
    for parameter in embeddings(model):
        manager.override_config(parameter, "optim_bits", 32)
    return made


def embeddings(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights of a model's embeddings."""
    return [
        p
        for module in model.modules()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
        for p in module.parameters(recurse=False)
    ]


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the trained weights for Muon: real ones with two dimensions that are not embeddings.

    Torch's documentation gives embeddings to AdamW.
    """
    embedded = {id(p) for p in embeddings(model)}
    wanted = (p for p in model.parameters() if p.requires_grad and p.dim() == 2 and p.is_floating_point())
    return [p for p in wanted if id(p) not in embedded]


class Muon(torch.optim.Optimizer):
    """Muon for matrices and AdamW for all other weights, with one learning rate, as one optimizer.

    Both share the groups and the states of this one. Muon's updates have the size of AdamW's (`match_rms_adamw`), so
    that one learning rate and one weight decay serve both.
    """

    def __init__(self, of_muon: list[dict[str, Any]], others: list[dict[str, Any]], lock: Lock) -> None:
        training = lock.training
        matrices = torch.optim.Muon(
            of_muon,
            lr=training.learning_rate,
            weight_decay=training.weight_decay,
            momentum=own_values(lock)["momentum"],
            adjust_lr_fn="match_rms_adamw",
        )
        self._parts: list[torch.optim.Optimizer] = [matrices]
        if others:
            self._parts.append(_made("adamw", others, lock))
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self._parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load states and groups. Torch puts new objects in their place."""
        super().load_state_dict(state_dict)
        self._share()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all weights. `closure` computes the loss again, and the gradients with it, as for any optimizer."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss


def own_values(lock: Lock) -> dict[str, Any]:
    """Return the arguments that the lock's optimizer has for itself: `betas`, `momentum`, both (Muon's part of AdamW
    has the former) or none.
    """
    values = {"momentum": lock.training.momentum, "betas": tuple(lock.training.betas)}
    return {key: values[key] for key in optimizers.of(lock.training.optimizer).arguments}


def innermost(optimizer: Any) -> Any:
    """Return an optimizer without its wrappers."""
    while getattr(optimizer, "optimizer", None) is not None:
        optimizer = optimizer.optimizer
    return optimizer


def optimizer_facts(optimizer: Any) -> dict[str, Any]:
    """Return the name, own values and weight decays of the innermost optimizer, without its wrappers."""
    groups = optimizer.param_groups
    betas = {tuple(group["betas"]) for group in groups if "betas" in group}
    momenta = {float(group["momentum"]) for group in groups if "momentum" in group}
    own: dict[str, list[Any]] = {"betas": sorted(betas), "momentum": sorted(momenta)}
    return {
        "optimizer": _KEYS.get(name := type(innermost(optimizer)).__name__, name.lower()),
        **{name: values[0] if len(values) == 1 else values for name, values in own.items() if values},
        "weight decay": {float(group["weight_decay"]) for group in groups if "weight_decay" in group},
    }


def fused_for(parameters: Iterable[torch.Tensor]) -> bool:
    """Return whether torch's fused AdamW or Adam supports these parameters: all real ones, on CUDA and the CPU.

    It reads and writes every number once, while "foreach" makes temporaries of the model's size. On CUDA it is torch's
    fastest, and the peak of the update is lower; on two cores it took a quarter to a sixth of the time of the loop over
    tensors (docs/develop/speed.md). Each element's result depends on that element alone, so it is the same for any
    number of threads; it differs from the loop's in the last bit. With DeepSpeed it updates the flat partitions, on the
    GPU or, offloaded, on the host.
    """
    return all(parameter.is_floating_point() and parameter.device.type in ("cuda", "cpu") for parameter in parameters)


def with_own_kernels(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return an optimizer's saved state with this process's implementation. torch would use the saved one.

    So a checkpoint can move to another kind of device: the step counts are then on the device that the kernels need.
    Raises ValueError if the states are not those of the optimizer's parameters: kernels would read beyond their ends.
    """
    _check_states(saved, optimizer)
    groups = [
        {**group, **{key: own[key] for key in ("fused", "foreach") if key in own}}
        for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True)
    ]
    return {**saved, "param_groups": groups}


def _check_states(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    own = dict(zip(numbers, parameters, strict=True))
    kind = type(innermost(optimizer))
    packed = kind.__module__.startswith("bitsandbytes.") and kind.__name__ in _KEYS
    # What the states of other optimizers are is theirs to know.
    known = packed or kind.__module__.startswith(("torch.", "ratc_runtime.", "timm.optim.lion"))
    for number, state in saved["state"].items():
        if number not in own:
            raise ValueError(f"its optimizer has a state of a parameter {number!r:.40}, which is none")
        if not known:
            continue
        for name, value in state.items():
            if name in _ALIKE and not (value is None or _has(value, own[number].shape)):
                raise _wrong(name, own[number], value)
            if name == "step" and not _is_count(value):
                raise ValueError(f"its optimizer has done {value!r:.60} steps")
        if packed and state:
            _check_packed(state, own[number], innermost(optimizer))


def _check_packed(state: dict[str, Any], parameter: nn.Parameter, optimizer: Any) -> None:
    """Raise ValueError unless a state of bitsandbytes has the tensors that its kernels will read, in their sizes."""
    averages = 1 if optimizer.optimizer_name == "lion" else 2
    found = state.get(_PACKED)
    inside = found if isinstance(found, dict) else {}
    first = inside.get("state1")
    fp32 = isinstance(first, torch.Tensor) and first.dtype == torch.float32
    blocks = (-(-parameter.numel() // _BLOCK),)
    wanted: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    for number in range(1, averages + 1):
        wanted[f"state{number}"] = tuple(parameter.shape), torch.float32 if fp32 else torch.uint8
        if not fp32:
            wanted |= {f"qmap{number}": ((256,), torch.float32), f"absmax{number}": (blocks, torch.float32)}
    for name, (shape, dtype) in wanted.items():
        value = inside.get(name)
        if not _has(value, shape, dtype):
            raise _wrong(name, parameter, value)
    more = [*(inside.keys() - wanted.keys()), *(state.keys() - {_PACKED, "step"})]
    if more or type(state.get("step")) is not int:
        raise ValueError(f"its optimizer's state of a parameter {tuple(parameter.shape)} is not that of its optimizer")


def _has(value: Any, shape: Sequence[int], dtype: torch.dtype | None = None) -> bool:
    alike = isinstance(value, torch.Tensor) and value.layout == torch.strided
    return alike and tuple(value.shape) == tuple(shape) and dtype in (None, value.dtype)


def _wrong(name: str, parameter: torch.Tensor, value: Any) -> ValueError:
    alike = isinstance(value, torch.Tensor) and value.layout == torch.strided
    shape = f"the shape {tuple(value.shape)} of {value.dtype}" if alike else f"{type(value).__name__}"
    return ValueError(f"its optimizer's {name} of a parameter {tuple(parameter.shape)} has {shape}")


def _is_count(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        value = value.item() if value.numel() == 1 else None
    return isinstance(value, (int, float)) and math.isfinite(value) and value >= 0
