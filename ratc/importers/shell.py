"""A script's commands, as the grammar of bash reads them: those that always run, and those under a condition.

A line inside a here-document, an array or a quoted text is not a command. The parser is tree-sitter's.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from ratc.secrets.names import names_secret

if TYPE_CHECKING:
    from tree_sitter import Language, Node

#: Words that the shell expands when the script runs.
_EXPANSIONS = frozenset(
    ("simple_expansion", "expansion", "command_substitution", "process_substitution", "arithmetic_expansion")
) | frozenset(("ansi_c_string", "translated_string"))
#: A home folder, also behind the colons of a path.
_HOME = re.compile(r"(^|:)~")
#: Escapes that the shell removes within quotes, and that `shlex` keeps.
_ESCAPED = re.compile(r"\\[$`\n]")
#: A `{` and digits, and a character of more than a byte: the grammar's `isdigit` reads beyond its table of 256, and the
#: process ends (tree-sitter-bash 0.25.1, its issue 337).
_BEYOND = re.compile(r"(\{[0-9]*(?:\.\.[0-9]*)?)([^\x00-\xff])")
#: A pattern of file names, and a list in braces: the shell writes other words in their place.
_PATTERN = re.compile(r"[*?]|\[[^\]]+\]|\{[^{}]*(,|\.\.)[^{}]*\}")
_QUOTED = frozenset(("string", "raw_string", "ansi_c_string"))
_COMMANDS = frozenset(("command", "declaration_command", "unset_command", "test_command"))
#: Nodes around commands that run one after the other in any case; see :func:`_unfolded`.
_AROUND = frozenset(("list", "pipeline", "redirected_statement"))
#: Commands that print their words, and the nodes that take these as data.
_SAYS = ("echo ", "printf ")
_HANDS_ON = frozenset(("pipeline", "redirected_statement", "command_substitution", "process_substitution"))
#: Words that are written out, and quoted texts. A variable of the shell by itself is shown.
_LITERAL = frozenset(("word", "raw_string", "ansi_c_string", "number", "concatenation", "string"))
_OPEN = re.compile(rb"(?<![\w$])(?P<name>[A-Za-z_]\w{0,80})=(?P<quote>[\"'])")


@dataclass(frozen=True, slots=True)
class Command:
    """One command: ``text`` as it is written, the ``line`` (from 1) and ``last`` line it stands on, and its ``words``.

    ``words`` is None if it cannot be read alone; an assignment is one word. ``unsure`` says why it may not run,
    ``apart`` why the script does not keep its settings. ``dynamic`` are the indices of words that the shell expands.
    """

    text: str
    line: int
    last: int
    words: tuple[str, ...] | None
    dynamic: frozenset[int] = frozenset()
    unsure: str = ""
    apart: str = ""


def commands(text: str) -> Iterator[Command]:
    """The commands of a script, in order."""
    script = _Script(text)
    over = ""
    for node in script.root.named_children:
        if node.type == "comment":
            continue
        after = node.next_sibling
        apart = "it runs in the background" if after is not None and after.type == "&" else ""
        # A quote that does not close ends a command before its last words.
        cut = after is not None and after.type == "ERROR" and after.start_point.row == node.end_point.row
        unsure = over or ("the text behind it is not valid bash" if cut else "")
        for command in script.commands(node):
            changed = replace(command, apart=command.apart or apart)
            yield replace(changed, unsure=unsure) if unsure else changed
            if not over and not command.unsure:
                over = _end(command.words or ())
        if node.has_error and not over:  # where it ends is not known, and quotes and here-documents may be open
            over = "it comes after text that is not valid bash"


def without_data(text: str) -> str:
    """Star out the input of a script's programs, column for column: here-documents, here-strings, and the words of
    `echo` into a pipe, a file or a variable. None of it can be imported, and it may be a secret of any form.
    """
    script = _Script(text)
    data = script.data
    spans: list[tuple[int, int]] = []
    ahead: list[tuple[Node, bool]] = [(script.root, False)]
    while ahead:
        node, handed = ahead.pop()
        if node.type == "heredoc_body":
            spans.append((node.start_byte, node.end_byte))
        elif node.type == "herestring_redirect" or (
            handed and node.type == "command" and script.text(node).startswith(_SAYS)
        ):
            parts = node.named_children[0 if node.type == "herestring_redirect" else 1 :]
            spans += [(part.start_byte, part.end_byte) for part in parts if part.type in _LITERAL]
        handed = node.type in _HANDS_ON or (handed and node.type in _AROUND)
        ahead += [(child, handed) for child in node.named_children]
    for match in _OPEN.finditer(data) if script.root.has_error else ():
        if names_secret(match["name"].decode()) and data.find(match["quote"], match.end()) < 0:
            spans.append((match.end(), len(data)))  # a quote that never closes
    for start, end in spans:
        data = data[:start] + re.sub(rb"\S", b"*", data[start:end]) + data[end:]
    return data.decode("utf-8", errors="replace")


class _Script:
    """A script as the grammar reads it: ``data``, its bytes in UTF-8, and the ``root`` of their tree."""

    def __init__(self, text: str) -> None:
        # Imported here: only scripts need it.
        import tree_sitter

        self.data = text.encode("utf-8", errors="replace")
        readable = _BEYOND.sub(lambda match: match[1] + "x" * len(match[2].encode(errors="replace")), text)
        tree = tree_sitter.Parser(_language()).parse(readable.encode("utf-8", errors="replace"))
        self.root = tree.root_node

    def text(self, node: Node) -> str:
        """The text of a node as it is written."""
        return self.data[node.start_byte : node.end_byte].decode("utf-8", errors="replace")

    def commands(self, node: Node) -> Iterator[Command]:
        """Yield the commands of one statement. A part that is not a command has no words."""
        for part, unsure, apart in self._unfolded(node):
            if part.has_error:
                yield self._command(part, "it is not valid bash", read=False)
            elif part.type in _COMMANDS and _has_heredoc(part):
                yield self._command(part, unsure, read=False)
            elif part.type in _COMMANDS:
                yield replace(self._command(part, unsure), apart=apart)
            elif part.type == "variable_assignment" and not any(child.type == "array" for child in part.named_children):
                made = replace(self._command(part, unsure), apart=apart)
                yield replace(made, dynamic=frozenset((0,))) if self._is_dynamic(part) else made
            else:
                inner = list(self._inside(part))
                yield from inner or [self._command(part, unsure, read=False)]

    def _unfolded(self, node: Node) -> Iterator[tuple[Node, str, str]]:
        """Yield the parts of `a && b`, `a | b`, `a > file`: unsure if an earlier part decides, apart in a pipeline."""
        ahead = [(node, "", "")]
        while ahead:
            node, unsure, apart = ahead.pop()
            children = [child for child in node.named_children if not child.type.endswith("_redirect")]
            if node.has_error or node.type not in _AROUND or not children or _has_heredoc(node):
                yield node, unsure, apart
            elif node.type == "list":
                by_or = any(child.type == "||" for child in node.children)
                is_test = any(
                    child.type == "test_command" or self.text(child).startswith("test ") for child in children[:-1]
                )
                asks = unsure or (f"whether it runs depends on `{self.text(children[0])}`" if by_or or is_test else "")
                ahead += [(children[-1], asks, apart), *((child, unsure, apart) for child in reversed(children[:-1]))]
            elif node.type == "pipeline":
                ahead.append((children[0], unsure, "each part of a pipeline has a shell of its own"))
            else:
                beside = unsure or _beside_redirections(node)
                ahead += [(child, beside, apart) for child in reversed(children)]

    def _inside(self, node: Node) -> Iterator[Command]:
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
                yield self._command(part, f"it stands {kinds[node.type]}")
            elif part.type != "heredoc_redirect":
                ahead += reversed(part.named_children)

    def _command(self, node: Node, unsure: str, read: bool = True) -> Command:
        text = self.text(node)
        words = _split(text) if read else None
        dynamic: frozenset[int] = frozenset()
        if words is not None:
            parts = list(node.named_children)
            if node.type == "declaration_command":
                parts = [node, *parts]  # `export` itself is not a node
            dynamic = frozenset(
                number
                for number, part in enumerate(parts)
                if (number or part.type == "variable_assignment") and self._is_dynamic(part)
            )
            if node.type == "command":
                dynamic |= {number for number, part in enumerate(parts) if number and self._is_pattern(part)}
            if len(parts) != len(words) and node.type == "declaration_command":  # `A=$((1 + 1))` is one word
                known = [part for number, part in enumerate(parts) if number and number not in dynamic]
                plain = {part.id: "".join(_split(self.text(part)) or ()) for part in known}
                words = (words[0], *(plain.get(part.id, self.text(part)) for part in parts[1:]))
            elif len(parts) != len(words):  # some words are more than a node: none is sure
                dynamic = frozenset(range(len(words))) if self._is_dynamic(node) else frozenset()
        return Command(text, node.start_point.row + 1, node.end_point.row + 1, words, dynamic, unsure)

    def _is_translated(self, node: Node) -> bool:
        return self.data[max(node.start_byte - 1, 0) : node.start_byte] == b"$"

    def _is_pattern(self, node: Node) -> bool:
        """Whether the shell writes names of files or a list in the place of an argument."""
        quoted = [child for child in node.named_children if child.type in _QUOTED]
        plain = "" if node.type in _QUOTED else self.text(node)
        for child in quoted:
            plain = plain.replace(self.text(child), "")
        return bool(_PATTERN.search(re.sub(r"\\.", "", plain)))

    def _is_dynamic(self, node: Node) -> bool:
        ahead = [node]
        while ahead:
            part = ahead.pop()
            if part.type in _EXPANSIONS or (part.type == "word" and _HOME.search(self.text(part))):
                return True
            if part.type == "string" and (self._is_translated(part) or _ESCAPED.search(self.text(part))):
                return True
            ahead += part.named_children
        return False


def _end(words: tuple[str, ...]) -> str:
    """Return why no command runs after this one; "" if one can."""
    if words[:1] == ("exit",) or (words[:1] == ("exec",) and len(words) > 1):
        return f"it comes after `{words[0]}`"
    return ""


def _beside_redirections(node: Node) -> str:
    """Return why the words of a redirected command are not known for sure; "" if they are.

    The grammar takes arguments behind `> file` for files, and the number of `0< file` for an argument.
    """
    for child in node.children:
        if child.type == "file_redirect":
            command = node.child_by_field_name("body")
            touching = command is not None and command.end_byte == child.start_byte and command.named_child_count > 1
            if touching or len(child.children_by_field_name("destination")) > 1:
                return "words of it stand beside a redirection"
            if any(sign.type == "<" for sign in child.children):
                return "it reads a file as its input"
    return ""


def _has_heredoc(node: Node) -> bool:
    return any(child.type in ("heredoc_redirect", "herestring_redirect") for child in node.children)


def _split(text: str) -> tuple[str, ...] | None:
    try:
        return tuple(shlex.split(re.sub(r"\\\n", "", text), comments=True))
    except ValueError:
        return None


@cache
def _language() -> Language:
    import tree_sitter
    import tree_sitter_bash

    return tree_sitter.Language(tree_sitter_bash.language())
