"""The modules beside a spec that its names reach, found by their `import` statements: nothing is imported.

Imports by a computed name are not seen; nor are modules outside the spec's folder.
"""

from __future__ import annotations

import ast
import hashlib
import io
import os
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ratc.files import open_regular
from ratc.own_code.callables import REST

#: Bytes of a source that is parsed, and modules that are followed, at most.
MAX_BYTES, MOST = 4 << 20, 5000
#: Functions and classes of a module that are told apart; one with more has a digest alone.
MOST_PARTS = 400
_SUFFIXES = (".py", ".pyc", ".so", ".pyd")


@dataclass(frozen=True, slots=True)
class Module:
    """One file of the user's: the digest of its bytes, and a short one of each function and class at its top level. The
    short ones ignore comments and blank lines.
    """

    digest: str
    parts: dict[str, str] = field(default_factory=dict)


def modules(names: Iterable[str], folder: str) -> dict[str, Module]:
    """The modules that `package.module:callable` names reach, by their path from the spec's folder."""
    found = {}
    for path in files(names, folder):
        digest = _digest(os.path.join(folder, path))
        data = _read(os.path.join(folder, path)) if path.endswith(".py") else None
        if digest is not None:
            found[path] = Module(digest, _parts(data) if data is not None else {})
    return found


def of_program(kind: str | None, words: Iterable[str], folder: str) -> dict[str, Module]:
    """Return the files of the user's program: a script or a module with its imports, or files that a command names.

    A script imports from its own folder; paths are relative to the spec's.
    """
    first, *rest = words
    if kind == "module":
        return modules([f"{first}.__main__:main", f"{first}:main"], folder)
    if kind == "script":
        above, name = os.path.split(os.path.normpath(first))
        base = name.removesuffix(".py")
        if name.endswith(".py") and base.isidentifier() and not os.path.isabs(above) and not above.startswith(".."):
            found = modules([f"{base}:main"], os.path.join(folder, above))
            return {os.path.join(above, path): module for path, module in found.items()}
    named = [text for text in (first, *(rest if kind == "command" else ())) if not os.path.isabs(text)]
    inside = [text for text in named if ".." not in text.split("/") and os.path.isfile(os.path.join(folder, text))]
    digests = {os.path.normpath(text): _digest(os.path.join(folder, text)) for text in inside}
    return {path: Module(digest) for path, digest in digests.items() if digest is not None}


def files(names: Iterable[str], folder: str) -> list[str]:
    """The files of those modules, by their path from the spec's folder, sorted."""
    seen: set[str] = set()
    ahead = [module for name in names if ":" in name for module in [name.partition(":")[0]]]
    done: set[str] = set()
    while ahead and len(seen) < MOST:
        module = ahead.pop()
        if module in done:
            continue
        done.add(module)
        for path, package in _of_module(module, folder):
            if path not in seen:
                seen.add(path)
                ahead += _imported(_read(os.path.join(folder, path)) or b"", package) if path.endswith(".py") else ()
    return sorted(seen)


def _of_module(module: str, folder: str) -> Iterator[tuple[str, str]]:
    """Yield the files that run on importing a module, each with the package for its relative imports."""
    parts = module.split(".")
    # Python's own modules come before those of the spec's folder.
    if parts[0] in sys.stdlib_module_names or not all(part.isidentifier() for part in parts):
        return
    for depth in range(1, len(parts) + 1):
        place = "/".join(parts[:depth])
        package = ".".join(parts[:depth])
        yield from ((path, package) for path in _candidates(folder, f"{place}/__init__"))
        yield from ((path, ".".join(parts[: depth - 1])) for path in _candidates(folder, place))


def _candidates(folder: str, place: str) -> Iterator[str]:
    """The files that a module of that place may be loaded from: source, bytecode, and compiled extensions."""
    parent, base = os.path.split(place)
    try:
        there = sorted(os.listdir(os.path.join(folder, parent)))
    except OSError:
        return
    for name in there:
        if name.startswith(f"{base}.") and name.endswith(_SUFFIXES):
            path = f"{parent}/{name}" if parent else name
            if os.path.isfile(os.path.join(folder, path)):
                yield path


def _imported(data: bytes, package: str) -> Iterator[str]:
    """The modules that a module imports anywhere in it, under their full names."""
    tree = _parsed(data)
    nodes = list(ast.walk(tree)) if tree else []
    importing = {"import_module", "__import__"}
    importing |= {
        alias.asname
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname and alias.name in importing
    }
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".") if package else []
            above = above[: len(above) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base:
                yield base
            yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in importing and isinstance(node.args[0].value, str):
                yield node.args[0].value


def _parts(data: bytes) -> dict[str, str]:
    """Return a short digest of each function and class of a module, and of the rest; empty if it is not Python."""
    tree, lines = _parsed(data), _without_comments(data)
    if tree is None or lines is None:
        return {}
    texts: dict[str, list[str]] = {}
    taken: set[int] = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            own = range(first, (node.end_lineno or node.lineno) + 1)
            taken |= set(own)
            texts.setdefault(node.name, []).extend(lines[number] for number in own if number in lines)
    if len(texts) > MOST_PARTS:
        return {}
    texts[REST] = [text for number, text in lines.items() if number not in taken]
    return {
        name: hashlib.sha256("\n".join(kept).encode()).hexdigest()[:12]
        for name, kept in texts.items()
        if kept or name != REST
    }


def _without_comments(data: bytes) -> dict[int, str] | None:
    """The lines of a module by number, without comments and blank lines; a line of a string is kept as it is."""
    try:
        tokens = list(tokenize.tokenize(io.BytesIO(data).readline))
    except (tokenize.TokenError, SyntaxError, ValueError, RecursionError):
        return None
    lines = dict(enumerate(data.decode(tokens[0].string, errors="replace").split("\n"), 1))
    for token in tokens:
        number, column = token.start
        if token.type == tokenize.COMMENT:
            lines[number] = lines[number][:column].rstrip()
    # Blank lines of a string have no token of their own.
    blank = {token.start[0] for token in tokens if token.type in (tokenize.NL, tokenize.ENDMARKER)}
    return {number: line.rstrip("\r") for number, line in lines.items() if number not in blank or line.strip()}


def _parsed(data: bytes) -> ast.Module | None:
    try:
        return ast.parse(data)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _digest(path: str) -> str | None:
    whole = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while block := file.read(1 << 20):
                whole.update(block)
    except OSError:
        return None
    return f"sha256:{whole.hexdigest()}"


def _read(path: str) -> bytes | None:
    """Return a module's source; None if it cannot be read, or is too large."""
    try:
        with open_regular(path) as file:
            data = file.read(MAX_BYTES + 1)
    except OSError:
        return None
    return data if len(data) <= MAX_BYTES else None
