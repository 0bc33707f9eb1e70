"""The countable rules of docs/develop/style.md, in the documentation and in the text that code holds."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.places import ROOT

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "ratc/codes").glob("*.md")]
#: "There is no prediction" is a sentence, "it is no number" is not; "it is no longer" and "no more than" compare.
NO_NOUN = r"(?<!\b[Tt]here)"
COMPARED = "(longer|more|larger|shorter|smaller)"
#: What a page may not say, and what it says instead. A condition is known by what follows it.
FORBIDDEN = {
    r"\bwhere (nothing|no|none|absent|needed|possible|wanted) ?": "if",
    r"(^|[.:;|(] +)Where (?!the curves|a value)[a-z]+ [^?]*,": "If",
    r"\bsigns? of life\b": "heartbeat",
    r"\bway back into the queue\b": "requeue",
    r"\banew\b": "again, or from the beginning",
    r"\bin silence\b": "silently",
    r"\bback into the queue\b": "requeue",
    r"\ball the same\b": "still, or in spite of",
    rf"{NO_NOUN} (is|are) no (?!{COMPARED}\b)": "is not a",
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
    **{pattern: word for pattern, word in FORBIDDEN.items() if "where " not in pattern.lower()},
}
#: Who quotes them, or means a place.
ALLOWED = {"style.md": set(FORBIDDEN), "R450.md": set(FORBIDDEN), "R580.md": set(FORBIDDEN), "codes.md": set(FORBIDDEN)}


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_no_forbidden_pattern_in_the_documentation(pattern):
    found = [
        f"{page.relative_to(ROOT)}:{number}: {line.strip()[:90]}"
        for page in PAGES
        if pattern not in ALLOWED.get(page.name, ())
        for number, line in enumerate(page.read_text().splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not found, f"say: {FORBIDDEN[pattern]}\n" + "\n".join(found)


@pytest.mark.parametrize("pattern", FORBIDDEN_IN_CODE)
def test_no_forbidden_pattern_in_the_text_of_code(pattern):
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
def test_a_page_has_few_what_and_who(page):
    words, pronouns, _ = counted(page)
    # A page of few words may have one.
    assert pronouns <= max(1, 4 * words / 1000), f"{pronouns} in {words} words: name the thing"


def test_the_documentation_has_few_what_and_who_and_enough_if():
    words, pronouns, conditions = map(sum, zip(*map(counted, DOCS), strict=True))
    assert words > 20_000
    assert pronouns <= 2 * words / 1000
    assert 3 <= 1000 * conditions / words <= 12


#: Words that stand for a thing without a name.
UNNAMED = re.compile(r"\b(what|who|whose|whatever)\b", re.IGNORECASE)
#: The most of them in 1,000 words of a package's docstrings. A line of its own for each package.
DOCSTRINGS = {
    "ratc": 1.5,
    "runtime/ratc_runtime": 1.5,
}


def docstrings(folder: Path) -> Iterator[str]:
    """Yield the docstrings of all modules, classes and functions below a folder."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield ast.get_docstring(node) or ""


@pytest.mark.parametrize("package", DOCSTRINGS)
def test_docstrings_have_few_what_and_who(package):
    text = " ".join(docstrings(ROOT / package))
    words, unnamed = len(text.split()), len(UNNAMED.findall(text))
    assert words > 10_000
    assert unnamed <= DOCSTRINGS[package] * words / 1000, f"{unnamed} in {words} words: name the thing"


def test_pages_of_codes_have_few_what_and_who():
    pages = [page.read_text() for page in PAGES if page.parent.name == "codes"]
    # Without the blocks of code, and without the name of the first paragraph.
    prose = re.sub(r"^```.*?^```$|^What it says:", "", "\n".join(pages), flags=re.MULTILINE | re.DOTALL)
    words, unnamed = len(prose.split()), len(UNNAMED.findall(prose))
    assert words > 10_000
    assert unnamed <= words / 1000, f"{unnamed} in {words} words: name the thing"


#: The most words of a sentence. Rule 5 says "about 30": a quotation or a list of names may need some more.
LONGEST_SENTENCE = 32
#: An item of a list, which ends the paragraph before it. The point of a numbered one ends a sentence.
ITEM = re.compile(r"[-*+] ")


def paragraphs(page: Path) -> Iterator[tuple[int, str]]:
    """Yield each paragraph and each item of a list with its line. Code, tables and headings are left out."""
    lines: list[str] = []
    start, code = 1, False
    for number, line in enumerate([*page.read_text().splitlines(), ""], 1):
        text = line.strip()
        fence = text.startswith("```")
        code ^= fence
        ends = fence or code or not text or text.startswith(("#", "|", "<"))
        if lines and (ends or ITEM.match(text)):
            yield start, " ".join(lines)
            lines = []
        if not ends:
            start = start if lines else number
            lines.append(ITEM.sub("", text, count=1))


def sentences(paragraph: str) -> list[str]:
    """Return the sentences of a paragraph. A span of code is one word.

    Names of links, and the label at the beginning of a code's page, do not count.
    """
    plain = re.sub(r"\[[^]]*\]\([^)]*\)", "", re.sub(r"`[^`]*`", "Code", paragraph))
    plain = plain.removeprefix("What it says:")
    # A colon may be followed by a sentence of its own; a name such as "torch" may begin one.
    return re.split(r"(?<=[.!?])\W*\s+(?=\W*\w)|(?<=[:;])\s+(?=[A-Z])", plain)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_sentence_is_not_too_long(page):
    found = [
        f"{page.relative_to(ROOT)}:{line}: {length} words: {sentence}"
        for line, paragraph in paragraphs(page)
        for sentence in sentences(paragraph)
        if (length := len(re.findall(r"\w[\w'./-]*", sentence))) > LONGEST_SENTENCE
    ]
    assert not found, "\n".join(found)


def test_sentences_are_counted():
    long = "one " * 40
    page = ROOT / "README.md"
    assert len(sentences(f"{long}. Then `a b c` follows: {long}")) == 2
    assert max(len(sentence.split()) for sentence in sentences(long)) > LONGEST_SENTENCE
    assert len(list(paragraphs(page))) > 20
