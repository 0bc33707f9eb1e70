"""Importing and calling what a lock names as `package.module:callable`, with findings instead of tracebacks."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models import allowed

#: Folders beside the working folder, which run.sh makes the spec's, in which own modules are looked for.
_folders: list[str] = []
#: Of those and of working folders, the ones that were put on the path here.
_added: set[str] = set()


def look_in(folder: str) -> None:
    """Look for own modules in a folder, too."""
    _folders.append(os.path.abspath(folder))


def resolve(role: str, name: str) -> Callable[..., Any]:
    """Return the callable that `package.module:callable` names.

    Raises R509 if there is none, R580 if it lies where no callable of a spec may, R581 if it would return something
    else than the role wants; whether it lies where it may is known before anything is imported. The spec's folder
    comes last on the path: a module there hides none of Python's and none that is installed.
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
    except Exception as error:  # importing runs foreign code, which may raise anything
        raise RuntimeFinding(
            "R509",
            f"{role} {name} cannot be imported",
            f"{type(error).__name__}: {error}",
            f"modules are looked for in {folders[0]} and in the Python environment",
        ) from error
    if not callable(target):
        raise RuntimeFinding("R509", f"{role} {name} is a {type(target).__name__}, not a callable")
    allowed.check_home(role, name, target)
    allowed.check_type(role, name, target, place)
    return target  # type: ignore[no-any-return]


def _on_path() -> list[str]:
    """Put the folders of own modules last on the path, and take those off it that it had for another working folder."""
    folders = [*_folders, os.getcwd()]
    _added.update(folder for folder in folders if folder not in sys.path)
    sys.path[:] = [place for place in sys.path if place not in _added or place in folders]
    sys.path += [folder for folder in folders if folder not in sys.path]
    return folders


def build(role: str, name: str, **arguments: Any) -> Any:
    """Import `name` and call it; raise R509 if either fails, naming the error of the called code, R580 or R581."""
    return call(role, name, resolve(role, name), **arguments)


def call(role: str, name: str, target: Callable[..., Any], **arguments: Any) -> Any:
    """Call `target`; what it raises becomes R509, except a finding of its own."""
    try:
        return target(**arguments)
    except RuntimeFinding:
        raise
    except Exception as error:  # foreign code may raise anything
        shown = ", ".join(f"{key}={value!r:.40}" for key, value in arguments.items())
        raise RuntimeFinding(
            "R509",
            f"{role} {name} cannot be called",
            f"{type(error).__name__}: {error}",
            (f"it was called with {shown}" if shown else "it was called without arguments")
            + ("; name a class, or a function that returns the loss" if role == "loss" else ""),
        ) from error


def name_of(part: Any) -> str:
    """The name of a function or of an object's class, as a spec writes it."""
    named = part if hasattr(part, "__qualname__") else type(part)
    return f"{named.__module__}:{named.__qualname__.rpartition('.')[2].strip('<>')}"
