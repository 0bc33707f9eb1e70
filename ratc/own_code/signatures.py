"""The signature of a function or class from a module's source, without running it."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from dataclasses import dataclass


class Unknown(Exception):
    """The source alone does not give the answer: the module would have to run."""


@dataclass(frozen=True, slots=True)
class Signature:
    """The arguments of a callable by name: all of them, and the required ones."""

    takes: tuple[str, ...]
    needs: tuple[str, ...]
    #: Whether it takes any other keyword too.
    open: bool


def names(tree: ast.Module) -> list[str]:
    """The names that a module binds. Raises ``Unknown`` if it can have others."""
    found: list[str] = []
    for node in _statements(tree.body):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.append(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                if alias.name == "*":
                    raise Unknown
                found.append(alias.asname or alias.name.partition(".")[0])
        else:
            found += [child.id for child in ast.walk(node) if isinstance(child, ast.Name) and _is_bound(child)]
    dynamic = {"globals", "exec", "vars", "setattr"}
    if "__getattr__" in found or any(isinstance(node, ast.Name) and node.id in dynamic for node in ast.walk(tree)):
        raise Unknown
    return found


def signature(tree: ast.Module, name: str) -> Signature:
    """The arguments of a function or class of a module. Raises ``Unknown`` if its source does not settle them."""
    if names(tree).count(name) != 1:
        raise Unknown
    node = next((node for node in tree.body if getattr(node, "name", None) == name), None)
    if isinstance(node, ast.FunctionDef) and not node.decorator_list:
        return _arguments(node.args, bound=False)
    if isinstance(node, ast.ClassDef):
        return _constructor(tree, node)
    raise Unknown


def misfits(known: Signature, given: Collection[str]) -> Iterator[tuple[str, bool]]:
    """Yield each argument that does not fit: a given one that is not accepted (True), or a missing one (False)."""
    if not known.open:
        yield from ((name, True) for name in given if name not in known.takes)
    yield from ((name, False) for name in known.needs if name not in given)


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run with a module, without the bodies of its functions and classes."""
    for node in body:
        yield node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        for part in ("body", "orelse", "finalbody"):
            yield from _statements(getattr(node, part, []))
        for handler in getattr(node, "handlers", []):
            yield from _statements(handler.body)


def _is_bound(name: ast.Name) -> bool:
    return isinstance(name.ctx, ast.Store)


def _constructor(tree: ast.Module, node: ast.ClassDef, depth: int = 0) -> Signature:
    methods = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
    plain = not node.decorator_list and not node.keywords and "__new__" not in methods
    if not plain or depth > 10 or any(isinstance(item, (ast.If, ast.Try)) for item in node.body):
        raise Unknown
    if "__init__" in methods:
        if methods["__init__"].decorator_list:
            raise Unknown
        return _arguments(methods["__init__"].args, bound=True)
    bases = [ast.unparse(base) for base in node.bases]
    if all(base in ("object", "nn.Module", "torch.nn.Module") for base in bases):
        return Signature((), (), open=False)
    above = next((item for item in tree.body if isinstance(item, ast.ClassDef) and [item.name] == bases), None)
    if above is None or names(tree).count(above.name) != 1:
        raise Unknown
    return _constructor(tree, above, depth + 1)


def _arguments(args: ast.arguments, bound: bool) -> Signature:
    """Return the arguments by keyword. A required positional-only one is in ``needs`` only, so that no call fits."""
    positional = [*args.posonlyargs, *args.args]
    required = {arg.arg for arg in positional[: len(positional) - len(args.defaults)]}
    required |= {arg.arg for arg, given in zip(args.kwonlyargs, args.kw_defaults, strict=True) if given is None}
    first = {positional[0].arg} if bound and positional else set()
    takes = [arg.arg for arg in (*args.args, *args.kwonlyargs) if arg.arg not in first]
    every = [arg.arg for arg in (*positional, *args.kwonlyargs)]
    return Signature(
        tuple(takes), tuple(name for name in every if name in required - first), open=args.kwarg is not None
    )
