"""R205: a secret is named in a spec, never written into it: specs and scripts are committed and reviewed."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ratc.diagnostics import Diagnostic
from ratc.plan import Values

_NAME = re.compile(r"(^|_)(TOKEN|PASSWORD|PASSWD|SECRET|API_?KEY|ACCESS_KEY|PRIVATE_KEY|CREDENTIALS?)(_|$)", re.I)
# Prefixes that issuers document for their keys: GitHub, GitLab, Hugging Face, AWS, Slack, OpenAI and Anthropic.
_VALUE = re.compile(r"^(gh[pousr]_|github_pat_|glpat-|hf_|AKIA|xox[abprs]-|sk-)[A-Za-z0-9_-]{16,}$")


def check(settings: Values) -> Iterator[Diagnostic]:
    """No variable of the environment section holds what looks like a secret."""
    variables = settings["environment.variables"]
    for name, value in (variables.value or {}).items():
        if (_NAME.search(name) and str(value)) or _VALUE.match(str(value)):
            helps = (f"name it instead, and set it in the shell that submits: `secrets: [{name}]`",)
            yield Diagnostic(
                "R205", f"the variable `{name}` holds what looks like a secret", variables.span, helps=helps
            )
