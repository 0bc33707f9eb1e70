"""Import and call a lock's `package.module:callable`, with findings instead of tracebacks."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models import allowed

#: Folders beside the working folder, which run.sh makes the spec's, in which own modules are looked for.
_folders: list[str] = []
#: Of those and of working folders, the ones that were put on the path here.
_added: set[str] = set()


def add_search_folder(folder: str) -> None:
    """Search a further folder for own modules."""
    _folders.append(os.path.abspath(folder))


def resolve(role: str, name: str) -> Callable[..., Any]:
    """Return the callable named `package.module:callable`.

    Raises R509 if there is none, R580 if its module is not allowed, R581 if its return type is not the role's. The
    module's place is checked before anything is imported. The spec's folder comes last on the path: a module there
    hides neither Python's own nor installed ones.
    """
    folders = _on_path()
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise RuntimeFinding(
            "R509",
            f"no {role} is called {name!r}",
            help=f"use a built-in name, or package.module:callable for a {role} of your own",
        )
    place = allowed.place_of(role, name, module_name, folders)
    try:
        target: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            target = getattr(target, part)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise RuntimeFinding(
            "R509",
            f"{role} {name} cannot be imported",
            f"{type(error).__name__}: {' '.join(str(error).split())}",
            f"modules are looked for in {folders[0]} and in the Python environment",
        ) from error
    if not callable(target):
        raise RuntimeFinding("R509", f"{role} {name} is a {type(target).__name__}, not a callable")
    allowed.check_home(role, name, target)
    allowed.check_type(role, name, target, place)
    return target


def _on_path() -> list[str]:
    """Put the folders of own modules last on the path, and remove those added for another working folder."""
    folders = [*_folders, os.getcwd()]
    _added.update(folder for folder in folders if folder not in sys.path)
    sys.path[:] = [place for place in sys.path if place not in _added or place in folders]
    sys.path += [folder for folder in folders if folder not in sys.path]
    return folders


def build(role: str, name: str, own: Mapping[str, Any], /, **passed: Any) -> Any:
    """Import `name` and call it. Raises R509 with the called code's error if either fails, R580 or R581."""
    return call(role, name, resolve(role, name), own, **passed)


def call(role: str, name: str, target: Callable[..., Any], own: Mapping[str, Any], /, **passed: Any) -> Any:
    """Call `target` with the lock's `own` arguments and those that ratc passes. Its exceptions become R509, except
    findings. Raises R509 if the lock has an argument that ratc passes.
    """
    if twice := sorted(own.keys() & passed.keys()):
        raise RuntimeFinding(
            "R509",
            f"{role} {name} cannot have an argument `{twice[0]}` of its own",
            help="ratc passes it; remove yours",
        )
    arguments = {**own, **passed}
    try:
        return target(**arguments)
    except RuntimeFinding:
        raise
    except Exception as error:  # the user's code may raise anything
        shown = ", ".join(f"{key}={value!r:.40}" for key, value in arguments.items())
        raise RuntimeFinding(
            "R509",
            f"{role} {name} cannot be called",
            f"{type(error).__name__}: {' '.join(str(error).split())}",
            (f"it was called with {shown}" if shown else "it was called without arguments")
            + ("; name a class, or a function that returns the loss" if role == "loss" else ""),
        ) from error


def name_of(part: Any) -> str:
    """Return the name of a function or of an object's class, as in a spec."""
    named = part if hasattr(part, "__qualname__") else type(part)
    return f"{named.__module__}:{named.__qualname__.rpartition('.')[2].strip('<>')}"
