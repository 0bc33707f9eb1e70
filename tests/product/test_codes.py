"""Every code has an explanation, `ratc/codes/Rxxx.md`, which `ratc explain` prints, and every example in it is true.

`## Fails` and `## Fix` hold fenced blocks: `yaml` is `spec.yaml`, `yaml NAME` is `NAME.yaml`, and `sh` holds
commands, run in a folder with these files. Without commands the spec is compiled by the pure pipeline, for a machine of
8 cores and no GPU. The failing example must give the code and no other; the fixed one no error and not the code.

`docs/reference/codes.md` is the table of all codes. After a change: `python -m tests.product.test_codes` writes it
again.
"""

import functools
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from ratc import compiler, facts
from ratc.cli import main
from ratc.compiler import File, Inputs
from ratc.diagnostics import Diagnostic
from ratc.fitting.check_batch import SKIP
from ratc.own_code import trust
from ratc.targets import artifacts
from ratc.targets.artifact import Place
from tests.places import ROOT

CODES = ROOT / "ratc" / "codes"
TABLE = ROOT / "docs" / "reference" / "codes.md"
STAGES = ("parse", "schema", "meaning", "resolve", "target", "run", "why")
MACHINE = facts.Machine(gpus=0, card=None, cpus=8, memory_bytes=16 << 30, source="this machine")
#: Codes whose examples are words. R317 takes a dozen traces; `tests/unit/ratc/fitting/test_predict.py` provokes it.
#: R366 takes a trace: `tests/unit/ratc/fitting/test_strategies.py`.
#: So do R374 and R375, `test_predict.py` beside it. R373 is the runtime's:
#: `tests/unit/ratc_runtime/models/test_recompute.py`.
#: R345 needs a digest: `tests/unit/ratc/test_rates.py`. R402: no spec may make a consumer refuse, so a failing example
#: would be a bug. R361 comes with R320: `tests/unit/ratc/facts/test_cluster.py`. R451: `tests/security/test_edited.py`.
#: R411-R419 need a scheduler:
#: `tests/unit/ratc/workflow/test_submit.py` provokes them; so does R435, `tests/unit/ratc/probe`. R440 needs two specs:
#: `tests/unit/ratc/cli/test_diff.py`. R5xx but R515: the runtime's; they need torch, data or GPUs, and the runtime's
#: own tests provoke them. R6xx: causes of `ratc why`, `tests/unit/ratc/why`, and the runtime's test of the nodes.
IN_WORDS = (
    {"R317", "R345", "R366", "R361", "R373", "R374", "R375", "R402", "R435", "R440", "R441", "R451", "R452"}
    | {f"R41{number}" for number in range(1, 10)}
    | {path.stem for path in CODES.glob("R[56]*.md")} - {"R515"}
)
#: Codes that come of checking a micro-batch that the spec gives, which takes a trace.
CHECKING = {"R318", "R354"}
#: Codes that come of a folder that is not trusted.
UNTRUSTED = {"R446", "R447"}

FENCE = re.compile(r"^```(\w+) ?(.*)\n((?:.*\n)*?)^```$", re.MULTILINE)
TITLE = re.compile(r"# (R\d{3}): .*[^.\n]\n")


@functools.cache
def explanations() -> dict[str, str]:
    """The text of every explanation, by code."""
    return {path.stem: path.read_text() for path in sorted(CODES.glob("*.md"))}


def title(text: str) -> str:
    """The words behind the code in the first line."""
    return text.split("\n", 1)[0].partition(": ")[2]


@functools.cache
def stage(code: str) -> str:
    """The stage that gives a code: that of its first digit. Of R6xx some are the run's own."""
    health = (path.read_text() for path in (ROOT / "runtime" / "ratc_runtime" / "health").glob("*.py"))
    return "run" if any(f'"{code}"' in text for text in health) else STAGES[int(code[1])]


def table() -> str:
    """What `docs/reference/codes.md` must hold."""
    rows = [
        f"| [{code}](../../ratc/codes/{code}.md) | {stage(code)} | {title(text)} |\n"
        for code, text in explanations().items()
    ]
    head = "# Codes\n\nThe codes of all diagnostics. `ratc explain R304` explains one, with an example and its fix.\n"
    return f"{head}\n| code | stage | meaning |\n|---|---|---|\n{''.join(rows)}"


def emitted() -> set[str]:
    """Every code that the compiler's and the runtime's sources and the scripts can give."""
    sources = [*(ROOT / "ratc").rglob("*.py"), *(ROOT / "runtime" / "ratc_runtime").rglob("*.py")]
    found = {code for path in sources for code in re.findall(r'"(R\d{3})"', path.read_text())}
    scripts = [path.read_text() for path in (ROOT / "templates").glob("*.j2")]
    return found.union(code for text in scripts for code in re.findall(r"error\[(R\d{3})\]", text))


