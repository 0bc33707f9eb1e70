"""Studies: what a search space means, which trials there are, and what becomes of them on the way to a job."""

import csv
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ratc import compiler, resources
from ratc.catalog import tasks
from ratc.cli import main
from ratc.compiler import File, Inputs
from ratc.study import budget, proposed
from ratc.tuning import outcome, picture, proposals
from ratc.tuning import share as shares
from ratc.tuning.outcome import FAILED, FINISHED, LEFT_OUT, OPEN, Trial
from ratc.tuning.points import Study, study
from ratc.tuning.space import Choices, Range
from tests.effort import examples

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


def test_the_product_documents_own_words():
    made = read(PRODUCT)
    assert [entry.text for entry in made.space] == [
        "a number from 1e-05 to 0.001, on a logarithmic scale",
        "one of 4, 8, 16",
    ]
    assert [entry.path for entry in made.space] == ["training.learning_rate", "training.batch_size"]
    assert (len(made.points), made.metric, made.larger_is_better) == (16, "dice", True)


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        ([0.1, 0.5], "a number from 0.1 to 0.5, on a linear scale"),
        ([0.1, 1.0], "a number from 0.1 to 1, on a logarithmic scale"),
        ([0, 0.5], "a number from 0 to 0.5, on a linear scale"),
        ([0.1, 0.2, 0.3], "one of 0.1, 0.2, 0.3"),
        ([0.1], "one of 0.1"),
        ({"choices": [0.1, 0.5]}, "one of 0.1, 0.5"),
        ({"range": [0.1, 0.5], "scale": "log"}, "a number from 0.1 to 0.5, on a logarithmic scale"),
        ({"range": [0.1, 50]}, "a number from 0.1 to 50, on a linear scale"),
    ],
)
def test_how_an_entry_is_read(entry, kind):
    assert read({"search_space": {"training.weight_decay": entry}}).space[0].text == kind


def test_whole_numbers_are_choices_in_a_list_and_may_be_a_range():
    assert isinstance(read({"search_space": {"model.feature_dims": [16, 256]}}).space[0], Choices)
    made = read({"search_space": {"model.num_blocks": {"range": [1, 4]}}, "trials": 40})
    assert isinstance(made.space[0], Range)
    assert sorted(one["model.num_blocks"] for one in values(made)) == [1, 2, 3, 4], "no trial comes twice"


def test_choices_alone_are_every_combination_unless_fewer_are_asked_for():
    space = {"model.num_blocks": [1, 2, 3], "training.scheduler": ["cosine", "none"]}
    made = read({"search_space": space})
    assert made.whole
    assert len({point.text for point in made.points}) == 6
    few = read({"search_space": space, "trials": 4})
    assert not few.whole
    assert len({point.text for point in few.points}) == 4
    assert read({"search_space": space, "trials": 60}).whole


SPACES = st.fixed_dictionaries(
    {},
    optional={
        "training.learning_rate": st.sampled_from([[1e-5, 1e-2], {"range": [1e-4, 1e-2]}, [1e-3, 3e-3, 1e-2]]),
        "training.weight_decay": st.sampled_from([[0.0, 0.1], {"range": [1e-6, 1], "scale": "log"}]),
        "model.num_blocks": st.sampled_from([[1, 2, 4], {"range": [1, 9]}]),
        "training.scheduler": st.just(["cosine", "step", "none"]),
    },
).filter(bool)


@settings(max_examples=examples(60), deadline=None)
@given(SPACES, st.integers(1, 40), st.integers(0, 2**31))
def test_trials_lie_in_the_space_differ_and_stay_when_more_are_asked_for(space, trials, seed):
    made = read({"search_space": space, "trials": trials, "seed": seed})
    assert len(made.points) <= trials or made.whole
    assert len({point.text for point in made.points}) == len({point.name for point in made.points}) == len(made.points)
    for one in values(made):
        for entry in made.space:
            if isinstance(entry, Range):
                assert entry.low <= one[entry.path] <= entry.high
                assert isinstance(one[entry.path], int) == entry.whole
            else:
                assert one[entry.path] in [node.data() for node in entry.nodes]
    assert values(read({"search_space": space, "trials": trials, "seed": seed})) == values(made)
    more = read({"search_space": space, "trials": trials + 7, "seed": seed})
    if not more.whole:
        assert [point.name for point in more.points[: len(made.points)]] == [point.name for point in made.points]


