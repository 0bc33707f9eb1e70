"""The rules of docs/develop/style.md that can be counted, in the documentation, and in the text that code holds."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

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


#: Pages of the documentation, without those of codes.
DOCS = [page for page in PAGES if page.parent.name != "codes"]


def counted(page: Path) -> tuple[int, int, int]:
    """The words of a page without code, how many of them are "what" or "who", and how many "if"."""
    prose = re.sub(r"^ *```.*?^ *```$|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    words = re.findall(r"[a-z][a-z'-]*", prose.lower())
    return len(words), words.count("what") + words.count("who"), words.count("if")


@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)
def test_a_page_names_things_by_nouns(page):
    words, pronouns, _ = counted(page)
    # A page of few words may have one.
    assert pronouns <= max(1, 4 * words / 1000), f"{pronouns} in {words} words: name the thing"


def test_the_documentation_names_things_by_nouns_and_conditions_by_if():
    words, pronouns, conditions = map(sum, zip(*map(counted, DOCS), strict=True))
    assert words > 20_000
    assert pronouns <= 2 * words / 1000
    assert 3 <= 1000 * conditions / words <= 12


#: A package, and how many of the pronouns its docstrings may have in 1,000 words. Headless relative clauses ("What a
#: command needs") need them, plain nouns ("The inputs of a command") do not.
PRONOUNS_OF_DOCSTRINGS = {
    "ratc": 1.4,
}


def docstrings(package: str) -> Iterator[tuple[str, str]]:
    """The place and the text, without code, of every docstring of a package's modules."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node)
                if text:
                    place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"
                    yield place, re.sub(r"``[^`]*``|`[^`\n]*`", "", text)


@pytest.mark.parametrize(("package", "most"), PRONOUNS_OF_DOCSTRINGS.items(), ids=PRONOUNS_OF_DOCSTRINGS)
def test_docstrings_name_things_by_nouns(package, most):
    found = [
        (place, text, len(re.findall(r"\b(what|who|whose|whatever)\b", text, re.I)))
        for place, text in docstrings(package)
    ]
    words = sum(len(text.split()) for _, text, _ in found)
    assert words > 10_000
    pronouns = sum(count for _, _, count in found)
    places = [f"{place}: {text.splitlines()[0][:80]}" for place, text, count in found if count]
    assert pronouns <= most * words / 1000, f"{pronouns} in {words} words: name the thing\n" + "\n".join(places)
