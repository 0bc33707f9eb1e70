"""What looks like a secret, and text with secrets starred out: what a compiler prints ends up in logs."""

from __future__ import annotations

import re

_NAME = r"(?:TOKEN|PASSWORD|PASSWD|SECRET|API_?KEY|ACCESS_KEY|PRIVATE_KEY|CREDENTIALS?)"
_IS_NAME = re.compile(rf"(?:[A-Za-z0-9_]*_)?{_NAME}(?:_[A-Za-z0-9_]*)?", re.I)
# Prefixes that issuers document for their keys: GitHub, GitLab, Hugging Face, AWS, Slack, OpenAI and Anthropic.
_KEY = re.compile(r"\b(?:gh[pousr]_|github_pat_|glpat-|hf_|AKIA|xox[abprs]-|sk-)[A-Za-z0-9_-]{16,}")
_ASSIGNED = re.compile(rf"({_NAME}\s*[:=]\s*)([^\s,}}\]]+)", re.I)


def looks_secret(name: str, value: str) -> bool:
    """Whether a variable of this name and value should be named, not written."""
    return bool(value) and bool(_IS_NAME.fullmatch(name) or _KEY.search(value))


def redact(line: str) -> str:
    """The line with what looks like a secret starred out, column for column."""
    line = _KEY.sub(lambda match: "*" * len(match[0]), line)
    return _ASSIGNED.sub(lambda match: match[1] + "*" * len(match[2]), line)
