"""Imports without unused packages, which another package imports only because they are installed.

Each takes several times as long as the import of torch, on every rank. Code that needs one can still import it itself.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

#: By the module that imports it: timm, below RAT, wants W&B for the summaries of its own training script, DeepSpeed
#: wants MLflow for its autotuner.
SKIPPED = {"timm.utils.summary": "wandb", "deepspeed.autotuning.autotuner": "mlflow"}


class _Finder(MetaPathFinder):
    """Finds the modules of `SKIPPED` as Python does, and loads them without the package that they do not need."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in SKIPPED else None
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_without(module: ModuleType) -> None:
                with _as_if_missing(SKIPPED[name]):
                    load(module)

            spec.loader.exec_module = load_without  # type: ignore[method-assign]  # of this one loader
        return spec


def skip_imports() -> None:
    """From now on import the modules of `SKIPPED` without these packages. A second call has no effect."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


@contextlib.contextmanager
def _as_if_missing(package: str) -> Iterator[None]:
    """Make the import of a package fail, as if it were not installed, unless it is already imported."""
    if package in sys.modules:
        yield
        return
    modules: dict[str, Any] = sys.modules
    modules[package] = None
    try:
        yield
    finally:
        del modules[package]
