"""Looks up the folders and modules that a spec names on this machine, without running any of them.

A folder or a package may be on another machine only, so that is a warning. Only findings in the spec's own folder are
errors.
"""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder

from ratc import compiler, files
from ratc.catalog import tasks
from ratc.diagnostics import Diagnostic, Severity, Span, did_you_mean
from ratc.own_code import callables, signatures
from ratc.plan import Value, Values
from ratc.program import is_program
from ratc.sweep import without_repeats
from ratc.workflow.inputs import Loaded

#: Keys that name a callable, the keys of its arguments, and the arguments that the runtime adds.
_CALLABLES = (
    ("model.name", "model.args", ()),
    ("data.dataset", "data.args", ("data_dir", "split")),
    ("training.loss", "training.loss_args", ()),
    ("training.optimizer", "training.optimizer_args", ("params",)),
)
#: The usual slip: the loss or score itself is named, with outputs and targets as its arguments.
_SLIPS = {
    "loss": ("name a class, or a function that takes `loss_args` and returns the loss",),
    "score": ("name a class, or a function that returns the score",),
}
#: A command that reads the file which follows, and a word that names one.
_INTERPRETER = re.compile(r"(?:ba|da|z)?sh|python[\d.]*")
_FILE = re.compile(r"[^-$][^$]*\.(?:sh|bash|py)")
#: The largest module that is read.
_MAX_BYTES = 4 << 20


def check(settings: Values, folder: str) -> Iterator[Diagnostic]:
    """Check that folders, modules, classes and arguments exist. ``folder`` is the spec's. Codes: R235-R237."""
    yield from absent(settings, folder)
    yield from _callables(settings, folder)


def _callables(settings: Values, folder: str) -> Iterator[Diagnostic]:
    prefixes = [f"tasks.{name}." for name in settings["tasks"].value or {}]
    named: list[tuple[str, Value, Value, tuple[str, ...] | None]] = [
        # Of the data set in the step of a program only `example` is called.
        (name, settings[name], settings[args], None if is_program(settings) and name == "data.dataset" else given)
        for name, args, given in _CALLABLES
    ]
    for prefix in prefixes:
        named.append(("loss", settings[f"{prefix}loss"], settings[f"{prefix}loss_args"], ()))
        own = settings[f"{prefix}data.dataset"], settings[f"{prefix}data.args"]
        named.append(("data.dataset", *own, ("data_dir", "split")))
    listed = settings["training.callbacks"]
    named += [
        ("callbacks", Value(name, "spec", span=listed.span), Value(args, "spec", span=listed.span), ())
        for name, args in callables.callbacks(listed)
    ]
    scores = settings["evaluation.scores"]
    nothing = Value({}, "default")
    named += [("score", Value(name, "spec", span=scores.span), nothing, ()) for name in (scores.value or {}).values()]
    for key, name, args, given in named:
        if isinstance(name.value, str) and ":" in name.value:
            yield from _callable(name, args, given, folder, _SLIPS.get(key.rpartition(".")[2], ()))


def refused(loaded: Loaded) -> tuple[Diagnostic, ...]:
    """Return the errors in a spec's own code, over all its points and trials. Codes: R236, R237.

    `compile` refuses a spec for these.
    """
    assert loaded.settings is not None
    assert loaded.document is not None
    if not callables.of_all_points(loaded.settings):
        return ()
    points, _ = compiler.points(loaded.document)
    study, _ = compiler.study(loaded.document)
    trials = (*points, *(study.points if study else ()))
    runs = [compiler.check_point(loaded.document, point)[0] for point in trials] or [loaded.settings]
    found = (item for run in runs if run is not None for item in _callables(run, loaded.folder))
    return tuple(without_repeats(item for item in found if item.severity is Severity.ERROR))


def absent(settings: Values, folder: str) -> tuple[Diagnostic, ...]:
    """The folders, files and programs of a spec that are not on this machine: warnings. Codes: R235, R236."""
    return tuple(without_repeats((*_folders(settings, folder), *_program(settings, folder))))


