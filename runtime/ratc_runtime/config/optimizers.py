"""The built-in optimizers of a lock's `training.optimizer`; `engine/optimizer.py` makes them."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from typing import Any

from ratc_runtime.errors import RuntimeFinding


@dataclass(frozen=True, slots=True)
class Optimizer:
    """The facts on an optimizer that need no torch.

    Attributes:
        arguments: The keys of the lock that it has for itself.
        zero: Whether DeepSpeed's ZeRO partitions its states.
        sharded: Whether FSDP2 goes with it.
        stateful: Whether it has a state for every weight that it has changed.
        package: The package that has it beside torch, and the extra of ratc that brings it.
    """

    arguments: tuple[str, ...] = ()
    zero: bool = False
    sharded: bool = False
    stateful: bool = True
    package: tuple[str, str] | None = None


_8BIT = "bitsandbytes", "8bit"

OPTIMIZERS = {
    "adamw": Optimizer(("betas",), zero=True, sharded=True),
    "adam": Optimizer(("betas",), zero=True, sharded=True),
    "sgd": Optimizer(("momentum",), sharded=True, stateful=False),
    "adafactor": Optimizer(),
    "muon": Optimizer(("momentum", "betas")),
    "lion": Optimizer(("betas",), sharded=True, package=("timm", "runtime")),
    "adamw_8bit": Optimizer(("betas",), package=_8BIT),
    "lion_8bit": Optimizer(("betas",), package=_8BIT),
}

#: Those and `package.module:callable`.
PATTERN = f"^({'|'.join(OPTIMIZERS)})$|:"


def of(name: str) -> Optimizer:
    """Return the facts on the optimizer of a lock. An own one has values and states of its own."""
    return OPTIMIZERS.get(name) or Optimizer(stateful=False)


def names(key: str) -> tuple[str, ...]:
    """Return the optimizers for which an attribute is true, or that have an argument."""
    return tuple(
        name for name, facts in OPTIMIZERS.items() if key in facts.arguments or getattr(facts, key, False) is True
    )


def check_package(name: str) -> None:
    """Raise R598 if the package of a lock's optimizer is not installed. It is not imported."""
    package = of(name).package
    if package is None:
        return
    found = importlib.util.find_spec(package[0])
    if found is None or found.origin is None:  # any folder of that name is a package without origin
        raise _missing(name, f"{sys.executable} finds no package {package[0]}")


def load(module: str, name: str) -> Any:
    """Import a module of the package of a lock's optimizer. Raises R598 if it is missing, or fails to be imported."""
    check_package(name)
    try:
        return importlib.import_module(module)
    except Exception as error:  # torchvision below timm, and the libraries of bitsandbytes, fail in their own ways
        raise _missing(name, f"importing {module}: {type(error).__name__}: {error}") from error


def _missing(name: str, note: str) -> RuntimeFinding:
    package = of(name).package
    assert package is not None
    helps = f"pip install 'ratc[{package[1]}]', or use another `training.optimizer` and compile again"
    return RuntimeFinding("R598", f"optimizer {name} needs {package[0]}, which cannot be used here", note, helps)
