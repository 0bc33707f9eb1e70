"""Findings as SARIF 2.1.0 (OASIS), which code scanning of GitHub, GitLab and editors read."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any
from urllib.parse import quote

from ratc import __version__, markup
from ratc.diagnostics import Diagnostic, Span
from ratc.secrets import excerpt
from ratc.secrets.redact import redact

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"


def document(items: Sequence[Diagnostic], command: str, explanations: dict[str, str]) -> str:
    """One run; ``explanations`` are the pages of the codes, which become the rules."""
    rules = sorted({item.code for item in items})
    run = {
        "tool": {"driver": _driver(rules, explanations)},
        "invocations": [{"executionSuccessful": True, "commandLine": command}],
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {"%SRCROOT%": {"description": {"text": "the folder that ratc was called from"}}},
        "results": [_result(item, rules) for item in items],
    }
    tree = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}
    return markup.json(tree)


def _driver(rules: Sequence[str], explanations: dict[str, str]) -> dict[str, Any]:
    return {
        "name": "ratc",
        "version": __version__,
        "semanticVersion": __version__,
        "rules": [_rule(code, explanations.get(code, "")) for code in rules],
    }


def _rule(code: str, page: str) -> dict[str, Any]:
    title = page.split("\n", 1)[0].partition(": ")[2] or code
    return {
        "id": code,
        "shortDescription": {"text": title},
        "help": {"text": f"`ratc explain {code}` says more", "markdown": page or title},
    }


def _result(item: Diagnostic, rules: Sequence[str]) -> dict[str, Any]:
    words = [item.message, *(f"note: {note}" for note in item.notes if note)]
    words += [f"help: {text}" for text in item.helps if text]
    result: dict[str, Any] = {
        "ruleId": item.code,
        "ruleIndex": rules.index(item.code),
        "level": item.severity.value,
        "message": {"text": redact("\n".join(words))},
        "partialFingerprints": {"ratcFinding/v1": _fingerprint(item)},
    }
    span = item.span
    if span and span.source.is_file:
        result["locations"] = [{"physicalLocation": _location(span)}]
    if item.fix and item.fix.is_certain and span and all(edit.span.source.is_file for edit in item.fix.edits):
        result["fixes"] = [_fix(item)]
    return result


def _fix(item: Diagnostic) -> dict[str, Any]:
    assert item.fix
    changes = [
        {
            "artifactLocation": _artifact(edit.span.source.name),
            "replacements": [{"deletedRegion": _region(edit.span), "insertedContent": {"text": edit.text}}],
        }
        for edit in item.fix.edits
    ]
    return {"description": {"text": item.fix.description}, "artifactChanges": changes}


def _location(span: Span) -> dict[str, Any]:
    return {"artifactLocation": _artifact(span.source.name), "region": _region(span)}


def _artifact(name: str) -> dict[str, Any]:
    """Relative to the source root; a path that leads out of it, or is absolute, stands for itself."""
    if name.startswith("/"):
        return {"uri": f"file://{_quoted(name)}"}
    name = name.removeprefix("./")
    return {"uri": _quoted(name)} if name.startswith("../") else {"uri": _quoted(name), "uriBaseId": "%SRCROOT%"}


def _quoted(name: str) -> str:
    """Quote a path for a URI; the bytes of a name that is not UTF-8 are kept."""
    return quote(name, errors="surrogateescape")


def _region(span: Span) -> dict[str, Any]:
    return {
        "startLine": span.line,
        "startColumn": span.column,
        "endLine": span.end_line,
        "endColumn": span.end_column,
    }


def _fingerprint(item: Diagnostic) -> str:
    """The same for the same finding when lines above it come or go."""
    line = excerpt.line(item.span.source, item.span.line).strip() if item.span else ""
    name = item.span.source.name if item.span else ""
    return sha256(f"{item.code}\n{name}\n{redact(item.message)}\n{line}".encode(errors="backslashreplace")).hexdigest()[
        :32
    ]