def _program(settings: Values, folder: str) -> Iterator[Diagnostic]:
    """Yield a warning if the program that a spec starts is not there."""
    if not is_program(settings):
        return
    script, module = settings["entrypoint.script"], settings["entrypoint.module"]
    # The runtime expands no `~` of a program.
    place = os.path.join(folder, str(script.value))
    if script.value is not None and not os.path.isfile(place):
        yield _not_here("entrypoint.script", str(script.value), script.span, place)
    if module.value is not None:
        yield from _started_module(str(module.value), module.span, folder)
    words = list(settings["entrypoint.command"].value or ())
    command = str(words[0]) if words else ""
    # Without a folder in it, it may be in the environment that the spec names.
    if os.path.dirname(command):
        span, place = settings["entrypoint.command"].span, os.path.join(folder, command)
        if not os.path.isfile(place):
            yield _not_here("entrypoint.command", command, span, place)
        elif not os.access(place, os.X_OK):
            message = f"`entrypoint.command` cannot be run: `{command}` is not executable"
            yield Diagnostic("R235", message, span, helps=(f"run `chmod +x {command}`",), severity=Severity.WARNING)
    elif _INTERPRETER.fullmatch(command) and len(words) > 1 and _FILE.fullmatch(read := str(words[1])):
        place = os.path.join(folder, read)
        if not os.path.isfile(place):
            yield _not_here("entrypoint.command", read, settings["entrypoint.command"].span, place)


def _started_module(module: str, span: Span | None, folder: str) -> Iterator[Diagnostic]:
    """Yield a warning if `python -m MODULE` would not run."""
    path, main = _find(module, folder)[0], _find(f"{module}.__main__", folder)[0]
    if path is None and main is None:  # a folder without `__init__.py` is a package, too
        yield _no_module(module, "`entrypoint.module`", span, False)
    elif path is not None and path.endswith("__init__.py") and main is None:
        message = f"the module `{module}` of `entrypoint.module` is a package without `__main__`"
        yield Diagnostic("R236", message, span, (f"it is {path}",), severity=Severity.WARNING)


def _not_here(path: str, text: str, span: Span | None, place: str) -> Diagnostic:
    message = f"`{path}` is not on this machine: there is no `{text}`"
    notes = (f"looked for at {os.path.abspath(place)}",)
    helps = ("correct the path, or check the spec on the machine of the run",)
    return Diagnostic("R235", message, span, notes, helps, Severity.WARNING)


def _no_module(module: str, of: str, span: Span | None, own: bool) -> Diagnostic:
    message = f"the module `{module}` of {of} is not found"
    looked = "the spec's folder" if own else "the spec's folder and the Python environment of this ratc"
    helps = ("correct the name, or install the package where the run will look for it",)
    severity = Severity.ERROR if own else Severity.WARNING
    return Diagnostic("R236", message, span, (f"looked for in {looked}",), helps, severity)


def _folders(settings: Values, folder: str) -> Iterator[Diagnostic]:
    data = settings.maybe(str, "data.data_dir")
    wanted = [("data.data_dir", data)]
    if data is not None and os.path.isdir(_path(folder, data)):
        paths = [f"tasks.{name}.data.folder" for name in settings["tasks"].value or {}]
        wanted = [(path, os.path.join(data, str(settings[path].value))) for path in paths]
    container = settings["environment.container"].value
    for path, text in (
        *wanted,
        ("environment.venv", settings["environment.venv"].value),
        ("environment.container", container if container and "://" not in container and "/" in container else None),
    ):
        if text is not None and not os.path.exists(_path(folder, text)):
            yield _not_here(path, text, settings[path].span, _path(folder, text))
    yield from _layouts(settings, folder)


def _layouts(settings: Values, folder: str) -> Iterator[Diagnostic]:
    """Yield a warning for each existing folder of data that lacks files of its built-in data set. Code: R235."""
    data = settings.maybe(str, "data.data_dir")
    named = {f"tasks.{name}.": f"tasks.{name}.data.folder" for name in settings["tasks"].value or {}}
    for prefix, path in (named or {"": "data.data_dir"}).items():
        dataset, own = settings[f"{prefix}data.dataset"].value, settings[path].value
        place = None if data is None else os.path.join(_path(folder, data), str(own) if prefix else "")
        if place is None or not os.path.isdir(place):
            continue
        wanted = tasks.LAYOUTS.get(str(dataset), ())
        lacking = [name for name in wanted if not os.path.exists(os.path.join(place, name))]
        if lacking:
            shown = os.path.join(data or "", str(own)) if prefix else data
            message = f"`{shown}` has no {' and no '.join(f'`{name}`' for name in lacking)}"
            notes = (f"the data set `{dataset}` reads {', '.join(f'`{name}`' for name in wanted)} in `{path}`",)
            helps = ("name the folder that holds them; `ratc data check` shows more",)
            yield Diagnostic("R235", message, settings[path].span, notes, helps, Severity.WARNING)


