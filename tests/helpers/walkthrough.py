"""Runs the commands of a page of the documentation as a reader would, in one shell, and compares what they print.

A fenced block `sh` holds commands, `console` commands behind `$ ` with their output, and `LANGUAGE title="NAME"` a file
to save. In an output `…` stands for anything: alone on a line for any number of lines. A block whose title is in
`elsewhere` needs what a test has not.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_MARK = "=walkthrough="


@dataclass(frozen=True)
class Step:
    """A file to save, if `file` is set, else a command with the output that the page shows, or None."""

    text: str
    file: str | None = None
    shown: str | None = None


def steps(page: str, elsewhere: Collection[str] = ()) -> list[Step]:
    """What a page tells its reader to do, in order."""
    found = []
    for language, title, text in BLOCK.findall(page):
        if title in elsewhere:
            continue
        if language == "sh":
            found.append(Step(text))
        elif language == "console":
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                command, _, shown = part.partition("\n")
                found.append(Step(command + "\n", shown=shown))
        elif title:
            found.append(Step(text, file=title))
    return found


def run(listed: list[Step], folder: Path, environment: Mapping[str, str]) -> list[tuple[Step, int, str]]:
    """Do each step in one shell that starts in `folder`: the step, its exit status and all that it printed."""
    script = ["exec 2>&1"]
    for number, step in enumerate(listed):
        text = f"cat > '{step.file}' <<'{_MARK}'\n{step.text}{_MARK}\n" if step.file else step.text
        if step.file and "/" in step.file:
            text = f"mkdir -p '{Path(step.file).parent}'\n{text}"
        # A block ends at its first command that fails, as its reader would; the shell goes on in its folder.
        script.append(f"set -e\ntrap 'echo {_MARK}{number} $?' EXIT" if step.shown is None else "set +e; trap - EXIT")
        script.append(f"{text}echo {_MARK}{number} $?")
    done = subprocess.run(
        ["bash"], input="\n".join(script), cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    results = []
    rest = done.stdout
    for number, step in enumerate(listed):
        said, mark, rest = rest.partition(f"{_MARK}{number} ")
        assert mark, f"{step.text} was not reached:\n{said}\n{done.stderr}"
        status, _, rest = rest.partition("\n")
        results.append((step, int(status), said))
        if step.shown is None and int(status):
            break
    return results


def pattern(shown: str, each: Callable[[str], str] = re.escape) -> re.Pattern[str]:
    """What an output must look like to be the one shown. `each` makes the expression of a piece without `…`."""
    lines = []
    for line in shown.splitlines():
        lines.append(
            "(?:.*\n)*?" if line.strip() == "…" else "[^\n]*".join(each(part) for part in line.split("…")) + "\n"
        )
    return re.compile("".join(lines))


def any_number(text: str) -> str:
    """The expression of a text whose numbers may be others."""
    return re.sub(r"\d+(?:[.:]\d+)*", r"\\d+(?:[.:]\\d+)*", text.replace("(", r"\(").replace(")", r"\)"))
