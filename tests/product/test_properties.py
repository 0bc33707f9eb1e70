"""Properties that hold for any input, tried on thousands of generated ones; the same ones in every run."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ratc import compiler, facts, schema, targets
from ratc.compiler import File, Inputs
from ratc.diagnostics import Diagnostic, has_errors
from ratc.plan import Plan
from ratc.render import text as render
from ratc.spec.experiment import Spec
from ratc.spec.facts import Facts
from ratc.targets.artifact import Artifact, Place
from ratc.yaml.parse import parse
from tests.effort import examples
from tests.helpers.made_specs import EXPERIMENT, FACTS, FULL, SPECS, exactly, mutated_trees, words
from tests.places import ROOT

CODES = {path.stem for path in (ROOT / "ratc" / "codes").glob("*.md")}
MACHINE = facts.Machine(gpus=0, card=None, cpus=8, memory_bytes=16 << 30, source="this machine")
PLACE = Place("../../..", "compiled/demo/local", "spec.yaml", "ratc compile ../../../spec.yaml", {})


def pipeline(raw: bytes) -> tuple[Plan | None, tuple[Artifact, ...] | None, tuple[Diagnostic, ...]]:
    """The whole of compiling, without reading or writing."""
    values, found = compiler.analyse(Inputs(File("spec.yaml", raw)))
    if values is None:
        return None, None, found
    plan, more = compiler.plan(values, None, MACHINE)
    if plan is None:
        return None, None, found + more
    artifacts, last = targets.artifacts("local", plan, PLACE)
    return plan, artifacts, found + more + last


def check(raw: bytes) -> None:
    """No exception; every diagnostic has a known code and points at a line that exists; files only without errors."""
    _, artifacts, found = pipeline(raw)
    assert (artifacts is None) == has_errors(found)
    for diagnostic in found:
        assert diagnostic.code in CODES
        assert diagnostic.message
        assert "Node(" not in diagnostic.message
        span = diagnostic.span
        if span:
            lines = span.source.text.split("\n")
            assert 1 <= span.line <= span.end_line <= len(lines)
            assert 1 <= span.column <= len(lines[span.line - 1]) + 1
    words = render.diagnostics(found)
    assert all(char == "\n" or char.isprintable() for char in words)
    assert len(words) < 200_000
    for artifact in artifacts or ():
        if artifact.consumer in ("yaml", "accelerate"):
            yaml.safe_load(artifact.text)


SNIPPETS = [
    *"\t#{}[]'\"%?\n\r\0", ": ", "- ", "&a ", "*a", "<<: ", "!!str ", "|\n", ">\n", "---\n", "\x85", "\u2028", "\ufeff",
    "!!python/object:os.system ", "null", "1e999", "0x1", "...",
]  # fmt: skip


@st.composite
def mutated_texts(draw):
    """A spec's text with lines swapped, doubled or dropped, and things spliced in."""
    text = draw(st.sampled_from(SPECS))
    for _ in range(draw(st.integers(1, 4))):
        lines = text.split("\n")
        here, there = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, len(lines) - 1))
        kind = draw(st.sampled_from(["swap", "double", "drop", "splice", "cut", "indent"]))
        if kind == "swap":
            lines[here], lines[there] = lines[there], lines[here]
        elif kind == "double":
            lines.insert(there, lines[here])
        elif kind == "drop":
            del lines[here]
        elif kind == "indent":
            lines[here] = draw(st.sampled_from(["  ", " ", "\t", "- "])) + lines[here]
        text = "\n".join(lines)
        at = draw(st.integers(0, len(text)))
        if kind == "splice":
            text = text[:at] + draw(words | st.sampled_from(SNIPPETS)) + text[at:]
        elif kind == "cut":
            text = text[:at] + text[at + draw(st.integers(1, 30)) :]
    return text


@settings(max_examples=examples(1200))
@given(mutated_trees())
def test_a_mutated_tree_never_crashes_the_compiler(tree):
    check(yaml.safe_dump(tree, allow_unicode=True).encode())


@settings(max_examples=examples(2000))
@given(mutated_texts())
def test_a_mutated_text_never_crashes_the_compiler(text):
    check(text.encode())


@settings(max_examples=examples(800))
@given(st.sampled_from(SPECS), st.integers(0, 2000), st.binary(min_size=1, max_size=8), st.integers(0, 8))
def test_spliced_bytes_never_crash_the_compiler(text, at, junk, lost):
    raw = text.encode()
    check(raw[:at] + junk + raw[at + lost :])


@settings(max_examples=examples(500))
@given(st.binary(max_size=200) | words.map(str.encode))
def test_arbitrary_bytes_never_crash_the_compiler(raw):
    check(raw)


# ---------------------------------------------------------------------- purity


