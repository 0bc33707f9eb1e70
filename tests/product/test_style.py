"""The rules of docs/develop/style.md that can be counted, in the documentation, and in the text that code holds."""

import re

import pytest

from tests.places import ROOT

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "ratc/codes").glob("*.md")]
#: What a page may not say, and what it says instead. A condition is known by what follows it.
FORBIDDEN = {
    r"\bwhere (nothing|no|none|absent|needed|possible|wanted) ?": "if",
    r"(^|[.:;|(] +)Where (?!the curves|a value)[a-z]+ [^?]*,": "If",
    r"\bsigns? of life\b": "heartbeat",
    r"\bway back into the queue\b": "requeue",
    r"\banew\b": "again, or from the beginning",
    r"\bin silence\b": "silently",
}
SOURCES = [
    path
    for folder in ("ratc", "runtime", "templates")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".j2")
]
#: The same in messages, descriptions, docstrings and comments, and what stands before a condition.
FORBIDDEN_IN_CODE = {
    r"\b(None|nothing|empty|False|zeros|less|absent|[Oo]nly|[Rr]aises? R\d+) where\b": "if",
    r"\b[Ww]here (nothing|none|there (is|are) (no|none)|it is not|that (is|fails|cannot|raises))": "if",
    **{pattern: word for pattern, word in FORBIDDEN.items() if "here" not in pattern},
}
#: Who quotes them, or means a place.
ALLOWED = {"style.md": set(FORBIDDEN), "R450.md": set(FORBIDDEN), "R580.md": set(FORBIDDEN), "codes.md": set(FORBIDDEN)}


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_what_the_style_forbids_does_not_come_back(pattern):
    found = [
        f"{page.relative_to(ROOT)}:{number}: {line.strip()[:90]}"
        for page in PAGES
        if pattern not in ALLOWED.get(page.name, ())
        for number, line in enumerate(page.read_text().splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not found, f"say: {FORBIDDEN[pattern]}\n" + "\n".join(found)


@pytest.mark.parametrize("pattern", FORBIDDEN_IN_CODE)
def test_what_the_style_forbids_does_not_come_back_in_code(pattern):
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:90]}"
        for path in SOURCES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not found, f"say: {FORBIDDEN_IN_CODE[pattern]}\n" + "\n".join(found)