def _path(folder: str, text: str) -> str:
    return os.path.join(folder, os.path.expanduser(text))


def _callable(
    name: Value, args: Value, given: tuple[str, ...] | None, folder: str, if_missing: tuple[str, ...]
) -> Iterator[Diagnostic]:
    """``given`` are the arguments that the runtime adds; None if arguments are not checked. ``if_missing`` is the help
    for an argument that is not given.
    """
    for argument in sorted(set(given or ()).intersection(args.value or ())):
        message = f"`{name.value}` cannot have an argument `{argument}` of its own"
        yield Diagnostic("R237", message, args.span or name.span, (), ("the runtime gives it; remove yours",))
    module, _, attribute = str(name.value).partition(":")
    path, own = _find(module, folder)
    if path is None:
        yield _no_module(module, f"`{name.value}`", name.span, own)
        return
    if not own or not path.endswith(".py"):
        return
    try:
        with files.open_regular(path) as file:
            tree = ast.parse(file.read(_MAX_BYTES))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        reason = error.msg if isinstance(error, SyntaxError) else getattr(error, "strerror", None) or str(error)
        message = f"the module `{module}` of `{name.value}` cannot be read"
        yield Diagnostic("R236", message, name.span, (f"{path}{line}: {reason}",))
        return
    try:
        known = signatures.names(tree)
        if attribute not in known and not attribute.startswith("__"):
            message = f"the module `{module}` has no `{attribute}`"
            yield Diagnostic("R236", message, name.span, (f"it is {path}",), did_you_mean(attribute, known))
            return
        if given is None:
            return
        signature = signatures.signature(tree, attribute)
    except signatures.Unknown:
        return
    for argument, is_extra in signatures.misfits(signature, (*(args.value or {}), *given)):
        if is_extra:
            advice = did_you_mean(argument, signature.takes)
            message = f"`{name.value}` takes no argument `{argument}`"
        else:
            advice = if_missing
            message = f"`{name.value}` needs an argument `{argument}`, which it is not given"
        takes = ", ".join(f"`{taken}`" for taken in signature.takes) or "none"
        note = f"it takes {takes} ({path})"
        from_runtime = (f"the runtime gives it {' and '.join(f'`{item}`' for item in given)}",) if given else ()
        yield Diagnostic("R237", message, args.span or name.span, (note, *from_runtime), advice)


def _find(module: str, folder: str) -> tuple[str | None, bool]:
    """The file of a module, or None; and whether its package is of the spec's folder. Nothing is imported."""
    first, *rest = module.split(".")
    if any(os.path.exists(os.path.join(folder, name)) for name in (f"{first}.py", os.path.join(first, "__init__.py"))):
        return _below(folder, [first, *rest]), True
    if path := _below(folder, [first, *rest]):  # a folder without `__init__.py`
        return path, True
    spec = None if first in sys.builtin_module_names else PathFinder.find_spec(first, _environment())
    if spec is None:
        return ("built-in" if first in sys.builtin_module_names else None), False
    if not rest:
        return spec.origin or "namespace", False
    found = (_below(place, rest) for place in spec.submodule_search_locations or ())
    return next((path for path in found if path), None), False


def _environment() -> list[str]:
    """Return the folders of installed modules: `sys.path` without the current folder."""
    here = os.path.realpath(os.curdir)
    return [path for path in sys.path if path and os.path.realpath(path) != here]


def _below(folder: str, parts: list[str]) -> str | None:
    """Return the file of a module below a folder: `a/b.py`, `a/b/__init__.py` or a compiled `a/b.*.so`; else None."""
    path = os.path.join(folder, *parts)
    for candidate in (f"{path}.py", os.path.join(path, "__init__.py")):
        if os.path.isfile(candidate):
            return candidate
    try:
        siblings = os.listdir(os.path.dirname(path))
    except OSError:
        return None
    compiled = next((name for name in siblings if name.startswith(f"{parts[-1]}.") and name.endswith(".so")), None)
    return os.path.join(os.path.dirname(path), compiled) if compiled else None
