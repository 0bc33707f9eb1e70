"""Studies: their search space, their trials, and the arrays and ledgers made of them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ratc import compiler, resources
from ratc.cli import main
from ratc.compiler import File, Inputs
from ratc.study import budget, proposed
from ratc.tuning import proposals
from ratc.tuning import share as shares
from ratc.tuning.points import Study, study

SPEC = """\
experiment_name: demo
seed: 1
training: {target_batch_size: 32}
data: {data_dir: data}
tuning:
"""
CLUSTER = """\
name: ours
scheduler: slurm
node_types: {cpu: {gpus_per_node: 0, cpus: 32, memory: 128GB}}
partitions: {batch: {nodes: {cpu: 10}, default: true, max_walltime: "2-00:00:00"}}
"""
PRODUCT = "{backend: ray, search_space: {learning_rate: [1e-5, 1e-3], batch_size: [4, 8, 16]}}"


def read(tuning: object) -> Study:
    """The study of a spec with this under `tuning`."""
    text = SPEC.replace("tuning:\n", f"tuning: {tuning if isinstance(tuning, str) else json.dumps(tuning)}\n")
    document, found = compiler.layered(Inputs(File("spec.yaml", text.encode())))
    assert document is not None, found
    made, found = study(document, resources.schema("experiment"))
    assert made is not None, found
    return made


def values(made: Study) -> list[dict[str, object]]:
    return [{path: node.data() for path, node in point.nodes} for point in made.points]


def test_search_space_of_the_product_document_is_read():
    made = read(PRODUCT)
    assert [entry.text for entry in made.space] == [
        "a number from 1e-05 to 0.001, on a logarithmic scale",
        "one of 4, 8, 16",
    ]
    assert [entry.path for entry in made.space] == ["training.learning_rate", "training.batch_size"]
    assert (len(made.points), made.metric, made.larger_is_better) == (16, "dice", True)


def test_trial_with_an_invalid_group_size_is_left_out(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sharded = "parallel: {strategy: fsdp2, shard: hybrid}\nresources: {gpu: a100-80, num_gpus: 8}\n"
    tuning = "  trials: 6\n  search_space: {parallel.shard_size: [2, 3, 4]}\n"
    Path("spec.yaml").write_text(sharded + SPEC + tuning)
    assert main(["validate", "spec.yaml"]) == 0
    said = capsys.readouterr().err
    assert "warning[R338]: 1 of 3 trials cannot run and are left out" in said
    assert "parallel.shard_size=3: groups of 3 processes (`shard_size`) cannot be formed of 8 processes (R364)" in said


def test_array_study_contains_only_the_trials_that_can_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ours.yaml").write_text(CLUSTER)
    tuning = "  backend: array\n  max_parallel: 3\n  trials: 12\n"
    tuning += "  search_space: {learning_rate: [1e-5, 1e-3], batch_size: [4, 8, 12, 16]}\n"
    Path("spec.yaml").write_text(SPEC + tuning + 'resources: {cluster: ./ours.yaml, num_gpus: 0, walltime: "10:00"}\n')
    assert main(["compile", "spec.yaml", "--target", "slurm"]) == 0
    said = capsys.readouterr().err
    assert re.search(r"warning\[R338\]: [1-9] of 12 trials cannot run and are left out", said)
    assert "cannot be split over micro-batches of 12 (R304)" in said
    folder = Path("compiled/demo/slurm")
    rows = [line.split("\t") for line in (folder / "points.tsv").read_text().splitlines()[1:]]
    assert f"#SBATCH --array=1-{len(rows)}%3" in (folder / "job.sbatch").read_text()
    record = yaml.safe_load((folder / "study.yaml").read_text())
    assert len(record["left_out"]) + len(rows) == 12
    assert record["trials"] == len(rows)
    assert record["search_space"]["training.learning_rate"].endswith("on a logarithmic scale")
    for name, text, _ in rows:
        lock = yaml.safe_load((folder / f"points/{name}/lock.yaml").read_text())
        batch = re.search(r"training.batch_size=(\d+)", text)
        assert lock["training"].get("micro_batch_size", int(batch[1])) == int(batch[1]) != 12
        assert lock["output_dir"] == f"outputs/demo/{name}"
    assert main(["check"]) == 0
    # It holds for LSF and `validate` too, and a sweep beside it is refused.
    capsys.readouterr()
    assert main(["validate", "spec.yaml"]) == 0
    with Path("spec.yaml").open("a") as file:
        file.write("sweep: {grid: {seed: [1, 2]}}\n")
    assert main(["validate", "spec.yaml"]) == 1
    assert "error[R224]" in capsys.readouterr().err


def test_local_compile_ignores_the_study(tmp_path, capsys):
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC + "  backend: array\n  search_space: {learning_rate: [1e-5, 1e-3]}\n")
    assert main(["compile", str(path), "--num-gpus", "0"]) == 0
    assert "R206" not in capsys.readouterr().err
    assert not (tmp_path / "compiled/demo/local/points").exists()
    path.write_text(path.read_text().replace("array", "ray"))
    assert main(["compile", str(path), "--num-gpus", "0"]) == 0
    assert not (tmp_path / "compiled/demo/local/study.yaml").exists()


def test_dry_run_lists_the_trials_and_writes_nothing(tmp_path, capsys):
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC + "  backend: array\n  trials: 5\n  search_space: {learning_rate: [1e-5, 1e-3]}\n")
    assert main(["tune", str(path), "--dry-run", "--num-gpus", "0"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert [entry.name for entry in tmp_path.iterdir()] == ["spec.yaml"]
    path.write_text(path.read_text().split("tuning:")[0])
    assert main(["tune", str(path), "--num-gpus", "0"]) == 1
    assert "the spec has no `tuning`" in capsys.readouterr().err


def space_of(*entries):
    return read({"backend": "ray", "search": "tpe", "search_space": dict(entries)}).space


@given(st.floats(1e-5, 1e-3), st.integers(0, 2), st.integers(1, 6))
def test_point_of_a_proposal_has_its_values(rate, choice, blocks):
    space = space_of(
        ("learning_rate", [1e-5, 1e-3]), ("batch_size", [4, 8, 16]), ("model.num_blocks", {"range": [1, 6]})
    )
    proposal = {"training.learning_rate": rate, "training.batch_size": choice, "model.num_blocks": blocks}
    point = proposals.point(7, space, proposal)
    told = {path: node.data() for path, node in point.nodes}
    assert told["training.learning_rate"] == pytest.approx(rate, rel=1e-3)
    assert 1e-5 <= told["training.learning_rate"] <= 1e-3
    assert (told["training.batch_size"], told["model.num_blocks"]) == ([4, 8, 16][choice], blocks)
    # A proposal that is read from a ledger with what a person was shown is the same trial.
    again = proposals.point(7, space, {**proposal, "training.learning_rate": told["training.learning_rate"]})
    assert (again.name, again.text) == (point.name, point.text)
    other = proposals.point(8, space, {**proposal, "training.learning_rate": 1e-4})
    assert proposals.alike(space, point, other)
    assert (
        not proposals.alike(space, point, proposals.point(8, space, {**proposal, "training.batch_size": 2 - choice}))
        or choice == 1
    )


def test_representative_points_cover_an_adaptive_search_space():
    made = read({"search": "tpe", "trials": 5, "search_space": {"learning_rate": [1e-5, 1e-3], "batch_size": [4, 8]}})
    assert (made.adaptive, made.trials, made.halving, made.backend) == (True, 5, (1, 4), "ray")
    assert [tuple(value.values()) for value in values(made)] == [(1e-4, 4), (1e-4, 8)]
    # Of whole numbers the ends are looked at, too, and never more than a thousand in all.
    whole = values(read({"search": "tpe", "search_space": {"epochs": {"range": [1, 100]}}}))
    assert {1, 100} <= {value["training.epochs"] for value in whole}
    many = {f"model.{key}": {"range": [1, 1000]} for key in ("num_blocks", "num_heads", "iters", "feature_dims")}
    assert 1 <= len(values(read({"search": "tpe", "search_space": many}))) <= 1000
    assert read({"early_stopping": "none", "search_space": {"epochs": [1, 2]}}).halving is None
    assert read({"backend": "array", "search_space": {"epochs": [1, 2]}}).halving is None


@pytest.mark.parametrize(
    ("resources", "tuning", "expected"),
    [
        ("num_gpus: 0, cpus: 8", "", (0, 8)),
        ("num_gpus: 0, cpus: 8", "max_parallel: 3", (0, 2)),
        ("num_gpus: 0, cpus: 2", "max_parallel: 8", (0, 1)),
        ("num_gpus: 0, cpus: 8, nodes: 2", "max_parallel: 4", (0, 4)),
        ("gpu: h100, num_gpus: 4, cpus: 64", "", (1, 16)),
        ("gpu: h100, num_gpus: 4, cpus: 64", "gpus_per_trial: 2", (2, 32)),
        ("gpu: h100, num_gpus: 4, cpus: 64", "gpus_per_trial: 3", (3, 64)),
        ("gpu: h100, num_gpus: 4, cpus: 64", "gpus_per_trial: 1, cpus_per_trial: 4", (1, 4)),
        ("gpu: h100, num_gpus: 4, cpus: 64", "gpus_per_trial: 5", "a trial of 5 GPUs does not fit"),
        ("num_gpus: 0, cpus: 8", "gpus_per_trial: 1", "a trial of 1 GPU does not fit"),
        ("num_gpus: 0, cpus: 8", "cpus_per_trial: 9", "a trial of 9 CPU cores does not fit"),
    ],
)
def test_share_of_a_node_per_trial_is_computed_or_refused(resources, tuning, expected):
    text = SPEC.replace("tuning:\n", f"tuning: {{search_space: {{epochs: [1, 2]}}, {tuning}}}\n")
    text += f"resources: {{{resources}}}\n"
    checked, found = compiler.analyse(Inputs(File("spec.yaml", text.encode())))
    assert checked is not None, found
    gpus, cpus = checked["resources.num_gpus"].value, checked["resources.cpus"].value
    share, found = shares.share(checked, gpus, cpus)
    if isinstance(expected, str):
        assert share is None
        assert (found[0].code, expected in found[0].message) == ("R343", True)
        assert found[0].span is not None
    else:
        assert (share.gpus, share.cpus) == expected


@pytest.mark.parametrize("asked", ["search: tpe", "early_stopping: asha", "gpus_per_trial: 0", "cpus_per_trial: 2"])
def test_ray_options_are_refused_for_an_array_study(tmp_path, capsys, asked):
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC + f"  backend: array\n  {asked}\n  search_space: {{epochs: [1, 2]}}\n")
    for command in ("validate", "tune"):
        assert main([command, str(path)]) == 1
        assert "error[R342]" in capsys.readouterr().err
    assert main(["tune", str(path), "--set", "tuning.backend=ray", "--num-gpus", "0", "--dry-run"]) == 0


def test_ledger_of_proposals_ignores_a_cut_line_and_another_space(tmp_path):
    made = read({"search": "tpe", "search_space": {"learning_rate": [1e-5, 1e-3]}})
    book = proposed.begin(str(tmp_path), made)
    book.add({"training.learning_rate": 1e-4})
    book.add({"training.learning_rate": 2e-4})
    with open(book.path, "a") as file:
        file.write('{"training.lear')
    again = proposed.begin(str(tmp_path), made)
    assert [value["training.learning_rate"] for value in again.entries] == [1e-4, 2e-4]
    assert [point.name[:4] for point in again.points(made)] == ["0001", "0002"]
    again.add({"training.learning_rate": 3e-4})
    assert len(proposed.read(str(tmp_path), made).entries) == 3
    other = read({"search": "tpe", "search_space": {"learning_rate": [1e-5, 1e-2]}})
    assert proposed.read(str(tmp_path), other).entries == []
    assert proposed.begin(str(tmp_path), other).entries == []
    assert len((tmp_path / "proposals.jsonl.old").read_text().splitlines()) == 4


def test_budget_counts_the_time_of_all_starts(tmp_path, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(budget.time, "monotonic", lambda: now[0])
    first = budget.Budget(str(tmp_path), 100.0)
    now[0] = 60.0
    assert not first.is_spent()
    first.keep()
    now[0] = 1000.0
    second = budget.Budget(str(tmp_path), 100.0)
    now[0] = 1039.0
    assert not second.is_spent()
    now[0] = 1041.0
    assert second.is_spent()
    assert not budget.Budget(str(tmp_path), None).is_spent()
    assert capsys.readouterr().err == ""
    (tmp_path / "spent.json").write_text("{")
    assert budget.Budget(str(tmp_path), 1.0).spent == 0.0
    assert "spent.json cannot be read" in capsys.readouterr().err


def test_missing_ray_is_reported_with_the_extra_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "ratc.study.run_ray", raising=False)
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC + "  search_space: {epochs: [1, 2]}\n")
    assert main(["tune", str(path), "--num-gpus", "0"]) == 1
    said = capsys.readouterr().err
    assert "error[R550]" in said
    assert "pip install 'ratc[tune]'" in said


def test_ray_is_imported_only_to_run_a_study(tmp_path):
    (tmp_path / "spec.yaml").write_text(SPEC + "  search_space: {epochs: [1, 2]}\n")
    code = "import sys; from ratc.cli import main; status = main(sys.argv[1:]); "
    code += "sys.exit(status or any(name.split('.')[0] in ('ray', 'optuna') for name in sys.modules))"
    for words in (["tune", "spec.yaml", "--dry-run", "--num-gpus", "0"], ["compile", "spec.yaml", "--target", "slurm",
                  "--num-gpus", "0", "--set", "resources.cpus=2"]):  # fmt: skip
        done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
