"""Importing and calling what a lock names as `package.module:callable`, with findings instead of tracebacks."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from ratc_runtime.errors import RuntimeFinding


def resolve(role: str, name: str) -> Callable[..., Any]:
    """Return the callable that `package.module:callable` names; raise R509 where there is none.

    The working folder, which run.sh makes the spec's, comes first on the path.
    """
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise RuntimeFinding(
            "R509",
            f"no {role} is called {name!r}",
            help=f"use a built-in name, or package.module:callable for a {role} of your own",
        )
    try:
        target: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            target = getattr(target, part)
    except Exception as error:  # importing runs foreign code, which may raise anything
        raise RuntimeFinding(
            "R509",
            f"{role} {name} cannot be imported",
            f"{type(error).__name__}: {error}",
            f"modules are looked for in {folder} and in the Python environment",
        ) from error
    if not callable(target):
        raise RuntimeFinding("R509", f"{role} {name} is a {type(target).__name__}, not a callable")
    return target  # type: ignore[no-any-return]


def build(role: str, name: str, **arguments: Any) -> Any:
    """Import `name` and call it; raise R509 where either fails, naming the error of the called code."""
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
            f"it was called with {shown}" if shown else "it was called without arguments",
        ) from error