def test_they_are_spread_evenly():
    space = {"training.weight_decay": {"range": [0.0, 1.0]}, "training.learning_rate": [1e-4, 1e-2]}
    made = read({"search_space": space, "trials": 64})
    found = values(made)
    for low in range(4):
        count = sum(low / 4 <= one["training.weight_decay"] < (low + 1) / 4 for one in found)
        assert 14 <= count <= 18, "a quarter of the range has about a quarter of the trials"
    logs = sum(one["training.learning_rate"] < 1e-3 for one in found)
    assert 30 <= logs <= 34, "half of a logarithmic range has half of them"
    assert values(made) != values(read({"search_space": space, "trials": 64, "seed": 9}))


@pytest.mark.parametrize(
    ("space", "code", "words"),
    [
        ("{}", "R336", "has no keys"),
        ("{learning_rate: []}", "R336", "no values to choose from"),
        ("{learning_rate: [1e-3, 1e-5]}", "R336", "is reversed"),
        ("{learning_rate: {range: [1e-3, 1e-5]}}", "R336", "is reversed"),
        ("{learning_rate: {range: [1, 2, 3]}}", "R336", "not [low, high]"),
        ("{learning_rate: {range: [1e-3, 1e-3]}}", "R336", "holds only one value"),
        ("{weight_decay: {range: [0, 1], scale: log}}", "R336", "logarithmic scale needs numbers above 0"),
        ("{model.num_blocks: {range: [1, 2.5]}}", "R336", "takes whole numbers"),
        ("{model.num_blocks: [1, 1]}", "R336", "given twice as a choice of `model.num_blocks`"),
        ("{learning_rate: {}}", "R336", "needs either"),
        ("{learning_rate: {range: [1, 2], choices: [1]}}", "R336", "needs either"),
        ("{learning_rate: [1, 2], training.learning_rate: [1, 2]}", "R336", "is in the search space twice"),
        ("{learning_rte: [1e-5, 1e-3]}", "R331", "names no key of a spec"),
        ("{model: [1, 2]}", "R331", "is a section"),
        ("{resources.nodes: [1, 2]}", "R332", "cannot vary `resources.nodes`"),
        ("{model.num_blocks: [1, 0]}", "R104", "point 0002"),
        ("{training.scheduler: [cosine, sine]}", "R103", "did you mean `cosine`"),
        ("{learning_rate: 3}", "R102", "learning_rate"),
        ("{learning_rate: {range: [a, b]}}", "R102", "range"),
        ("{learning_rate: {ranges: [1, 2]}}", "R101", "did you mean `range`"),
        ('{"0": 3}', "R102", "must be"),
        ('{"": {"0": 1}}', "R106", "is not a valid name"),
    ],
)
def test_bad_search_spaces_are_shown_at_their_line(tmp_path, capsys, space, code, words):
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC + f"  backend: array\n  search_space: {space}\n")
    for command in (["validate", str(path)], ["tune", str(path), "--num-gpus", "0"]):
        assert main(command) == 1
        said = capsys.readouterr().err
        assert f"error[{code}]" in said
        assert words in said
        assert "spec.yaml:7:" in said


