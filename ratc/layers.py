"""Lays values over one another: spec < cluster_<spec> < slurm_<spec> or lsf_<spec> < RAT_* environment < options.

Every node keeps the name of its layer. Defaults lie below all of these; the schema fills them in.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jsonschema_rs

from ratc.diagnostics import Diagnostic, Severity, Source, Span, did_you_mean
from ratc.schema import is_section, key_paths, subschema
from ratc.spec import keys
from ratc.yaml.parse import Document, Node, parse_value

#: Short names: ``--data-dir`` and ``RAT_DATA_DIR`` both mean ``data.data_dir``.
SHORT_NAMES: dict[str, str] = keys.short_names()
#: Variables that the job script sets or that belong to the runtime: not settings.
NOT_SETTINGS = frozenset({"RAT_CACHE_DIR"})


@dataclass(frozen=True, slots=True)
class Override:
    """A value given outside of files: ``source`` holds the text as given, ``column`` is the value's start in it."""

    path: str
    text: str
    source: Source
    column: int
    layer: str


def overlay_names(spec_name: str, target: str) -> tuple[str, ...]:
    """The files beside a spec that are laid over it for a target, lowest first."""
    return () if target == "local" else (f"cluster_{spec_name}", f"{target}_{spec_name}")


def from_environment(environment: Mapping[str, str], schema: dict[str, Any]) -> tuple[list[Override], list[Diagnostic]]:
    """The ``RAT_*`` variables as overrides. ``RAT_TRAINING__WEIGHT_DECAY`` reaches any key. Code: R107 (a warning)."""
    names = {f"RAT_{short.upper().replace('-', '_')}": path for short, path in SHORT_NAMES.items()}
    names |= {f"RAT_{path.upper().replace('.', '__')}": path for path in key_paths(schema) if "." in path}
    overrides, found = [], []
    for name in sorted(environment):
        if not name.startswith("RAT_") or name in NOT_SETTINGS:
            continue
        source = Source(name, f"{name}={environment[name]}", is_file=False)
        if name in names:
            overrides.append(Override(names[name], environment[name], source, len(name) + 2, name))
        else:
            span = Span(source, 1, 1, 1, len(name) + 1)
            message = f"the environment variable `{name}` names no key of a spec and is ignored"
            found.append(Diagnostic("R107", message, span, helps=did_you_mean(name, names), severity=Severity.WARNING))
    return overrides, found


def from_assignment(text: str) -> Override:
    """``--set path=value`` as an override."""
    path, _, value = text.partition("=")
    shown = f"--set {text}"
    source = Source("--set", shown, is_file=False)
    return Override(path.strip(), value, source, len("--set ") + len(path) + 2, f"--set {path.strip()}")


def from_option(option: str, text: str) -> Override:
    """A short option such as ``--batch-size 8`` as an override."""
    name = f"--{option}"
    source = Source(name, f"{name} {text}", is_file=False)
    return Override(SHORT_NAMES[option], text, source, len(name) + 2, name)


def layer(
    base: Document,
    overlays: Sequence[Document],
    overrides: Sequence[Override],
    schema: dict[str, Any],
    shell_folder: str,
) -> tuple[Document | None, tuple[Diagnostic, ...]]:
    """Lay overlays and overrides over the spec, each value typed by the schema.

    ``shell_folder`` is the shell's folder as seen from the spec's. Code: R107.
    """
    root = base.root
    for overlay in overlays:
        root = _merged(root, overlay.root)
    found: list[Diagnostic] = []
    for override in overrides:
        node, diagnostic = _typed(override, schema, shell_folder)
        if diagnostic:
            found.append(diagnostic)
        elif node:
            root = put(root, override.path.split("."), node)
    return (None if found else Document(root)), tuple(found)


def names_cluster_file(text: str) -> bool:
    """Whether a ``resources.cluster`` is the path of a file, and not a name to look up."""
    return "/" in text or text.endswith((".yaml", ".yml"))


def _merged(below: Node, above: Node) -> Node:
    if not (isinstance(below.value, dict) and isinstance(above.value, dict)):
        return above
    merged = dict(below.value)
    for key, child in above.value.items():
        merged[key] = _merged(merged[key], child) if key in merged else child
    return replace(below, value=merged)


def put(root: Node, path: list[str], node: Node) -> Node:
    """Return the tree with a node at a path. Missing mappings on the way are made; any other value on it is kept."""
    if root.value is not None and not isinstance(root.value, dict):
        return root  # the schema reports it
    children = dict(root.value or {})
    key, rest = path[0], path[1:]
    below = children.get(key, Node({}, node.span, node.key_span, node.layer))
    children[key] = put(below, rest, node) if rest else node
    return replace(root, value=children)


def _meant(path: str, known: Sequence[str]) -> tuple[str, ...]:
    """Return the key that a path can mean: the same key of one other section or of none, else that of a close path."""
    same = [one for one in known if one.rpartition(".")[2] == path.rpartition(".")[2]]
    top = [one for one in same if "." not in one]
    meant = top or (same if len(same) == 1 else [])
    return (f"did you mean `{meant[0]}`?",) if meant else did_you_mean(path, known)


def _typed(override: Override, schema: dict[str, Any], shell_folder: str) -> tuple[Node | None, Diagnostic | None]:
    source, line = override.source, override.source.text
    key_start = 1 if override.column <= len(source.name) + 2 else len("--set ") + 1
    key_span = Span(source, 1, key_start, 1, override.column - 1)
    sub = subschema(schema, override.path) if override.path else None
    if sub is None or is_section(sub):
        what = "is a section, not a key" if sub else "names no key of a spec"
        helps = _meant(override.path, key_paths(schema))
        return None, Diagnostic("R107", f"`{override.path}` {what}", key_span, helps=helps)
    span = Span(source, 1, override.column, 1, max(len(line) + 1, override.column + 1))
    if "=" not in line and source.name == "--set":
        return None, Diagnostic("R107", f"`{line}` gives no value", key_span, helps=("write `--set path=value`",))
    kinds = [sub.get("type")] if isinstance(sub.get("type"), str) else sub.get("type", [])
    text = override.text
    if not text.isascii() and text != text.encode("utf-8", "replace").decode():
        message = f"the value for `{override.path}` is not UTF-8"
        return None, Diagnostic("R107", message, span)
    # From a shell a path is relative to where the shell is; in a spec, to the spec's folder.
    is_path = override.path in keys.paths("folder") or (
        override.path == "resources.cluster" and names_cluster_file(text)
    )
    if is_path and source.name != "--set" and not posixpath.isabs(text) and text:
        text = posixpath.normpath(posixpath.join(shell_folder, text))
    numeric = "number" in kinds and _is_number(text)
    is_yaml = numeric or ("null" in kinds and text in ("null", "~")) or _is_quoted(text, sub)
    if "string" in kinds and not is_yaml:
        return Node(text, span, key_span, override.layer), None
    node = parse_value(source, text, override.column, override.layer)
    if isinstance(node, str):
        return None, Diagnostic("R107", f"the value for `{override.path}` cannot be read: {node}", span)
    return replace(node, span=span, key_span=key_span), None


def _is_quoted(text: str, schema: dict[str, Any]) -> bool:
    """Whether a value has quotes around it, as in a file, and its key does not accept text with them."""
    if len(text) < 2 or text[0] != text[-1] or text[0] not in "'\"":
        return False
    return not jsonschema_rs.Draft202012Validator(schema).is_valid(text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
