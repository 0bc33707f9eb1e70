"""The allowed callables of a spec: their modules, and their return types. Codes: R580, R581.

A module may be in the spec's folder, elsewhere on the user's own path, or in an installed library of models: torch
itself, a package whose metadata requires torch, or for models `transformers`. Python's own library is never allowed.
The return type of a callable is known from its class or its annotation; only the user's own code may omit the
annotation.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from ratc_runtime.errors import RuntimeFinding

Place = Literal["own", "installed"]
#: Libraries of models beside those that need torch by their metadata.
_LIBRARIES = frozenset({"torch", "ratc_runtime"})
#: A library of models that does without torch, too. Only models are taken from it: its data sets load pickles.
_FOR_MODELS = "transformers"
_INSTALLED = frozenset({"site-packages", "dist-packages"})
#: Annotations without information.
_ANYTHING = (inspect.Parameter.empty, Any, object)


def place_of(role: str, name: str, module: str, folders: Sequence[str]) -> Place:
    """Return the place of a name's module, without importing it. Raises R580 if it is not allowed there.

    A missing module counts as the user's own: its import will raise the error.
    """
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names or top == "__main__":
        raise _refused(role, name, f"{top} is a module of Python's own library", folders, top)
    found = _found(top)
    beside = _module_file(top, folders)
    if found is None or (beside is not None and _inside(found, beside.parent)):
        return "own"
    if beside is not None:
        did = "this process has imported" if top in sys.modules else "Python finds"
        raise _refused(role, name, f"{did} {found} before {beside}", folders, top)
    if not _INSTALLED.intersection(found.parts):
        return "own"
    if not (_is_library(top) or (role == "model" and top == _FOR_MODELS)):
        raise RuntimeFinding(
            "R580",
            f"{role} {name} is not used: {top} is not a library of models",
            f"{found} is installed, and its metadata names no need of torch",
            "import it in a module of your own beside the spec, and name that one",
        )
    return "installed"


def check_modules(paths: Sequence[str], folder: Path) -> None:
    """Raise R580 if Python would find another module before one of the user's own. Nothing is imported.

    `paths` are the modules' paths relative to the spec's folder, which need not be on Python's path yet.
    """
    for top in sorted({re.split(r"[/.]", path)[0] for path in paths}):
        found, beside = _found(top), _module_file(top, [str(folder)])
        if found is not None and beside is not None and not _inside(found, folder):
            raise _refused("own module", top, f"Python finds {found} before {beside}", [str(folder)], top)


def unrecorded(known: Collection[str], folder: Path) -> list[str]:
    """Return the user's modules of a folder that this process has imported and that are not `known`.

    Paths are relative to the folder, and sorted. A program that is run is not imported.
    """
    base, found = folder.resolve(), set()
    for name, module in list(sys.modules.items()):
        file, top = getattr(module, "__file__", None), name.partition(".")[0]
        if top in (*sys.stdlib_module_names, "__main__", "ratc_runtime"):
            continue
        if not isinstance(file, str) or not os.path.isabs(file):  # torch has modules that lie nowhere
            continue
        # Not resolved: a link is recorded under its own name.
        path = Path(os.path.abspath(file))
        if path.is_relative_to(base) and not _INSTALLED.intersection(path.parts):
            found.add(str(path.relative_to(base)))
    return sorted(found - set(known))


def check_hidden(folder: Path) -> None:
    """Raise R580 if a module of the folder has the name of one of Python's or of an installed one. A launcher started
    there as `python -m` would import it instead.
    """
    for path in sorted([*folder.glob("*.py"), *folder.glob("*/__init__.py")]):
        beside = path.parent if path.name == "__init__.py" and path.parent != folder else path
        found = None if beside.stem in sys.stdlib_module_names else _found(beside.stem)
        if beside.stem in sys.stdlib_module_names or (found and _INSTALLED.intersection(found.parts)):
            whose = "Python's own library" if found is None else f"the installed {found}"
            raise RuntimeFinding(
                "R580",
                f"{path.relative_to(folder)} beside the spec has the name of a module of {whose}",
                "the launcher would import it in place of that one",
                f"rename {beside}",
            )


def check_home(role: str, name: str, target: Any) -> None:
    """Raise R580 if a module's attribute is defined in Python's own library."""
    plain = _unwrapped(target)
    home = getattr(plain, "__module__", None) or getattr(type(plain), "__module__", "") or ""
    top = str(home).partition(".")[0]
    if top in sys.stdlib_module_names and top != "__main__":
        raise _refused(role, name, f"what it leads to is defined in {home}, a module of Python's own library", [], "")


def check_type(role: str, name: str, target: Any, place: Place) -> None:
    """Raise R581 unless a callable is a class of the role's type, or a function annotated to return it."""
    plain = _unwrapped(target)
    if inspect.isclass(plain):
        if not _fits(role, plain):
            raise _unfit(role, name, f"it is the class {plain.__qualname__}, which is none of that kind")
        return
    returned = _returned(plain)
    if returned in _ANYTHING or isinstance(returned, typing.TypeVar):
        if place == "installed":
            raise _unfit(role, name, "it has no return annotation, and it is not code of your own")
    elif not _fits_annotation(role, returned):
        raise _unfit(role, name, f"it says that it returns {_shown(returned)}")