@pytest.mark.parametrize(
    ("training", "space", "told"),
    [
        ("target_batch_size: 32", "batch_size: [2, 4]", "`target_batch_size` stays 32"),
        ("target_batch_size: 32", "batch_size: [2, 4], learning_rate: [1.0e-4, 1.0e-2]", "the accumulation differs"),
        ("epochs: 1", "batch_size: [2, 4], target_batch_size: [8, 16]", "as well as `target_batch_size`"),
        ("epochs: 1", "batch_size: [2, 4]", None),
        ("target_batch_size: 32", "learning_rate: [1.0e-4, 1.0e-2]", None),
    ],
)
def test_a_micro_batch_that_varies_under_a_fixed_global_batch_is_told(tmp_path, capsys, training, space, told):
    (tmp_path / "spec.yaml").write_text(
        f"experiment_name: demo\ndata: {{data_dir: .}}\ntraining: {{{training}}}\n"
        f"resources: {{num_gpus: 0, cpus: 2}}\ntuning: {{search_space: {{{space}}}}}\n"
    )
    assert main(["validate", str(tmp_path / "spec.yaml")]) == 0
    err = capsys.readouterr().err
    assert ("warning[R360]" in err) == (told is not None), err
    assert (told or "") in err


def test_an_array_of_the_trials_that_can_run(tmp_path, capsys, monkeypatch):
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


def test_a_study_is_no_matter_for_one_run_on_this_machine(tmp_path, capsys):
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC + "  backend: array\n  search_space: {learning_rate: [1e-5, 1e-3]}\n")
    assert main(["compile", str(path), "--num-gpus", "0"]) == 0
    assert "R206" not in capsys.readouterr().err
    assert not (tmp_path / "compiled/demo/local/points").exists()
    path.write_text(path.read_text().replace("array", "ray"))
    assert main(["compile", str(path), "--num-gpus", "0"]) == 0
    assert not (tmp_path / "compiled/demo/local/study.yaml").exists()


