"""Finds keys and tokens by their form: `ghp_…`, `AKIA…`, a JWT, the block of a private key.

The forms are those of detect-secrets (:mod:`ratc.secrets.generate`) and those that it lacks. A text without a long
word costs one search; the first one with a long word compiles the patterns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache

from ratc import resources

#: Every form has at least so many letters and digits in a row, or is a private key.
_CANDIDATE = re.compile(r"[A-Za-z0-9_+/=.-]{16}|PRIVATE KEY")
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|PuTTY-User-Key-File-\d")
_END = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_BODY = re.compile(r"[^\n\"']*(?:\n[ \t]*[A-Za-z0-9+/=-]+[ \t]*(?=\n|\Z))*")
#: Repetitions in a form end here; what is longer is a key to the end of its word.
_LONGEST = 300
_REST = re.compile(r"[A-Za-z0-9_.+/=-]*")
#: Forms that their issuers document and detect-secrets does not have, or only at one length: GitHub, Hugging Face, AWS,
#: Slack, OpenAI and Anthropic, GitLab, Google, Weights & Biases, npm, Docker, NVIDIA, and JWTs.
_FORMS = (
    r"gh[pousr]_[A-Za-z0-9]{16,}",
    r"github_pat_[A-Za-z0-9_]{16,}",
    r"hf_[A-Za-z0-9]{16,}",
    r"AKIA[A-Z0-9]{16}",
    r"xox[abeoprs]-[A-Za-z0-9-]{10,}",
    r"sk-(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{16,}",
    r"glpat-[A-Za-z0-9_-]{16,}",
    r"AIza[A-Za-z0-9_-]{35}",
    r"ya29\.[A-Za-z0-9_-]{20,}",
    r"wandb_v1_[A-Za-z0-9_-]{20,}",
    r"npm_[A-Za-z0-9]{36}",
    r"dckr_pat_[A-Za-z0-9_-]{16,}",
    r"nvapi-[A-Za-z0-9_-]{20,}",
    r"eyJ[A-Za-z0-9_=-]{300}",
    r"eyJ[A-Za-z0-9_=-]{8,}\.[A-Za-z0-9_=-]{8,}(?:\.[A-Za-z0-9_.+/=-]*)?",
)


def spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield the character ranges of keys in a text: begin, and end exclusive."""
    if not _CANDIDATE.search(text):
        return
    for pattern in _patterns():
        position = 0
        while match := pattern.search(text, position):
            group = 1 if match.re.groups and match.re.flags & re.IGNORECASE and match[1] else 0
            start, position = match.span(group)
            if position - start >= _LONGEST and (rest := _REST.match(text, position)):
                position = rest.end()
            if not (text[start].isalnum() and text[start - 1 : start].isalnum()):
                yield start, position
    yield from _private_keys(text)


def _private_keys(text: str) -> Iterator[tuple[int, int]]:
    """From the first line of a private key to its last; without one, as long as lines look like its body."""
    position, ends = 0, True
    while begin := _PRIVATE_KEY.search(text, position):
        end = _END.search(text, begin.end()) if ends else None
        ends = end is not None
        end = end or _BODY.match(text, begin.end())
        assert end is not None
        position = end.end()
        yield begin.start(), position


@cache
def _patterns() -> tuple[re.Pattern[str], ...]:
    known = json.loads(resources.read("facts", "secret_shapes.json"))["patterns"]
    forms = [(one["pattern"], one["flags"]) for one in known] + [(form, 0) for form in _FORMS]
    return tuple(re.compile(_bounded(pattern), flags) for pattern, flags in forms)


def _bounded(pattern: str) -> str:
    """The pattern with an upper limit on every repetition: without one, `sk-` again and again costs the square of its
    length.
    """
    limits = {"*": f"{{0,{_LONGEST}}}", "+": f"{{1,{_LONGEST}}}"}

    def limit(part: re.Match[str]) -> str:
        return f"{{{part[1]},{_LONGEST}}}" if part[1] else limits.get(part[0], part[0])

    return re.sub(r"\\.|\[(?:\\.|[^\]\\])*\]|\{(\d+),\}|[*+]", limit, pattern)
