"""Laws that hold for any input, tried on thousands of made-up ones; the same ones in every run."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from ratc import compiler, facts, layers, resources, schema, targets
from ratc.compiler import File, Inputs
from ratc.diagnostics import Diagnostic, has_errors
from ratc.plan import Plan
from ratc.render import text as render
from ratc.spec.experiment import Spec
from ratc.spec.facts import Facts
from ratc.targets.artifact import Artifact, Place
from ratc.yaml.parse import parse
from ratc.yaml.write import mapping
from tests.effort import examples
from tests.places import ROOT

CODES = {path.stem for path in (ROOT / "ratc" / "codes").glob("*.md")}
MACHINE = facts.Machine(gpus=0, card=None, cpus=8, memory_bytes=16 << 30, source="this machine")
PLACE = Place("../../..", "compiled/demo/local", "spec.yaml", "ratc compile ../../../spec.yaml", {})
EXPERIMENT, FACTS = resources.schema("experiment"), resources.schema("facts")


FULL = """\
# every section, most keys
experiment_name: demo
description: "all of it: née, 東京"
task_type: segmentation
seed: 7
output_dir: outputs/here
model: &model
  name: rat
  feature_dims: 64
  num_blocks: 2
  num_heads: 4
  multi_scale: true
training:
  epochs: 20
  target_batch_size: 64
  batch_size: 4
  learning_rate: 1e-4
  betas: [0.9, 0.99]
  scheduler: step
  step_epochs: 5
  warmup_epochs: 1
  gradient_clipping: null
  deepspeed: true
  zero_stage: 3
  offload_optimizer: true
data:
  dataset: isic
  data_dir: /data/it's here
  image_size: [128, 192]
  scales: [1.0, 0.5]
  channels: 1
  num_workers: 2
logging: {backend: none, use_mlflow: true, mlflow_experiment_name: "a b"}
distributed: {auto_detect: true, backend: nccl}
resources: {nodes: 1, num_gpus: 4, gpu: a100-80, cpus: 16, memory: 128GB, walltime: "24:00:00"}
environment:
  modules: [cuda/12.4]
  venv: .venv
  variables: {OMP_NUM_THREADS: 4, NAME: "x y", RATE: 0.5}
  secrets: [WANDB_API_KEY]
  setup: ["ulimit -n 65536"]
checkpoint: {every_epochs: 2, best_metric: iou, resume: never}
"""
OWN = """\
experiment_name: own
model: {name: "package.module:Model", args: {width: 32, deep: {a: [1, 2.5, null, true]}}}
training: {loss: "package:Loss", loss_args: {gamma: 2.0}, gradient_accumulation_steps: 2}
data: {dataset: "package:Data", args: {root: x}, data_dir: d}
tuning: {search_space: {learning_rate: [1e-5, 1e-3]}}
"""
SEVERAL = (ROOT / "tests" / "cases" / "several-tasks" / "spec.yaml").read_text()
SPECS = [FULL, OWN, SEVERAL, (ROOT / "specs" / "brain" / "config.yaml").read_text()]


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


# ---------------------------------------------------------------------- mutated specs

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.one_of(
    st.integers(-(2**64), 2**64),
    st.sampled_from([0, 1, 2, 3, 7, 2**31, 2**63, 10**9, 10**9 + 1]),
    st.floats(allow_nan=False, allow_infinity=False),
)
values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
SNIPPETS = [
    *"\t#{}[]'\"%?\n\r\0", ": ", "- ", "&a ", "*a", "<<: ", "!!str ", "|\n", ">\n", "---\n", "\x85", "\u2028", "\ufeff",
    "!!python/object:os.system ", "null", "1e999", "0x1", "...",
]  # fmt: skip


def paths(tree: Any, prefix: tuple = ()) -> list[tuple]:
    """The path of every value below the root."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path for key, child in items for path in ((*prefix, key), *paths(child, (*prefix, key)))]


def mutate(draw, tree):
    """Drop, retype, rename or move one value of a tree, in place."""
    places = paths(tree)
    if not places:
        return
    *parents, key = draw(st.sampled_from(places))
    owner = tree
    for parent in parents:
        owner = owner[parent]
    kind = draw(st.sampled_from(["drop", "retype", "rename", "other key's value", "add"]))
    if kind == "drop":
        del owner[key]
    elif kind == "retype":
        owner[key] = draw(values)
    elif kind == "other key's value":
        owner[key] = draw(st.sampled_from([1, 2, 64, 0.5, True, None, "rat", "none", "fp16", "a:b", [1.0], {}]))
    elif isinstance(owner, dict):
        name = draw(words | st.sampled_from([f"{key}s", str(key)[:-1], str(key).upper()]))
        owner[name] = owner.pop(key) if kind == "rename" else draw(values)


@st.composite
def mutated_trees(draw, specs=tuple(SPECS)):
    """A spec with one to four values dropped, retyped, renamed or moved."""
    tree = yaml.safe_load(draw(st.sampled_from(specs)))
    for _ in range(draw(st.integers(1, 4))):
        mutate(draw, tree)
    return tree


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
def test_a_mutated_tree_never_breaks_the_compiler(tree):
    check(yaml.safe_dump(tree, allow_unicode=True).encode())


