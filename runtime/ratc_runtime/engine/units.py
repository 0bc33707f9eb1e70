"""The units of FSDP2: modules whose weights are gathered together, chosen by the names of their classes.

Accelerate's policy takes names of classes, too, so `accelerate.yaml` says the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import nn

#: Modules whose entries are layers of one kind, often.
_LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
#: A repeated layer is a unit from this share of the model's parameters on, to limit the number of collectives. Chosen,
#: not measured.
SMALLEST_SHARE = 0.01


def elements(module: nn.Module) -> int:
    """Return the parameters' elements of a module and all below it."""
    return sum(parameter.numel() for parameter in module.parameters())


def _computes(module: nn.Module) -> bool:
    """Return whether a module has a forward of its own, which a list of modules lacks: FSDP2 gathers before it."""
    return type(module).forward is not nn.Module.forward


def repeated(model: nn.Module) -> list[str]:
    """Return the classes of a model's repeated layers, in the order of their first one.

    A class is one of them if at least two of its modules are entries of a list, sequence or mapping of modules, and
    the smallest of these has a hundredth of the model's parameters. Layers within such layers are not looked at.
    """
    least = max(1.0, SMALLEST_SHARE * elements(model))
    found: list[str] = []

    def look(module: nn.Module) -> None:
        children = list(module.children())
        counts = Counter(type(child).__name__ for child in children) if isinstance(module, _LISTS) else Counter()
        for child in children:
            name = type(child).__name__
            alike = [other for other in children if type(other) is type(child)]
            if name in found:
                continue
            if counts[name] >= 2 and _computes(child) and min(map(elements, alike)) >= least:
                found.append(name)
            else:
                look(child)

    look(model)
    return found


def units(model: nn.Module, classes: Sequence[str]) -> dict[str, nn.Module]:
    """Return the modules of these classes by their names in the model, without the model itself."""
    return {name: module for name, module in model.named_modules() if name and type(module).__name__ in classes}


def possible(model: nn.Module) -> dict[str, str]:
    """Return the class of each module that can be a unit, by its name: it has parameters, and a forward of its
    own. The model itself is left out.
    """
    return {
        name: type(module).__name__
        for name, module in model.named_modules()
        if name and elements(module) and _computes(module)
    }


def classes(model: nn.Module) -> list[str]:
    """Return the names of all classes of which a module can be a unit."""
    return sorted(set(possible(model).values()))
