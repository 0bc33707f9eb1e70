"""`ratc explain`: the chain of every value, of specs and of what was compiled."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from ratc import compiler, explain, facts
from ratc.cli import main
from ratc.compiler import File, Inputs
from ratc.render import plan as render
from tests.test_cases import CASES
from tests.test_properties import SPECS

SPEC = """\
experiment_name: demo
training: {batch_size: 2, target_batch_size: 8}
data: {data_dir: data}
resources: {num_gpus: 0, cpus: 4}
"""
MACHINE = facts.Machine(gpus=0, card=None, cpus=8, memory_bytes=16 << 30, source="this machine")


def told(capsys, *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(["explain", *words])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture
def spec(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(SPEC)
    assert main(["compile", "spec.yaml"]) == 0
    return "spec.yaml"


def leaves(link: explain.Link) -> list[explain.Link]:
    return [leaf for below in link.below for leaf in leaves(below)] if link.below else [link]


@pytest.mark.parametrize("text", SPECS)
def test_every_value_ends_in_what_somebody_gave_or_nobody_did(text):
    settings, _ = compiler.analyse(Inputs(File("spec.yaml", text.encode())))
    plan, _ = compiler.plan(settings, None, MACHINE)
    assert plan is not None or "num_gpus: 4" in text
    for path in plan.values if plan else ():
        link = explain.tree(plan, path)
        for leaf in leaves(link):
            assert leaf.is_above or leaf.value.origin != "derived" or not leaf.value.inputs, (path, leaf.path)
        (tree,) = json.loads(render.document([link]))["values"]
        assert (tree["path"], tree["origin"]) == (link.path, link.value.origin)
        assert render.chain(link).count("\n") >= len(leaves(link))


def test_a_chain_quotes_the_lines_that_it_ends_in(spec, capsys):
    _, out, _ = told(capsys, spec, "training.gradient_accumulation_steps")
    assert "training.gradient_accumulation_steps = 4  [worked out]\n  because: 8 / (2 x 1)\n" in out
    assert "[spec.yaml:2:24]\n    | training: {batch_size: 2, target_batch_size: 8}\n" in out


@pytest.mark.parametrize("path", ["compiled/demo/local", "compiled/demo/local/lock.yaml", "compiled/demo"])
def test_what_was_compiled_is_followed_to_its_spec(spec, capsys, path):
    status, out, err = told(capsys, path, "training.batch_size")
    assert (status, err) == (0, "")
    assert "training.micro_batch_size = 2  [spec.yaml:2:24]" in out


def test_from_another_folder_too(spec, capsys, monkeypatch):
    monkeypatch.chdir("compiled")
    assert "[../spec.yaml:2:24]" in told(capsys, "demo/local", "training.batch_size")[1]


def test_where_the_lock_and_its_inputs_disagree_it_says_so(spec, capsys):
    Path(spec).write_text(SPEC.replace("target_batch_size: 8", "target_batch_size: 16"))
    status, _, err = told(capsys, "compiled/demo/local", "gradient_accumulation_steps")
    assert status == 0
    assert "the lock says 4, and its inputs give 8 now; `ratc check` says why" in err


def test_without_its_spec_a_lock_tells_what_it_knows(spec, capsys):
    Path(spec).unlink()
    status, out, err = told(capsys, "compiled/demo/local", "training.precision")
    assert status == 0
    assert "training.precision = fp32  [worked out]\n  because: the CPU\n" in out
    assert "`spec.yaml` is gone" in err


def test_a_section_and_a_last_part(spec, capsys):
    _, out, _ = told(capsys, spec, "parallel")
    assert [line.split()[0] for line in out.splitlines()] == [
        "parallel.processes_per_node",
        "parallel.nodes",
        "parallel.world_size",
        "parallel.backend",
        "parallel.threads_per_process",
    ]
    assert told(capsys, spec, "world_size")[1].startswith("parallel.world_size = 1")
    assert told(capsys, spec, "name")[1].count("\n") > 1, "several end so: all are listed"
    status, _, err = told(capsys, spec, "wrld_size")
    assert (status, "no value `wrld_size`" in err) == (1, True)


def test_all_is_a_table_of_the_whole_plan(spec, capsys):
    _, out, _ = told(capsys, spec, "--all")
    tree = json.loads(told(capsys, spec, "--all", "--format", "json")[1])
    rows = [line.split()[0] for line in out.splitlines() if line]
    assert rows == [value["path"] for value in tree["values"]]
    assert {"seed", "training.precision", "parallel.world_size"} <= set(rows)


def test_a_table_is_cut_to_a_terminal_and_not_for_a_pipe():
    settings, _ = compiler.analyse(Inputs(File("spec.yaml", SPEC.encode())))
    plan, _ = compiler.plan(settings, None, MACHINE)
    assert max(map(len, render.table(plan, list(plan.values), 60).splitlines())) <= 60
    assert "…" not in render.table(plan, list(plan.values))


def test_points_of_a_sweep(tmp_path, capsys, monkeypatch):
    case = CASES / "slurm-array"
    shutil.copytree(case, tmp_path / "case")
    monkeypatch.chdir(tmp_path / "case")
    options = shlex.split(Path("args.txt").read_text())
    _, out, err = told(capsys, "spec.yaml", "model.feature_dims", *options)
    assert (out.startswith("model.args.feature_dims = 64"), "2 points this is small" in err) == (True, True)
    assert told(capsys, "spec.yaml", "feature_dims", "--point", "large", *options)[1].startswith(
        "model.args.feature_dims = 256"
    )
    status, _, err = told(capsys, "spec.yaml", "seed", "--point", "lareg", *options)
    assert (status, "did you mean `large`?" in err) == (1, True)
    assert main(["compile", "spec.yaml", *options]) == 0
    _, out, err = told(capsys, "compiled/demo/slurm/points/large", "feature_dims")
    assert out.startswith("model.args.feature_dims = 256")


def test_secrets_are_not_told(spec, capsys):
    token = "hf_" + "a" * 30
    Path(spec).write_text(SPEC + f"description: {token}\n")
    for form in ("text", "json"):
        for words in ((spec, "description"), (spec, "--all"), (spec,)):
            assert token not in told(capsys, *words, "--format", form)[1]


def test_what_was_not_compiled_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    status, _, err = told(capsys, "empty", "seed")
    assert (status, "error[R422]" in err) == (1, True)


def test_every_code_has_its_page(capsys):
    for code in sorted(path.stem for path in (Path(compiler.__file__).parent / "codes").glob("R*.md")):
        status, out, _ = told(capsys, code.lower())
        assert (status, out.startswith(f"# {code}: ")) == (0, True)
