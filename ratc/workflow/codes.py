"""The codes of diagnostics, and the page of each."""

from __future__ import annotations

import os

from ratc import resources

#: Codes that are named if one is not known.
_NEAR = 3


def titles() -> dict[str, str]:
    """Return a title for each code: the heading of its page."""
    heads = ((code, page(code).split("\n", 1)[0]) for code in names())
    return {code: head.partition(": ")[2] for code, head in heads}


def names() -> list[str]:
    """All codes, in order."""
    found = os.listdir(resources.folder("codes"))
    return sorted(name.removesuffix(".md") for name in found if name.endswith(".md"))


def page(code: str) -> str:
    """Return the Markdown page of a code, with its meaning and remedy. Raises OSError for an unknown code."""
    return resources.read("codes", f"{code}.md").decode()


def near(code: str, known: list[str]) -> list[str]:
    """Return codes close to an unknown one: those with a partial code as prefix, or those of a whole code's stage."""
    begun = [other for other in known if other.startswith(code)]
    stage = [other for other in known if other[1] == code[1] and len(code) == len(other)]
    return sorted(begun or sorted(stage, key=lambda other: abs(int(other[1:]) - int(code[1:])))[:_NEAR])
