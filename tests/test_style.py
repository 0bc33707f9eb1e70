"""The rules of docs/develop/style.md that can be counted, in the documentation and the pages of codes."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
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
