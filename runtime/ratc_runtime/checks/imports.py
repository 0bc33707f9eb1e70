"""The modules that a run will import, looked for without importing them."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from importlib.machinery import PathFinder
from pathlib import Path

from ratc_runtime.config.lock import Lock
from ratc_runtime.config.program_lock import ProgramLock
from ratc_runtime.config.yaml_file import open_regular
from ratc_runtime.errors import RuntimeFinding

#: Attributes of `sys` and `site` that change the module search.
_OF_SEARCH = frozenset({"path", "modules", "meta_path", "path_hooks", "addsitedir"})


def check_imports(lock: Lock, folder: Path) -> None:
    """Raise R509 unless Python finds the modules of the lock's callables, and the imports of the user's own modules
    below the spec's `folder`. Nothing is imported.

    Imports in an `if`, a `try` or a function may be missing. There is no check at all if own modules change the search
    path.
    """
    sources = {path: _parsed(folder / path) for path in lock.own_code or {} if path.endswith(".py")}
    trees = {path: tree for path, tree in sources.items() if tree is not None}
    if any(_changes_search(node) for tree in trees.values() for node in ast.walk(tree)):
        return
    wanted = {name.partition(":")[0]: f"`{name}`" for name in _callables(lock) if ":" in name}
    for path, tree in trees.items():
        wanted |= {module: f"{path}:{line}" for module, line in _imports(tree, Path(path)) if module not in wanted}
    # `check_own_code` reports changes of the modules that the lock records.
    recorded = {path.partition(".")[0].removesuffix("/__init__").replace("/", ".") for path in lock.own_code or {}}
    _require({module: place for module, place in wanted.items() if module not in recorded}, folder)


def check_entrypoint_imports(lock: ProgramLock, own_folder: Path) -> None:
    """Raise R509 unless Python finds the modules that the script or the module of the lock imports at its top level.

    Imports in an `if`, a `try` or a function may be missing. There is no check at all if own code changes the search
    path.
    """
    entry = lock.entrypoint
    if entry.kind == "command":
        return
    if entry.kind == "script":  # its own folder is searched, and not the spec's
        file = own_folder / entry.program
        folder = file.parent
    else:
        folder, place = own_folder, own_folder.joinpath(*entry.program.split("."))
        file = place / "__main__.py" if place.is_dir() else place.with_name(f"{place.name}.py")
    own = [_parsed(own_folder / path) for path in lock.own_code or {} if path.endswith(".py")]
    if any(_changes_search(node) for tree in own if tree is not None for node in ast.walk(tree)):
        return
    tree = _parsed(file)
    if tree is not None:
        path = file.relative_to(folder)
        _require({module: f"{path}:{line}" for module, line in _imports(tree, path)}, folder)


def _require(wanted: Mapping[str, str], folder: Path) -> None:
    """Raise R509 unless Python finds all modules, which are mapped to the place that needs each of them."""
    missing = [f"{place} needs {module}" for module, place in wanted.items() if not is_found(module, folder)]
    if missing:
        raise RuntimeFinding(
            "R509",
            "modules that the run needs are not found",
            "\n".join([*missing, f"looked for in {folder.resolve()} and by {sys.executable}"]),
            "install them in the environment of the run, or correct the names in the spec and compile again",
        )


def _callables(lock: Lock) -> list[str]:
    parts = [lock.part(name) for name in lock.tasks or {}] or [lock]
    names = [name for part in parts for name in (part.data.dataset, part.training.loss.name)]
    return [
        lock.model.name,
        *names,
        lock.training.optimizer,
        *lock.training.callbacks,
        *lock.evaluation.scores.values(),
    ]


def _parsed(path: Path) -> ast.Module | None:
    try:
        with open_regular(path) as file:
            return ast.parse(file.read())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None  # importing it will raise the error


def _changes_search(node: ast.AST) -> bool:
    """Return whether code accesses Python's module search path."""
    if isinstance(node, ast.ImportFrom):
        return node.module in ("sys", "site") and any(alias.name in _OF_SEARCH for alias in node.names)
    if not isinstance(node, ast.Attribute) or node.attr not in _OF_SEARCH:
        return False
    return isinstance(node.value, ast.Name) and node.value.id in ("sys", "site")


def _imports(tree: ast.Module, path: Path) -> Iterator[tuple[str, int]]:
    """Yield the full name and the line of each module that a module's top-level statements import."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            above = path.parent.parts[: len(path.parent.parts) - node.level + 1] if node.level else ()
            yield ".".join((*above, node.module)), node.lineno


def is_found(module: str, folder: Path) -> bool:
    """Return whether Python finds a module: one of the user's own by its file, another by its top package."""
    top, *rest = module.split(".")
    if PathFinder.find_spec(top, [str(folder.resolve())]) is not None:
        place = folder.joinpath(top, *rest)
        return place.is_dir() or any(place.parent.glob(f"{place.name}.*"))
    try:
        return top in sys.builtin_module_names or importlib.util.find_spec(top) is not None
    except (ImportError, ValueError):  # it was imported without a spec
        return top in sys.modules
