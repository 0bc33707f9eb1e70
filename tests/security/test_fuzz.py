"""One fuzz target for each parser of text from strangers.

`fuzz.py` holds the law that each parser keeps, and `fuzz_runtime.py` the targets of the runtime.

A run of the suite tries a few examples of each, `RATC_TEST_EFFORT=50` some hours of them.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ratc import compiler, corrections, resources
from ratc.cli import main
from ratc.compiler import File
from ratc.lsp import analysis
from ratc.memory import trace
from ratc.own_code import signatures, trust
from ratc.probe import lsf, slurm
from ratc.probe.inventory import text as facts_text
from ratc.scheduler import DIALECTS, history
from ratc.scheduler.dialect import Answer
from ratc.study import proposed
from ratc.study.budget import Budget
from ratc.study.trial_files import TrialFiles
from ratc.tuning import outcome
from tests.effort import examples
from tests.places import TESTS
from tests.security import fuzz_runtime
from tests.security.fuzz import Targets, command, into, lawful, mutated, recorded, texts, write
from tests.unit.ratc.scheduler.test_lsf import BACCT
from tests.unit.ratc.scheduler.test_slurm import REQUEUED, SHOW
from tests.unit.ratc.tuning.test_tuning import PRODUCT, read

SPEC = """\
experiment_name: demo
description: &d "what it is"
model: {name: rat, num_heads: 4, args: {a: [1, 2]}}
data: {data_dir: data, image_size: [64, 64], augmentations: {flip: 0.5}}
training: {batch_size: 2, target_batch_size: 8, epochs: 3, learning_rate: 1e-3}
resources: {num_gpus: 0, cpus: 2, walltime: "1:00:00", account: me}
environment: {setup: ["true"], variables: {A: *d}, modules: [cuda/12.4], secrets: [TOKEN]}
logging: {use_mlflow: false}
"""
SWEPT = SPEC + "sweep: {grid: {seed: [1, 2], training.learning_rate: [1e-3, 1e-2]}, max_parallel: 2}\n"
STUDIED = SPEC + (
    "tuning: {metric: dice, trials: 4, search_space: {learning_rate: {low: 1e-4, high: 1e-2, log: true}, "
    "model.num_blocks: {choices: [1, 2]}}}\n"
)
FACTS = "gpus_per_node: 4\ngpu: h100\ncpus: 32\nmemory: 500GiB\n"
IMPORTS = {
    "slurm": "imports/sbatch/run.sbatch",
    "lsf": "imports/bsub/run.lsf",
    "accelerate": "imports/accelerate/acc.yaml",
    "deepspeed": "imports/deepspeed/ds.json",
    "unified": "imports/original-framework/unified.yaml",
}
#: The targets of the compiler are added below.
TARGETS: Targets = dict(fuzz_runtime.TARGETS)
target = into(TARGETS)


@target("spec", texts(SPEC, SWEPT, STUDIED))
def spec(data: bytes, err: Callable[[], str]) -> None:
    write("spec.yaml", data)
    command(main, ["validate", "spec.yaml"], err)
    command(main, ["compile", "spec.yaml", "-o", "out", "--no-predict"], err)
    command(main, ["explain", "spec.yaml", "seed"], err)


@target("overlay", texts("training: {batch_size: 4}\nresources: {cpus: 3}\n", SPEC))
def overlay(data: bytes, err: Callable[[], str]) -> None:
    write("config.yaml", SPEC.encode())
    write("local_config.yaml", data)
    command(main, ["compile", "config.yaml", "-o", "out", "--no-predict"], err)


@target("options", mutated(("training.epochs=3", "model.args={a: [1, 2]}", "environment.variables.A=x", "seed=null")))
def options(text: str, err: Callable[[], str]) -> None:
    write("spec.yaml", SPEC.encode())
    command(main, ["compile", "spec.yaml", "-o", "out", "--no-predict", f"--set={text}"], err)
    command(main, ["validate", "spec.yaml", f"--epochs={text}", f"--batch-size={text}", f"--output-dir={text}"], err)


@target("variables", mutated(("3", "data", "[1, 2]", "true")))
def variables(text: str, err: Callable[[], str]) -> None:
    write("spec.yaml", SPEC.encode())
    names = ("RAT_DATA_DIR", "RAT_BATCH_SIZE", "RAT_EPOCHS", "RAT_OUTPUT_DIR")
    text = text.replace("\0", "").encode("utf-8", "replace").decode()
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setenv(name, text)
        command(main, ["compile", "spec.yaml", "-o", "out", "--no-predict"], err)


@target("facts", texts(FACTS))
def facts(data: bytes, err: Callable[[], str]) -> None:
    write("spec.yaml", SPEC.encode())
    command(main, ["compile", "spec.yaml", "-o", "out", "--no-predict", "--facts", write("facts.yaml", data)], err)


@target("cluster", texts(*recorded("cluster/slurm/cluster.yaml", "cluster/lsf/cluster.yaml")))
def cluster(data: bytes, err: Callable[[], str]) -> None:
    write("ours.yaml", data)
    write("spec.yaml", SPEC.replace("account: me", "cluster: ours.yaml").encode())
    for scheduler in ("slurm", "lsf"):
        command(main, ["compile", "spec.yaml", "--target", scheduler, "-o", "out", "--no-predict"], err)


@target("rate", texts("learning_rate: 0.001\nglobal_batch_size: 8\nof: sha256:0\nreason: steepest\nsteps: 9\n"))
def rate(data: bytes, err: Callable[[], str]) -> None:
    write("spec.yaml", SPEC.replace("1e-3", "auto").encode())
    write("measured_spec.yaml", data)
    command(main, ["compile", "spec.yaml", "-o", "out", "--no-predict"], err)


def importing(kind: str) -> None:
    @target(f"import-{kind}", texts(*recorded(IMPORTS[kind])))
    def run(data: bytes, err: Callable[[], str]) -> None:
        name = write(os.path.basename(IMPORTS[kind]), data)
        command(main, ["import", name, "-o", "new.yaml", "--force"], err)
        command(main, ["import", name, "--from", kind, "-o", "new.yaml", "--force"], err)


for one in IMPORTS:
    importing(one)


@target("lock", texts(*recorded("cases/product-document-cpu/expected/lock.yaml")))
def lock(data: bytes, err: Callable[[], str]) -> None:
    from ratc_runtime.config.lock import read_lock
    from ratc_runtime.errors import RuntimeFinding

    write("spec.yaml", SPEC.encode())
    path = write("old/lock.yaml", data)
    for words in (["diff", "old", "spec.yaml"], ["check", "."], ["explain", "old", "seed"]):
        command(main, words, err)
    with contextlib.suppress(RuntimeFinding):
        read_lock(Path(path))


@target("points", texts("name\tvalues\tlock\na\tseed=1\tsha256:0\nb\tseed=2\tsha256:1\n"))
def points(data: bytes, err: Callable[[], str]) -> None:
    write("spec.yaml", SWEPT.encode())
    write("ours.yaml", recorded("cluster/slurm/cluster.yaml")[0].encode())
    write("spec.yaml", SWEPT.replace("account: me", "cluster: ours.yaml").encode())
    if not os.path.exists("out/lock.yaml"):
        command(main, ["compile", "spec.yaml", "--target", "slurm", "-o", "out", "--no-predict"], err)
    write("out/points.tsv", data)
    for words in (["check", "out"], ["diff", "out", "out"], ["explain", "out", "seed"]):
        command(main, words, err)


@target("own-code", texts("from torch import nn\n\nclass Net(nn.Module):\n    def __init__(self, a=1, *, b): ...\n"))
def own_code(data: bytes, err: Callable[[], str]) -> None:
    write("net.py", data)
    write("spec.yaml", SPEC.replace("rat, num_heads: 4", "'net:Net'").encode())
    command(main, ["validate", "spec.yaml"], err)
    command(main, ["compile", "spec.yaml", "-o", "out", "--no-predict"], err)


SLURM = ("nodes", "partitions", "config")
LSF = ("gpus", "groups", "hosts", "load", "lsid", "machines", "queues")


def probing(name: str, keys: tuple[str, ...], folder: str, reader: Any) -> None:
    whole = {key: (TESTS / f"unit/ratc/probe/recorded/{folder}/{key}.txt").read_text() for key in keys}

    @target(name, st.sampled_from(keys).flatmap(lambda key: st.tuples(st.just(key), mutated((whole[key],)))))
    def run(given: tuple[str, str], err: Callable[[], str]) -> None:
        found = reader.inventory({**whole, given[0]: given[1].encode("utf-8", "replace").decode()})
        if found is None:
            return
        cluster, said = compiler.read_cluster(File("facts", facts_text(found, "ratc probe").encode()))
        assert cluster is not None or all(item.code.startswith("R") for item in said)


probing("probe-slurm", SLURM, "slurm-mixed", slurm)
probing("probe-lsf", LSF, "lsf", lsf)


@target(
    "jobs-of-a-scheduler",
    mutated(("7_1|RUNNING|n1\n7_2|PENDING|\n", "Job <7> is submitted to queue <gpu>.\n", "7;ours")),
)
def jobs(text: str, err: Callable[[], str]) -> None:
    for dialect in DIALECTS.values():
        for status in (0, 1):
            answer = Answer(dialect.programs[0], status, text, text)
            for asked in (dialect.cluster, dialect.job, dialect.may_have_submitted, dialect.tasks):
                asked(answer)


RECORD = json.dumps(
    {
        "version": 1,
        "submissions": [dict.fromkeys(("job", "lock", "scheduler", "cluster", "host", "time"), "x")],
    }
)


@target("submissions", texts(RECORD))
def submitted(data: bytes, err: Callable[[], str]) -> None:
    write(".submitted/jobs.json", data)
    found, said = history.read(".")
    assert not (found and said)


RESULTS = json.dumps({"status": "finished", "lock_sha256": "", "epochs": [{"epoch": 1, "val_dice": 0.5}]})


@target("results", texts(RESULTS))
def results(data: bytes, err: Callable[[], str]) -> None:
    from ratc_runtime.output.results import read_results

    write("results.json", data)
    write("epochs.json", data)
    files = TrialFiles("none", ".")
    outcome.judged(files.results(), "dice", True)
    assert not files.is_held()
    read_results(Path())


@target("study", texts('{"search_space": "x"}\n{"learning_rate": 0.01}\n', '{"seconds": 5.0}'))
def study(data: bytes, err: Callable[[], str]) -> None:
    made = read(PRODUCT)
    for name in ("proposals.jsonl", "spent.json", "study.json"):
        write(name, data)
    head = proposed._head(made).encode()
    write("proposals.jsonl", head + b"\n" + data)
    proposed.read(".", made).points(made)
    assert Budget(".", None).spent >= 0


def seed_trace() -> dict[str, Any]:
    return {
        "trace_version": trace.VERSION,
        "phases": ["a"],
        "modules": ["m"],
        "kinds": list(trace.KINDS),
        "parameters": {"count": 2, "trainable": 1, "bytes": 8},
        "steps": [0, 2],
        "events": [[1, 8, 0, 0, 0, 0], [-1]],
        "torch": "2.13",
        "estimates": [],
        "scratch": [],
        "optional": [],
        "work": [["mm", "bf16", 1, 0, 2, 0, 8, 8, 4]],
        "request": {"compute_capability": "9.0"},
        "groups": [0],
    }


@target("trace", texts(json.dumps(seed_trace())))
def traced(data: bytes, err: Callable[[], str]) -> None:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return
    with contextlib.suppress(trace.BadTrace):
        trace.parse(content)


@target("trust", texts("/data/one\n/data/two \n", "relative\n/\n", "/a\r\n/b\x00\n"))
def trusted(data: bytes, err: Callable[[], str]) -> None:
    """Nobody's list trusts a folder that it does not name, and a folder is taken off it again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RATC_CONFIG", os.getcwd())
        write("trusted", data)
        assert not trust.is_listed("/nowhere") or any(line in (b"/", b"/nowhere") for line in data.splitlines())
        command(main, ["trust"], err)
        command(main, ["trust", "."], err)
        assert trust.is_listed(".")
        command(main, ["trust", "--remove", "."], err)
        assert not trust.is_entry(".")
        assert os.stat("trusted").st_mode & 0o077 == 0