def _unwrapped(target: Any) -> Any:
    while isinstance(target, functools.partial):
        target = target.func
    return target


def _found(top: str) -> Path | None:
    """Return the file or folder of a module; None if it is missing or built in."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):  # a module that a program made for itself
        return None
    if spec is None:
        return None
    if spec.origin not in (None, "built-in", "frozen", "namespace"):
        return Path(str(spec.origin))
    places = list(spec.submodule_search_locations or ())
    return Path(places[0]) if places else None


def _module_file(top: str, folders: Sequence[str]) -> Path | None:
    """Return the file of that module in one of the folders."""
    for folder in map(Path, folders):
        for path in (folder / top / "__init__.py", folder / f"{top}.py"):
            if path.is_file():
                return path
    return None


def _inside(path: Path, folder: Path) -> bool:
    whole, place = path.resolve(), folder.resolve()
    return place in whole.parents and not _INSTALLED.intersection(whole.relative_to(place).parts)


def _is_library(top: str) -> bool:
    """Return whether a package is torch, or requires torch in its metadata."""
    if top in _LIBRARIES:
        return True
    for distribution in metadata.packages_distributions().get(top, [top]):
        try:
            needs = metadata.requires(distribution) or []
        except metadata.PackageNotFoundError:
            continue
        if any(re.match(r"torch(?![\w-])", need) and "extra ==" not in need for need in needs):
            return True
    return False


def _fits(role: str, kind: Any) -> bool:
    """Return whether a class has the role's type."""
    if role == "model":
        from torch import nn

        from ratc_runtime.models import hugging_face

        return issubclass(kind, nn.Module) or hugging_face.is_config(kind)
    if role == "dataset":
        return all(hasattr(kind, method) for method in ("__len__", "__getitem__")) or _is_data_set(kind)
    if role == "optimizer":
        import torch

        return issubclass(kind, torch.optim.Optimizer)
    if role == "callback":
        from ratc_runtime.callbacks import Callback

        return issubclass(kind, Callback)
    # Checked on the class itself, because every class is callable.
    return any("__call__" in vars(one) for one in kind.__mro__)


def _is_data_set(kind: type) -> bool:
    from torch.utils.data import Dataset

    return issubclass(kind, Dataset)


def _returned(target: Any) -> Any:
    """Return a function's return annotation; `inspect.Parameter.empty` if there is none, or it cannot be evaluated."""
    function: Any = target if inspect.isroutine(target) else type(target).__call__
    function = inspect.unwrap(function)
    try:
        return typing.get_type_hints(function).get("return", inspect.Parameter.empty)
    except Exception:  # annotations are code of the function's module
        return inspect.Parameter.empty


def _fits_annotation(role: str, returned: Any) -> bool:
    origin = typing.get_origin(returned)
    if origin is typing.Union or origin is types.UnionType:
        parts = [part for part in typing.get_args(returned) if part is not type(None)]
        return all(_fits_annotation(role, part) for part in parts)
    kind = origin or returned
    if kind is Callable:
        return role in ("loss", "score")
    return inspect.isclass(kind) and _fits(role, kind)


def _shown(returned: Any) -> str:
    return getattr(returned, "__qualname__", None) or str(returned)


_WANTED = {
    "model": "a torch.nn.Module",
    "dataset": "a data set, with __len__ and __getitem__",
    "optimizer": "a torch.optim.Optimizer",
    "callback": "a ratc_runtime.callbacks.Callback",
    "score": "a score, which can be called with output and target",
    "loss": "a loss, which can be called with output and target",
}


def _refused(role: str, name: str, why: str, folders: Sequence[str], top: str) -> RuntimeFinding:
    beside = _module_file(top, folders) if top else None
    help = f"rename {beside}" if beside else f"name a {role} of your own, or of a library of models"
    return RuntimeFinding("R580", f"{role} {name} is not used: {why}", help=help)


def _unfit(role: str, name: str, why: str) -> RuntimeFinding:
    wanted = _WANTED.get(role, role)
    helps = {"loss": "a plain function of output and target is given by a callable that returns it"}
    return RuntimeFinding(
        "R581",
        f"{role} {name} is not called: it does not give {wanted}",
        why,
        helps.get(role, "name a class of that kind, or annotate the function's return type"),
    )