def test_a_dry_run_names_the_trials_and_writes_nothing(tmp_path, capsys):
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC + "  backend: array\n  trials: 5\n  search_space: {learning_rate: [1e-5, 1e-3]}\n")
    assert main(["tune", str(path), "--dry-run", "--num-gpus", "0"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5
    assert [entry.name for entry in tmp_path.iterdir()] == ["spec.yaml"]
    path.write_text(path.read_text().split("tuning:")[0])
    assert main(["tune", str(path), "--num-gpus", "0"]) == 1
    assert "the spec has no `tuning`" in capsys.readouterr().err


TRIALS = [
    Trial("0001-a", {"training.learning_rate": 1e-5, "training.batch_size": 4}, FINISHED, 0.5, 2, 9.0),
    Trial("0002-b", {"training.learning_rate": 1e-3, "training.batch_size": 16}, FINISHED, 0.75, 1, 8.0),
    Trial("0003-c", {"training.learning_rate": 1e-4, "training.batch_size": 8}, OPEN, 0.9, 1),
    Trial("0004-d", {"training.learning_rate": 1e-4, "training.batch_size": 8}, FAILED, why="R507"),
    Trial("0005-e", {"training.learning_rate": 1e-4, "training.batch_size": 8}, LEFT_OUT, why="R304"),
]


def test_the_outcome_in_every_form():
    made = read(PRODUCT)
    assert outcome.best(TRIALS, True).name == "0002-b", "one that has not ended is not the best"
    assert outcome.best(TRIALS, False).name == "0001-a"
    assert outcome.best(TRIALS[2:], True) is None
    rows = outcome.table(made, TRIALS).splitlines()
    assert rows[0].split() == ["trial", "learning_rate", "batch_size", "dice", "epoch", "state"]
    assert [row.split()[0] for row in rows[1:]] == ["0003-c", "0002-b", "0001-a", "0004-d", "0005-e"]
    assert rows[4].split()[-2:] == ["failed", "R507"]
    table = list(csv.DictReader(io.StringIO(outcome.as_csv(made, TRIALS))))
    assert [row["dice"] for row in table] == ["0.5", "0.75", "0.9", "", ""]
    tree = json.loads(outcome.as_json(made, TRIALS))
    assert (tree["best"], tree["trials"][3]["why"]) == ("0002-b", "R507")


def test_the_best_epoch_counts_and_what_is_no_number_does_not():
    epochs = [{"epoch": number, "val_dice": value} for number, value in enumerate([0.1, None, 0.7, 0.7, 0.2], 1)]
    assert outcome.judged({"epochs": epochs}, "dice", True) == (0.7, 3)
    assert outcome.judged({"epochs": epochs}, "dice", False) == (0.1, 1)
    assert outcome.judged({"epochs": [{"epoch": 1, "val_dice": None}]}, "dice", True) == (None, None)
    assert outcome.judged({}, "dice", True) == (None, None)


def test_the_picture_has_a_line_for_each_trial_with_a_metric():
    made = read(PRODUCT)
    tree = ElementTree.fromstring(picture.svg(made, TRIALS))
    lines = [item for item in tree.iter() if item.tag.endswith("polyline")]
    assert len(lines) == 3
    assert sum("best" in line.get("class") for line in lines) == 1
    for line in lines:
        heights = [float(pair.split(",")[1]) for pair in line.get("points").split()]
        assert len(heights) == 3
        assert all(70 <= height <= 370 for height in heights)
    assert "0002-b: dice 0.7500" in picture.svg(made, TRIALS)
    same = [replace(trial, metric=0.5) for trial in TRIALS[:2]]
    ElementTree.fromstring(picture.svg(made, same))
    ElementTree.fromstring(picture.svg(made, []))


def test_the_way_of_every_score_is_the_runtimes():
    metrics = pytest.importorskip("ratc_runtime.tasks").METRICS
    for known in metrics.values():
        for name, metric in known.items():
            assert tasks.larger_is_better(name) == metric.larger_is_better, name
    assert not tasks.larger_is_better("loss")


def space_of(*entries):
    return read({"backend": "ray", "search": "tpe", "search_space": dict(entries)}).space


@given(st.floats(1e-5, 1e-3), st.integers(0, 2), st.integers(1, 6))
def test_a_proposal_and_its_point_say_the_same(rate, choice, blocks):
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


def test_what_stands_for_a_study_before_its_trials_are_known():
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
def test_what_a_trial_has_of_a_node(resources, tuning, expected):
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
def test_what_only_ray_does_is_refused_of_an_array(tmp_path, capsys, asked):
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC + f"  backend: array\n  {asked}\n  search_space: {{epochs: [1, 2]}}\n")
    for command in ("validate", "tune"):
        assert main([command, str(path)]) == 1
        assert "error[R342]" in capsys.readouterr().err
    assert main(["tune", str(path), "--set", "tuning.backend=ray", "--num-gpus", "0", "--dry-run"]) == 0


def test_a_ledger_survives_a_line_that_is_cut_off_and_forgets_another_space(tmp_path):
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


def test_a_budget_counts_all_starts(tmp_path, monkeypatch):
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
    (tmp_path / "spent.json").write_text("{")
    assert budget.Budget(str(tmp_path), 1.0).spent == 0.0


def test_ray_that_is_not_there_is_said_with_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "ratc.study.run_ray", raising=False)
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC + "  search_space: {epochs: [1, 2]}\n")
    assert main(["tune", str(path), "--num-gpus", "0"]) == 1
    said = capsys.readouterr().err
    assert "error[R550]" in said
    assert "pip install 'ratc[tune]'" in said


def test_ray_is_only_imported_to_run_a_study(tmp_path):
    (tmp_path / "spec.yaml").write_text(SPEC + "  search_space: {epochs: [1, 2]}\n")
    code = "import sys; from ratc.cli import main; status = main(sys.argv[1:]); "
    code += "sys.exit(status or any(name.split('.')[0] in ('ray', 'optuna') for name in sys.modules))"
    for words in (["tune", "spec.yaml", "--dry-run", "--num-gpus", "0"], ["compile", "spec.yaml", "--target", "slurm",
                  "--num-gpus", "0", "--set", "resources.cpus=2"]):  # fmt: skip
        done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