def blocks(code: str, heading: str) -> list[tuple[str, str, str]]:
    """Language, info and text of each fenced block of a section."""
    section = explanations()[code].partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [(match[1], match[2], match[3]) for match in FENCE.finditer(section + "\n")]


def compiled(files: dict[str, bytes]) -> list[tuple[str, str]]:
    """Severity and code of all that the pure pipeline has to say."""

    def told(found: tuple[Diagnostic, ...]) -> list[tuple[str, str]]:
        return [(diagnostic.severity.value, diagnostic.code) for diagnostic in found]

    settings, found = compiler.analyse(Inputs(File("spec.yaml", files["spec.yaml"])))
    if settings is None:
        return told(found)
    facts_values = None
    if "facts.yaml" in files:
        facts_values, more = compiler.read_facts(File("facts.yaml", files["facts.yaml"]))
        assert facts_values, more
    plan, more = compiler.plan(settings, facts_values, MACHINE)
    found += more
    if plan is None:
        return told(found)
    _, more = artifacts("local", plan, Place("..", "out", "spec.yaml", "ratc compile ../spec.yaml", {}))
    return told(found + more)


def run(commands: str, capsys) -> list[tuple[str, str]]:
    """Severity and code of all that the last command says; `ratc` runs in this process."""
    said = ""
    for line in commands.splitlines():
        if line.startswith("ratc "):
            main(shlex.split(line)[1:])
            said = capsys.readouterr().err
        else:
            subprocess.run(["bash", "-c", line], check=True)
    return re.findall(r"^(\w+)\[(R\d{3})\]", said, re.MULTILINE)


def outcome(code: str, heading: str, folder: Path, capsys, monkeypatch) -> list[tuple[str, str]]:
    """What the example under a heading gives."""
    monkeypatch.chdir(folder)
    if code in CHECKING:
        monkeypatch.delenv(SKIP)
    if code in UNTRUSTED:
        monkeypatch.delenv(trust.VARIABLE)
        monkeypatch.setenv("RATC_CONFIG", str(folder))
        monkeypatch.setenv("RATC_CACHE", str(folder / "kept"))  # a prediction that was kept needs no trust
    files = {f"{info or 'spec'}.yaml": text.encode() for kind, info, text in blocks(code, heading) if kind == "yaml"}
    for name, data in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    commands = "".join(text for kind, _, text in blocks(code, heading) if kind == "sh")
    return run(commands, capsys) if commands else compiled(files)


def test_every_code_is_explained_and_every_explanation_has_its_code():
    assert set(explanations()) == emitted()


@pytest.mark.parametrize("code", explanations())
def test_an_explanation_has_every_section_in_order(code):
    text = explanations()[code]
    assert TITLE.findall(text.split("\n", 1)[0] + "\n") == [code]
    parts = [text.find(mark) for mark in ("\nWhat it says: ", "\nWhy it matters: ", "\n## Fails\n", "\n## Fix\n")]
    assert -1 not in parts
    assert parts == sorted(parts)
    assert text.count("\n## ") == 2
    assert max(map(len, text.splitlines())) <= 120


def test_only_listed_codes_have_examples_in_words():
    assert {code for code in explanations() if not blocks(code, "Fails")} == IN_WORDS


@pytest.mark.parametrize("code", sorted(set(explanations()) - IN_WORDS))
def test_the_failing_example_gives_its_code_and_no_other(code, tmp_path, capsys, monkeypatch):
    found = {given for _, given in outcome(code, "Fails", tmp_path, capsys, monkeypatch)}
    # That the folder of an example has no data is nothing of the example.
    assert found - {"R235"} | found & {code} == {code}


@pytest.mark.parametrize("code", sorted(set(explanations()) - IN_WORDS))
def test_the_fixed_example_gives_no_error_and_not_its_code(code, tmp_path, capsys, monkeypatch):
    found = outcome(code, "Fix", tmp_path, capsys, monkeypatch)
    assert not [item for item in found if item[0] == "error" or item[1] == code]


def test_explain_prints_the_explanation(capsys):
    for code, text in explanations().items():
        assert main(["explain", code.lower()]) == 0
        assert capsys.readouterr().out == text
    assert main(["explain", "R999"]) == 1


def test_the_committed_table_of_codes_is_up_to_date():
    assert TABLE.read_text() == table(), "run `python -m tests.product.test_codes`"


if __name__ == "__main__":
    TABLE.write_text(table())