@settings(max_examples=examples(2000))
@given(mutated_texts())
def test_a_mutated_text_never_breaks_the_compiler(text):
    check(text.encode())


@settings(max_examples=examples(800))
@given(st.sampled_from(SPECS), st.integers(0, 2000), st.binary(min_size=1, max_size=8), st.integers(0, 8))
def test_spliced_bytes_never_break_the_compiler(text, at, junk, lost):
    raw = text.encode()
    check(raw[:at] + junk + raw[at + lost :])


@settings(max_examples=examples(500))
@given(st.binary(max_size=200) | words.map(str.encode))
def test_any_bytes_never_break_the_compiler(raw):
    check(raw)


# ---------------------------------------------------------------------- written YAML

plain = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
TRICKY = [
    *"-?~=|>{}[]'\"\\ yN", "", " a", "a ", "#x", "a #x", "a: b", "a:", ":a", "a:b", "a,b", "a b,c", "a, b", "- a", "<<",
    "...", "*a", "&a", "!a", "%a", "@a", "1e5", "1.5e5", "0x1", "0o7", "0b1", "1_000", ".5", "5.", "+1", "-1", ".inf",
    ".nan", "inf", "nan", "2001-01-01", "12:30:00", "190:20:30", "yes", "No", "ON", "null", "Null", "true", "---",
    "a\nb", "a\r\nb", "\t", "\x07", "\x1b", "\x7f", "\x85", "\xa0", "\u2028", "\ufeff", "\ufffe", "\U0001f9e0", "é",
    "e\u0301", "a\\b", "C:\\x", "$(x)", "/a/b", "a/b:c", "x (y)", "a+b", "..", "./a", "a.b",
]  # fmt: skip
texts = st.text(plain, max_size=30) | st.sampled_from(TRICKY) | st.text("ab1: ,-#.()", max_size=8)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([1e16, 1e-7, -0.0, 1e22, 5e-324, 1.7976931348623157e308, 0.1, 100.0, 1e5]),
    texts,
)
trees = st.dictionaries(
    texts,
    st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
        max_leaves=12,
    ),
    min_size=1,
    max_size=5,
)


def exactly(value: Any) -> Any:
    """The value such that 1, 1.0 and true differ, and 0.0 and -0.0."""
    if isinstance(value, dict):
        return {key: exactly(child) for key, child in value.items()}
    if isinstance(value, list):
        return [exactly(child) for child in value]
    return type(value).__name__, repr(value)


@settings(max_examples=examples(1000))
@given(trees)
@example({text: text for text in TRICKY})
@example({"list": TRICKY, "map": {text: [text] for text in TRICKY}})
def test_written_yaml_reads_back_as_it_was(tree):
    text = mapping(tree)
    for loader in (yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        assert exactly(yaml.load(text, Loader=loader)) == exactly(tree)
    document, found = parse("x.yaml", text.encode())
    assert document, found
    assert exactly(document.root.data()) == exactly(tree)


@settings(max_examples=examples(300))
@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), scalars, min_size=1), texts)
def test_comments_change_nothing(tree, comment):
    text = mapping(tree, dict.fromkeys(tree, comment))
    assert len(text.splitlines()) == len(tree) or "\n" not in text.strip("\n")
    assert exactly(yaml.safe_load(text)) == exactly(tree)


# ---------------------------------------------------------------------- batch

sizes = st.none() | st.integers(1, 96) | st.sampled_from([128, 500, 512, 1000, 4096])


def batch(target: int | None, micro: int | None, accumulation: int | None, gpus: int, nodes: int = 1):
    """The plan of a run of these sizes, and what is said."""
    training = {"target_batch_size": target, "batch_size": micro, "gradient_accumulation_steps": accumulation}
    spec = {
        "experiment_name": "demo",
        "data": {"data_dir": "d"},
        "training": {key: value for key, value in training.items() if value is not None},
        "resources": {"gpu": "h100", "num_gpus": gpus, "nodes": nodes, "cpus": 64},
    }
    analysed, found = compiler.analyse(Inputs(File("spec.yaml", mapping(spec).encode())))
    assert analysed, found
    return compiler.plan(analysed, None, None)


def suggestions(diagnostic: Diagnostic) -> list[tuple[str, int]]:
    """What the help of an R304 names, as pairs of what to change and to what."""
    named = []
    for part in "".join(diagnostic.helps).removeprefix("use ").split(", or ") if diagnostic.helps else ():
        if part.startswith("`"):
            named.append(("micro", int(part.strip("`").removeprefix("batch_size: "))))
        elif "GPU" in part:
            named.append(("gpus", int(part.split()[0])))
        else:
            named += [("target", int(number)) for number in part.split(" or ")]
    return named


