"""A script's commands, as the grammar of bash reads them: what always runs, and what runs only under a condition.

A line inside a here-document, an array or a quoted text is no command. The parser is tree-sitter's.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

#: What the shell works out when the script runs.
_EXPANSIONS = frozenset(
    ("simple_expansion", "expansion", "command_substitution", "process_substitution", "arithmetic_expansion")
)
_COMMANDS = frozenset(("command", "declaration_command", "unset_command", "test_command"))
#: What is around commands that run in turn, whatever the others do; see :func:`_unfolded`.
_AROUND = frozenset(("list", "pipeline", "redirected_statement"))


@dataclass(frozen=True, slots=True)
class Command:
    """One command: ``text`` as it is written, the ``line`` (from 1) and ``last`` line it stands on, and its ``words``.

    ``words`` is None if it is none that can be read alone. ``unsure`` says why it may not run. ``dynamic`` are the
    places of words that the shell works out only when it runs.
    """

    text: str
    line: int
    last: int
    words: tuple[str, ...] | None
    dynamic: frozenset[int] = frozenset()
    unsure: str = ""


def commands(text: str) -> Iterator[Command]:
    """The commands of a script, in order."""
    tree = _parser().parse(text.encode("utf-8", errors="replace"))
    over = False
    for node in tree.root_node.named_children:
        if node.type == "comment":
            continue
        for command in _of(node):
            yield command if not over else _unsure(command, "it stands behind `exit`")
            over = over or (not command.unsure and command.words is not None and command.words[:1] == ("exit",))


def _unsure(command: Command, why: str) -> Command:
    return Command(command.text, command.line, command.last, command.words, command.dynamic, why)


def _of(node: Node) -> Iterator[Command]:
    """The commands of one statement. What is no command is one without words."""
    for part, unsure in _unfolded(node):
        if part.has_error:
            yield _command(part, "it cannot be read as bash", read=False)
        elif part.type in _COMMANDS:
            yield _command(part, unsure)
        else:
            inner = list(_inside(part))
            yield from inner or [_command(part, unsure, read=False)]


def _unfolded(node: Node) -> Iterator[tuple[Node, str]]:
    """The parts of `a && b`, of `a | b` and of `a > file`; a part is unsure if what stands before it decides."""
    ahead = [(node, "")]
    while ahead:
        node, unsure = ahead.pop()
        children = [child for child in node.named_children if not child.type.endswith("_redirect")]
        if node.has_error or node.type not in _AROUND or not children or _has_heredoc(node):
            yield node, unsure
        elif node.type == "list":
            by_or = any(child.type == "||" for child in node.children)
            is_test = any(child.type == "test_command" or _text(child).startswith("test ") for child in children[:-1])
            asks = unsure or (f"whether it runs depends on `{_text(children[0])}`" if by_or or is_test else "")
            ahead += [(children[-1], asks), *((child, unsure) for child in reversed(children[:-1]))]
        elif node.type == "pipeline":
            ahead.append((children[0], unsure))
        else:
            ahead += [(child, unsure) for child in reversed(children)]


def _has_heredoc(node: Node) -> bool:
    return any(child.type in ("heredoc_redirect", "herestring_redirect") for child in node.children)


def _inside(node: Node) -> Iterator[Command]:
    """The commands in an `if`, a loop or a function."""
    kinds = {
        "if_statement": "in an `if`",
        "case_statement": "in a `case`",
        "for_statement": "in a loop",
        "c_style_for_statement": "in a loop",
        "while_statement": "in a loop",
        "function_definition": "in a function",
        "subshell": "in a subshell",
        "compound_statement": "in a group",
    }
    if node.type not in kinds:
        return
    ahead = list(reversed(node.named_children))
    while ahead:
        part = ahead.pop()
        if part.type in _COMMANDS and part.type != "test_command":
            yield _command(part, f"it stands {kinds[node.type]}")
        elif part.type != "heredoc_redirect":
            ahead += reversed(part.named_children)


def _command(node: Node, unsure: str, read: bool = True) -> Command:
    text = _text(node)
    words = _split(text) if read else None
    dynamic: frozenset[int] = frozenset()
    if words is not None:
        parts = list(node.named_children)
        if node.type == "declaration_command":
            parts = [node, *parts]  # `export` itself is no node
        dynamic = frozenset(number for number, part in enumerate(parts) if number and _is_dynamic(part))
        if len(parts) != len(words):  # some words are more than a node: none is sure
            dynamic = frozenset(range(len(words))) if _is_dynamic(node) else frozenset()
    return Command(text, node.start_point.row + 1, node.end_point.row + 1, words, dynamic, unsure)


def _split(text: str) -> tuple[str, ...] | None:
    try:
        return tuple(shlex.split(re.sub(r"\\\n", " ", text), comments=True))
    except ValueError:
        return None


def _is_dynamic(node: Node) -> bool:
    ahead = [node]
    while ahead:
        part = ahead.pop()
        if part.type in _EXPANSIONS or (part.type == "word" and _text(part).startswith("~")):
            return True
        ahead += part.named_children
    return False


def _text(node: Node) -> str:
    return (node.text or b"").decode("utf-8", errors="replace")


@cache
def _parser() -> Parser:
    # Imported here: only scripts need it.
    import tree_sitter
    import tree_sitter_bash

    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_bash.language()))