@target("editor", st.tuples(texts(SPEC, SWEPT), st.integers(0, 12), st.integers(0, 40)))
def edited(data: tuple[bytes, int, int], err: Callable[[], str]) -> None:
    text, line, column = data[0].decode("utf-8", "surrogateescape"), data[1], data[2]
    analysis.is_spec(text)
    analysis.hover(analysis.analyse("spec.yaml", text), line + 1, column + 1)
    analysis.completions(text, line + 1, column + 1)
    err()


@target("accounting", mutated((REQUEUED, SHOW.format(state="FAILED", reason="x", code="1:0", nodes="n[1-2]"), BACCT)))
def accounted(text: str, err: Callable[[], str]) -> None:
    for dialect in DIALECTS.values():
        for commands in dialect.record_commands("12"):
            for record in dialect.records(Answer(commands[0], 0, text)):
                assert record.end


@target("corrections", mutated(("1:00:00", "3 h", "64x64", "a.b.c", "net.py:Net", "yes", "1e-3")))
def corrected(text: str, err: Callable[[], str]) -> None:
    properties = resources.schema("experiment")["properties"]
    for schema in (properties["seed"], {"type": "array", "items": {"type": "integer"}}, {"type": ["number", "null"]}):
        for made in corrections.corrections(text, text, {key: value for key, value in schema.items() if key != "$ref"}):
            yaml.safe_load(made)


@target("signatures", mutated(("def f(a, b=1, *c, d, **e): ...", "class A(B):\n    def __init__(self, x): ...\n")))
def signed(text: str, err: Callable[[], str]) -> None:
    import ast

    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for name in signatures.names(tree):
        with contextlib.suppress(signatures.Unknown):
            signatures.signature(tree, name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("fuzz") / "inner"
    place.mkdir()
    before = os.getcwd()
    os.chdir(place)
    yield place
    os.chdir(before)


@pytest.mark.parametrize("name", TARGETS)
def test_each_parser_returns_or_reports_a_finding(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strategy, run = TARGETS[name]
    place = folder / name
    place.mkdir()
    os.chdir(place)

    @settings(max_examples=examples(60), suppress_health_check=list(HealthCheck), deadline=None)
    @given(strategy)
    def tried(data: Any) -> None:
        with lawful(place):
            run(data, lambda: capsys.readouterr().err)

    tried()