@settings(max_examples=examples(1000))
@given(sizes, sizes, st.none() | st.integers(1, 12), st.integers(1, 16), st.sampled_from([1, 1, 2, 4]))
@example(32, 2, 2, 4, 1)
@example(500, None, None, 64, 1)
def test_the_global_batch_is_exact_or_refused_with_a_way_out(target, micro, accumulation, per_node, nodes):
    world = per_node * nodes
    plan, found = batch(target, micro, accumulation, world, nodes)
    if plan:
        got = {key: plan.values[f"training.{key}"].value for key in ("global_batch_size", "micro_batch_size")}
        steps = plan.values["training.gradient_accumulation_steps"].value
        assert got["global_batch_size"] == got["micro_batch_size"] * steps * world
        assert target in (None, got["global_batch_size"])
        assert micro in (None, got["micro_batch_size"])
        assert accumulation in (None, steps)
        return
    (refusal,) = found
    assert refusal.code == "R304"
    given_sizes = {"target": target, "micro": micro, "accumulation": accumulation, "gpus": world, "nodes": nodes}
    named = suggestions(refusal)
    assert any(what == "target" for what, _ in named)
    for what, number in named:
        if what == "gpus" and nodes > 1:
            continue  # the number of nodes may have to follow
        assert number != given_sizes[what], "what was refused is not a way out"
        better, again = batch(**{**given_sizes, what: number})
        assert better, (named, again)


@pytest.mark.parametrize(
    ("target", "micro", "accumulation", "gpus"),
    [
        (999_999_999, 1_000_000_000, None, 1),
        (999_999_937, None, None, 999_999_936),
        (999_999_937, None, 2, 999_999_936),
        (7, 2, None, 1_000_000_000),
        (None, 1_000_000_000, 1_000_000_000, 1_000_000_000),
        (1_000_000_000, 7, None, 1),
        (5, 1_000_000_000, 1_000_000_000, 1),
    ],
)
def test_sizes_beyond_reason_are_answered(target, micro, accumulation, gpus):
    plan, found = batch(target, micro, accumulation, gpus)
    if plan:
        assert plan.values["training.global_batch_size"].value < 2**63, "the lock can hold it"
    else:
        for what, number in suggestions(found[0]):
            assert 1 <= number <= 1_000_000_000, f"{what} could never be that"


# ---------------------------------------------------------------------- layers

KEYS = {
    "training.epochs": st.integers(3, 900),
    "training.weight_decay": st.floats(0, 1),
    "training.scheduler": st.sampled_from(["cosine", "step", "none"]),
    "data.data_dir": st.text("ab /", min_size=1, max_size=5).map(lambda text: f"/{text}x"),
    "data.pin_memory": st.booleans(),
    "resources.cpus": st.integers(1, 64),
    "seed": st.integers(0, 1000),
}
LAYERS = ("spec", "cluster_spec.yaml", "slurm_spec.yaml", "environment", "option")


@settings(max_examples=examples(400))
@given(st.fixed_dictionaries({}, optional={name: st.fixed_dictionaries({}, optional=KEYS) for name in LAYERS}))
def test_later_layers_win_and_every_value_knows_its_layer(given_values):
    def file(name: str, body: dict[str, Any]) -> File:
        tree: dict[str, Any] = {"experiment_name": "demo", "data": {"data_dir": "d"}} if name == "spec" else {}
        for path, value in body.items():
            *section, key = path.split(".")
            owner = tree.setdefault(section[0], {}) if section else tree
            owner[key] = value
        return File("spec.yaml" if name == "spec" else name, mapping(tree).encode(), name)

    base = file("spec", given_values.get("spec", {}))
    overlays = [file(name, given_values[name]) for name in LAYERS[1:3] if given_values.get(name)]
    variables = {
        f"RAT_{path.upper().replace('.', '__')}" if "." in path else f"RAT_{path.upper()}": _written(value)
        for path, value in given_values.get("environment", {}).items()
    }
    overrides, found = layers.from_environment(variables, EXPERIMENT)
    assert not found
    options = given_values.get("option", {}).items()
    overrides += [layers.from_assignment(f"{path}={_written(value)}") for path, value in options]
    resolved, found = compiler.analyse(Inputs(base, overlays, overrides))
    assert resolved, found
    for path in KEYS:
        holders = [name for name in LAYERS if path in given_values.get(name, {})]
        got = resolved[path]
        if not holders:
            assert got.origin == ("spec" if path == "data.data_dir" else "default")
            continue
        last = holders[-1]
        assert exactly(got.value) == exactly(given_values[last][path])
        assert got.origin == ("spec" if last == "spec" else "layer")
        variable = f"RAT_{path.upper().replace('.', '__')}"
        assert got.reason == {"environment": variable, "option": f"--set {path}"}.get(last, last)


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


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
def test_the_surroundings_change_no_byte(environment, tmp_path):
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
def test_schema_models_and_a_second_validator_agree_about_specs(tree):
    agree(tree, EXPERIMENT, Spec)


@settings(max_examples=examples(300))
@given(mutated_trees(specs=(FACTS_TEXT,)))
def test_schema_models_and_a_second_validator_agree_about_facts(tree):
    agree(tree, FACTS, Facts)
