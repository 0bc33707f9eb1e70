"""The comment of the GitHub Action: the drift and the differences of a pull request, in one comment that follows it.

Reads the event (`GITHUB_EVENT_PATH`), compares every compiled folder below `RATC_PATHS` with the same folder at the
base of the pull request, writes the text to the step's summary, and posts or replaces the comment that begins with
`MARK`. A token that may not comment, as that of a pull request from a fork, is a warning: the summary has the text.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ratc.compiled import find
from ratc.markup import code, workflow_data

MARK = "<!-- ratc -->"
#: Characters of a comment that GitHub takes (65,536), less a sentence on what is left out.
MOST = 65_000
#: Bytes of a step's summary that GitHub takes (1 MiB), in characters of three bytes.
MOST_OF_SUMMARY = 340_000
#: Seconds for one answer.
PATIENCE = 30
#: Pages of a hundred comments that are looked through for the one to replace.
PAGES = 30


def main() -> int:
    """Exit status 0; 1 if the text itself cannot be made."""
    event = json.loads(Path(os.environ["GITHUB_EVENT_PATH"]).read_text())
    pull = event["pull_request"]
    number, base = int(pull["number"]), str(pull["base"]["sha"])
    if not re.fullmatch(r"[0-9a-f]{7,64}", base):
        print(f"::error::{workflow_data('the base of the pull request is no commit')}")
        return 1
    if not has(base):
        subprocess.run(["git", "fetch", "--quiet", "--depth=1", "origin", base], check=False)
    paths = [line.strip() for line in os.environ.get("RATC_PATHS", ".").splitlines() if line.strip()] or ["."]
    sections = [drift(paths), *(differences(paths, base) if has(base) else [no_base(base)])]
    with open(os.environ.get("GITHUB_STEP_SUMMARY", os.devnull), "a", encoding="utf-8") as summary:
        summary.write(whole(sections, MOST_OF_SUMMARY))
    if os.environ.get("RATC_COMMENT", "true").strip().lower() == "false":
        return 0
    try:
        comment(number, whole(sections))
    except (OSError, ValueError) as error:
        told = workflow_data(f"no comment could be written ({error}); the summary of this job has its text")
        print(f"::warning::{told}")
    return 0


def has(commit: str) -> bool:
    """Whether a commit is in this clone."""
    return subprocess.run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], capture_output=True).returncode == 0


def no_base(base: str) -> str:
    """The section in the place of all differences, if the base cannot be had."""
    return (
        f"### Nothing was compared\n\nThe base ({base[:7]}) is not in this clone, and git could not fetch it. "
        "Let the checkout keep its credentials, or fetch all commits (`fetch-depth: 0`)."
    )


def ratc(*words: str) -> tuple[int, str, str]:
    """Run a command of ratc: its exit status, output and errors."""
    done = subprocess.run(
        [sys.executable, "-I", "-m", "ratc", *words], capture_output=True, text=True, errors="replace"
    )
    return done.returncode, done.stdout, done.stderr


def drift(paths: Sequence[str]) -> str:
    """What `ratc check` finds, as Markdown; nothing if nothing differs."""
    status, out, err = ratc("check", "--format", "markdown", "--", *paths)
    return (out.strip() or f"### The compiled files could not be checked\n\n{code(last(err))}") if status else ""


def differences(paths: Sequence[str], base: str) -> list[str]:
    """A section for every compiled folder that is not as it was at the base."""
    sections = []
    # `ratc check` has named a path that is not there.
    for folder in find.compiled([path for path in paths if Path(path).exists()]):
        name = os.path.relpath(folder)
        if name.startswith(os.pardir):
            continue
        if not at_base(base, name):
            sections.append(f"### {code(name)} is new\n\nThere was nothing to compare with at the base.")
            continue
        status, out, err = ratc("diff", "--format", "markdown", "--", f"{base}:{name}", name)
        if status == 1 and out.strip():
            sections.append(out.strip().replace(base, base[:7]))
        elif status not in (0, 1) or (status == 1 and not out.strip()):
            sections.append(f"### {code(name)} could not be compared\n\n{out.strip() or code(last(err))}")
    return [*sections, *(f"### {code(name)} is gone\n\nIt was compiled at the base." for name in gone(paths, base))]


def gone(paths: Sequence[str], base: str) -> list[str]:
    """The compiled folders of the base that are there no more."""
    done = subprocess.run(["git", "ls-tree", "-r", "-z", "--name-only", base, "--", *paths], capture_output=True)
    found = []
    for name in done.stdout.decode("utf-8", "surrogateescape").split("\0"):
        if os.path.basename(name) == "lock.yaml" and not os.path.lexists(name):
            shown = subprocess.run(["git", "cat-file", "-p", f"{base}:./{name}"], capture_output=True)
            if b"lock_version" in shown.stdout:
                found.append(os.path.dirname(name))
    return found


def at_base(base: str, folder: str) -> bool:
    """Whether a compiled folder was there at the base."""
    place = Path(folder, "lock.yaml").as_posix()
    return subprocess.run(["git", "cat-file", "-e", f"{base}:./{place}"], capture_output=True).returncode == 0


def last(text: str) -> str:
    """The first line that has an error, else the last one."""
    lines = [line for line in text.splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("error")), lines[-1] if lines else "no reason was given")


def whole(sections: Sequence[str], most: int = MOST) -> str:
    """The text: as many sections as it has room for, each whole."""
    text, left = f"{MARK}\n## ratc\n\n", 0
    if not any(sections):
        return text + "The compiled files are what their specs give, and none of them changes.\n"
    for section in filter(None, sections):
        if len(text) + len(section) > most:
            left += 1
        else:
            text += f"{section}\n\n"
    more = f"… and {left} more that this text has no room for; `ratc diff` and `ratc check` show all.\n"
    return text + (more if left else "")


def comment(number: int, text: str) -> None:
    """Replace the comment that was written before, or write one. Raises OSError and ValueError."""
    comments = f"/repos/{os.environ['GITHUB_REPOSITORY']}/issues/{number}/comments"
    who = login()
    for page in range(1, PAGES + 1):
        found = call("GET", f"{comments}?per_page=100&page={page}")
        for one in found:
            # A comment of somebody else's may begin with the mark too: only one of this token's is replaced.
            user = one.get("user") or {}
            is_own = str(user.get("login")).casefold() == who if who else user.get("type") == "Bot"
            if str(one.get("body", "")).startswith(MARK) and is_own:
                if one["body"].replace("\r\n", "\n") != text:
                    call("PATCH", f"/repos/{os.environ['GITHUB_REPOSITORY']}/issues/comments/{int(one['id'])}", text)
                return
        if len(found) < 100:
            break
    call("POST", comments, text)


def login() -> str | None:
    """The name of a person's token; None for one of a job or an app, which may not ask for it and comments as a bot."""
    try:
        found = call("GET", "/user")
    except (OSError, ValueError):
        return None
    return str(found["login"]).casefold() if isinstance(found, dict) and found.get("login") else None


def call(method: str, path: str, body: str | None = None) -> Any:
    """Ask GitHub's API. Raises OSError with its message for a refusal, ValueError for an answer that is no JSON."""
    request = urllib.request.Request(
        os.environ.get("GITHUB_API_URL", "https://api.github.com") + path,
        None if body is None else json.dumps({"body": body}).encode(),
        {
            "Accept": "application/vnd.github+json",
            "Authorization": f"Bearer {os.environ['GITHUB_TOKEN']}",
            "Content-Type": "application/json",
            "X-GitHub-Api-Version": "2022-11-28",
        },
        method=method,
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise OSError(f"{method} {path.partition('?')[0]}: {error.code} {error.reason}") from None


if __name__ == "__main__":
    sys.exit(main())