@settings(max_examples=examples(60))
@given(mutated_trees())
def test_compiling_twice_gives_the_same_bytes(tree):
    raw = yaml.safe_dump(tree, allow_unicode=True, sort_keys=False).encode()
    first, second = pipeline(raw), pipeline(raw)
    assert [(a.path, a.text) for a in first[1] or ()] == [(a.path, a.text) for a in second[1] or ()]
    assert render.diagnostics(first[2]) == render.diagnostics(second[2])


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONHASHSEED": "1"},
        {"PYTHONHASHSEED": "2", "TZ": "Asia/Tokyo"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "tr_TR.UTF-8", "LANG": "de_DE.ISO-8859-1"},
        {"COLUMNS": "20", "PYTHONOPTIMIZE": "2"},
    ],
    ids=["hash seed", "hash seed and time zone", "ASCII", "Turkish", "optimised"],
)
def test_environment_and_working_folder_change_no_compiled_byte(environment, tmp_path):
    spec = tmp_path / "spec.yaml"
    spec.write_bytes(FULL.encode())
    program = """
import sys
from ratc.cli import main
from tests.effort import examples
sys.exit(main(sys.argv[1:]))
"""

    def compiled(folder: str, extra: dict[str, str], cwd: Path, name: str) -> dict[str, str]:
        command = [sys.executable, "-c", program, "compile", name, "-o", folder]
        ours = ("RAT", "PYTHON", "LC_", "LANG")
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
        done = subprocess.run(
            command, cwd=cwd, env={**inherited, "PYTHONPATH": str(ROOT), **extra}, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        files = sorted((tmp_path / "out").iterdir()) if folder == "out" else sorted(Path(cwd, folder).iterdir())
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    (tmp_path / "elsewhere").mkdir()
    first = compiled("out", {"PYTHONHASHSEED": "0"}, tmp_path, "spec.yaml")
    second = compiled("../other", environment, tmp_path / "elsewhere", "../spec.yaml")
    third = compiled(str(tmp_path / "third"), environment, Path("/"), str(spec))
    assert set(first) == {"accelerate.yaml", "deepspeed.json", "lock.yaml", "run.sh"}

    def without_place(name: str, folder: str) -> str:
        return re.sub(r"\b(out|other|third)/deepspeed", "X/deepspeed", (tmp_path / folder / name).read_text())

    # accelerate.yaml names the folder that it lies in, seen from the spec; the lock holds its digest.
    for name in ("deepspeed.json", "run.sh"):
        assert first[name] == second[name] == third[name]
    places = [without_place("accelerate.yaml", folder) for folder in ("out", "other", "third")]
    assert places[0] == places[1] == places[2]
    again = compiled("out", environment, tmp_path, "spec.yaml")
    assert again == first


# ---------------------------------------------------------------------- three who know a spec

FACTS_TEXT = """\
nodes: 2
gpus_per_node: 4
gpu: a100-80
gpu_memory_mib: 81920
compute_capability: '8.0'
cpus: 64
memory: 512GB
"""


def has_line_end(tree: Any) -> bool:
    """Whether a text has a line end: Python's `$` also matches before the last one, ECMA's and Rust's do not."""
    return "\\n" in repr(tree)


def agree(tree: dict[str, Any], described: dict[str, Any], model: Any) -> None:
    document, found = parse("spec.yaml", yaml.safe_dump(tree, allow_unicode=True).encode())
    assume(document is not None)
    data = document.root.data()
    assume(not has_line_end(data))
    resolved, found = schema.validate(document, described)
    said = list(jsonschema.Draft202012Validator(described).iter_errors(data))
    assert (resolved is not None) == (not said), (found, said)
    if resolved is None:
        with pytest.raises(ValueError, match="validation error"):
            model.model_validate(data)
        return
    nested: dict[str, Any] = {}
    for path, value in resolved.items():
        if value.origin == "default":
            continue
        *parents, key = path.split(".")
        owner = nested
        for parent in parents:
            owner = owner.setdefault(parent, {})
        owner[key] = value.value
    typed = model.model_validate(nested)
    for path, value in resolved.items():
        owner = typed
        for key in path.split("."):
            owner = owner.get(key) if isinstance(owner, dict) else getattr(owner, key, None)
        # The keys of each of `tasks` are compared one by one.
        if path not in ("tuning", "tasks") and not path.startswith("tuning."):
            assert exactly(owner) == exactly(value.value), path


@settings(max_examples=examples(500))
@given(mutated_trees())
def test_schema_models_and_jsonschema_agree_about_specs(tree):
    agree(tree, EXPERIMENT, Spec)


@settings(max_examples=examples(300))
@given(mutated_trees(specs=(FACTS_TEXT,)))
def test_schema_models_and_jsonschema_agree_about_facts(tree):
    agree(tree, FACTS, Facts)
