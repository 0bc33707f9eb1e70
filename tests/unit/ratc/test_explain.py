"""`ratc explain`: the chain of every value, for specs and compiled folders."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from ratc import compiler, explain, facts
from ratc.cli import compile as compile_command
from ratc.cli import main, options
from ratc.compiler import File, Inputs
from ratc.render import plan as render
from ratc.workflow import inputs
from tests.helpers.made_specs import SPECS
from tests.places import CASES

SPEC = """\
experiment_name: demo
training: {batch_size: 2, target_batch_size: 8}
data: {data_dir: data}
resources: {num_gpus: 0, cpus: 4}
"""
MACHINE = facts.Machine(gpus=0, card=None, cpus=8, memory_bytes=16 << 30, source="this machine")


def run_explain(capsys, *words: str) -> tuple[int, str, str]:
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
def test_every_chain_ends_in_given_values_or_defaults(text):
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


def test_chain_quotes_the_spec_lines_at_its_ends(spec, capsys):
    _, out, _ = run_explain(capsys, spec, "training.gradient_accumulation_steps")
    assert "training.gradient_accumulation_steps = 4  [worked out]\n  because: 8 / (2 x 1)\n" in out
    assert "[spec.yaml:2:24]\n    | training: {batch_size: 2, target_batch_size: 8}\n" in out


@pytest.mark.parametrize("path", ["compiled/demo/local", "compiled/demo/local/lock.yaml", "compiled/demo"])
def test_values_of_a_compiled_folder_are_traced_to_the_spec(spec, capsys, path):
    status, out, err = run_explain(capsys, path, "training.batch_size")
    assert (status, err) == (0, "")
    assert "training.micro_batch_size = 2  [spec.yaml:2:24]" in out


def test_spec_path_is_relative_to_the_working_folder(spec, capsys, monkeypatch):
    monkeypatch.chdir("compiled")
    assert "[../spec.yaml:2:24]" in run_explain(capsys, "demo/local", "training.batch_size")[1]


def test_difference_between_lock_and_inputs_is_reported(spec, capsys):
    Path(spec).write_text(SPEC.replace("target_batch_size: 8", "target_batch_size: 16"))
    status, _, err = run_explain(capsys, "compiled/demo/local", "gradient_accumulation_steps")
    assert status == 0
    assert "the lock says 4, but its inputs give 8 now; `ratc check` shows why" in err


def test_lock_without_its_spec_is_explained_from_its_own_values(spec, capsys):
    Path(spec).unlink()
    status, out, err = run_explain(capsys, "compiled/demo/local", "training.precision")
    assert status == 0
    assert "training.precision = fp32  [worked out]\n  because: the CPU\n" in out
    assert "`spec.yaml`, from which it was compiled, does not exist any more" in err


def test_section_lists_its_values_and_a_typo_gives_a_suggestion(spec, capsys):
    _, out, _ = run_explain(capsys, spec, "parallel")
    assert [line.split()[0] for line in out.splitlines()] == [
        "parallel.processes_per_node",
        "parallel.nodes",
        "parallel.world_size",
        "parallel.timeout_seconds",
        "parallel.backend",
        "parallel.threads_per_process",
    ]
    assert run_explain(capsys, spec, "world_size")[1].startswith("parallel.world_size = 1")
    assert run_explain(capsys, spec, "name")[1].count("\n") > 1, "several end so: all are listed"
    status, _, err = run_explain(capsys, spec, "wrld_size")
    assert (status, "error[R108]: there is no value `wrld_size`\n" in err) == (1, True)
    assert "did you mean `parallel.world_size`?" in err


def test_all_option_lists_every_value_of_the_plan(spec, capsys):
    _, out, _ = run_explain(capsys, spec, "--all")
    tree = json.loads(run_explain(capsys, spec, "--all", "--format", "json")[1])
    rows = [line.split()[0] for line in out.splitlines() if line]
    assert rows == [value["path"] for value in tree["values"]]
    assert {"seed", "training.precision", "parallel.world_size"} <= set(rows)


def test_table_is_truncated_only_for_a_terminal():
    settings, _ = compiler.analyse(Inputs(File("spec.yaml", SPEC.encode())))
    plan, _ = compiler.plan(settings, None, MACHINE)
    assert max(map(len, render.table(plan, list(plan.values), 60).splitlines())) <= 60
    assert "…" not in render.table(plan, list(plan.values))


def test_values_of_sweep_points_are_explained(tmp_path, capsys, monkeypatch):
    case = CASES / "slurm-array"
    shutil.copytree(case, tmp_path / "case")
    monkeypatch.chdir(tmp_path / "case")
    options = shlex.split(Path("args.txt").read_text())
    _, out, err = run_explain(capsys, "spec.yaml", "model.feature_dims", *options)
    assert (out.startswith("model.args.feature_dims = 64"), "2 points this is small" in err) == (True, True)
    assert run_explain(capsys, "spec.yaml", "feature_dims", "--point", "large", *options)[1].startswith(
        "model.args.feature_dims = 256"
    )
    status, _, err = run_explain(capsys, "spec.yaml", "seed", "--point", "lareg", *options)
    assert (status, "did you mean `large`?" in err) == (1, True)
    assert main(["compile", "spec.yaml", *options]) == 0
    _, out, err = run_explain(capsys, "compiled/demo/slurm/points/large", "feature_dims")
    assert out.startswith("model.args.feature_dims = 256")


def test_secrets_are_redacted(spec, capsys):
    token = "hf_" + "a" * 30
    Path(spec).write_text(SPEC + f"description: {token}\n")
    for form in ("text", "json"):
        for words in ((spec, "description"), (spec, "--all"), (spec,)):
            assert token not in run_explain(capsys, *words, "--format", form)[1]


def test_folder_without_a_lock_is_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    status, _, err = run_explain(capsys, "empty", "seed")
    assert (status, "error[R422]" in err) == (1, True)


def requested(*words: str):
    return options.request(compile_command.command.make_context("compile", list(words)).params)


@pytest.mark.parametrize("case", sorted(path.parent.name for path in CASES.glob("*/expected")))
def test_every_chain_of_every_golden_plan_ends_in_a_line_or_default(case, monkeypatch):
    monkeypatch.chdir(CASES / case)
    words = Path("args.txt").read_text() if Path("args.txt").exists() else ""
    request = requested("spec.yaml", *shlex.split(words))
    plan = inputs.decided(request, inputs.load(request).settings, predict=False)[0]
    for path in plan.values:
        link = explain.tree(plan, path)
        for leaf in leaves(link):
            assert leaf.is_above or leaf.value.origin != "derived", (path, leaf.path)
            assert leaf.value.origin not in ("spec", "layer") or leaf.value.span, (path, leaf.path)
        (told_,) = json.loads(render.document([link]))["values"]
        assert flattened(told_) == [line.split(" = ")[0].strip() for line in links_of(render.chain(link))]


def flattened(tree: dict) -> list[str]:
    return [tree["path"], *(path for below in tree["inputs"] for path in flattened(below))]


def links_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.strip().startswith(("because: ", "| ", "("))]


@pytest.mark.parametrize(
    ("path", "predicted"),
    [
        ("training.batch_size", True),
        ("batch_size", True),
        ("zero_stage", True),
        ("memory.margin", True),
        ("memory", True),
        ("training", True),
        ("training.precision", False),
        ("world_size", False),
    ],
)
def test_values_decided_by_memory_are_predicted_under_any_name(path, predicted, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(
        "experiment_name: demo\ntraining: {target_batch_size: 8}\ndata: {data_dir: data}\n"
        "resources: {gpu: a100-80, num_gpus: 1, cpus: 4}\n"
    )
    asked = []
    monkeypatch.setattr(inputs, "predict", lambda request, plan: asked.append(plan) or (None, ()))
    assert run_explain(capsys, "spec.yaml", path)[0] == 0
    assert bool(asked) == predicted


def test_value_is_found_by_its_last_key_or_its_spec_key(spec, capsys):
    assert run_explain(capsys, spec, "batch_size")[1].startswith("training.micro_batch_size = 2 ")
    assert run_explain(capsys, spec, "training.mixed_precision")[1].startswith("training.precision = ")
    rows = {line.split()[0] for line in run_explain(capsys, spec, "resources")[1].splitlines()}
    assert {"resources.cpus", "resources.walltime"} <= rows


@pytest.mark.parametrize("what", ["facts", "errors"])
def test_lock_is_explained_from_its_own_values_if_inputs_fail(spec, capsys, what):
    Path("facts.yaml").write_text("gpus_per_node: 0\ncpus: 4\n")
    assert main(["compile", spec, "--facts", "facts.yaml"]) == 0
    if what == "facts":
        Path("facts.yaml").unlink()
    else:
        Path(spec).write_text(SPEC + "nonsense: 1\n")
    status, out, err = run_explain(capsys, "compiled/demo/local", "gradient_accumulation_steps")
    assert (status, out.splitlines()[0]) == (0, "training.gradient_accumulation_steps = 4  [worked out]")
    assert ("does not exist any more" if what == "facts" else "has errors now") in err


def test_changed_fact_is_reported_with_its_line(spec, capsys):
    Path("facts.yaml").write_text("gpus_per_node: 0\ncpus: 4\n")
    Path(spec).write_text(SPEC.replace(", cpus: 4", ""))
    assert main(["compile", spec, "--facts", "facts.yaml"]) == 0
    Path("facts.yaml").write_text("gpus_per_node: 0\ncpus: 2\n")
    _, out, err = run_explain(capsys, "compiled/demo/local", "num_workers")
    assert "the lock says 3, but its inputs give 1 now; `ratc check` shows why" in err
    assert "facts.yaml:2:7" in out


def test_edited_lock_value_is_reported(spec, capsys):
    lock = Path("compiled/demo/local/lock.yaml")
    lock.write_text(lock.read_text().replace("gradient_accumulation_steps: 4", "gradient_accumulation_steps: 5"))
    _, out, err = run_explain(capsys, "compiled/demo/local", "gradient_accumulation_steps")
    assert out.startswith("training.gradient_accumulation_steps = 4 ")
    assert "the lock says 5, but its inputs give 4 now" in err


def test_options_that_do_not_apply_are_refused(spec, capsys):
    for words in (["--set", "seed=7"], ["--facts", "x.yaml"], ["--seed", "7"], ["--target", "slurm"]):
        status, out, err = run_explain(capsys, "compiled/demo/local", "seed", *words)
        assert (status, out, f"`{words[0]}` needs a spec" in err) == (2, "", True)
    status, _, err = run_explain(capsys, spec, "seed", "--point", "0001")
    assert (status, "the spec has none" in err) == (1, True)


def test_values_of_all_sweep_points_are_listed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(SPEC + "sweep: {list: [{description: first}, {seed: 2}, {seed: 3}]}\n")
    for form in ("text", "json"):
        _, out, err = run_explain(capsys, "spec.yaml", "seed", "--format", form)
        assert "seed has 3 values over the sweep's 3 points: 42, 2, 3" in out + err
    assert "values over" not in run_explain(capsys, "spec.yaml", "task_type")[2]
    assert "values over" not in run_explain(capsys, "spec.yaml", "seed", "--point", "0002")[2]


def test_secret_of_a_sweep_point_is_redacted(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    token = "hf_" + "a" * 30
    Path("spec.yaml").write_text(SPEC + f"sweep: {{list: [{{description: {token}}}, {{seed: 2}}, {{seed: 3}}]}}\n")
    for form in ("text", "json"):
        status, out, err = run_explain(capsys, "spec.yaml", "seed", "--format", form)
        assert (status, "R205" in out + err, token in out + err) == (1, True, False)


def test_json_output_is_valid_json_after_an_error(spec, capsys):
    status, out, _ = run_explain(capsys, spec, "sed", "--format", "json")
    assert (status, json.loads(out)["values"]) == (1, [])
    found = json.loads(out)["findings"][0]
    assert (found["code"], found["message"]) == ("R108", "there is no value `sed`")
    assert "did you mean `seed`?" in str(found)
    status, out, _ = run_explain(capsys, "nothing.yaml", "seed", "--format", "json")
    assert (status, json.loads(out)["findings"][0]["code"]) == (1, "R001")


def test_control_sequences_are_not_printed(spec, capsys):
    assert "\x1b" not in "".join(map(str, run_explain(capsys, spec, "\x1b[2J")))


def test_codes_are_listed_and_an_unknown_code_gives_suggestions(capsys):
    rows = run_explain(capsys, "codes")[1].splitlines()
    pages = sorted(path.stem for path in (Path(compiler.__file__).parent / "codes").glob("R*.md"))
    assert [row.split("  ")[0] for row in rows] == pages
    assert all(row.split("  ", 1)[1] for row in rows)
    status, _, err = run_explain(capsys, "R399")
    near = re.findall(r"help: (R\d{3})", err)
    assert (status, len(near), "R001" in err) == (1, 3, False)
    assert all(code in pages and code.startswith("R3") for code in near)
    assert "R330" in run_explain(capsys, "r33")[2]


def test_every_code_has_a_page(capsys):
    for code in sorted(path.stem for path in (Path(compiler.__file__).parent / "codes").glob("R*.md")):
        status, out, _ = run_explain(capsys, code.lower())
        assert (status, out.startswith(f"# {code}: ")) == (0, True)
