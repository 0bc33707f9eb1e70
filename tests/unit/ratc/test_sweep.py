"""Sweeps: the points of a spec, the lock of each point, and the merge of the shared and the point lock."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ratc_runtime import preflight
from ratc_runtime.config.lock import read_lock
from ratc_runtime.errors import RuntimeFinding

from ratc import compiler
from ratc.cli import main
from ratc.compiler import File, Inputs

CLUSTER = """name: ours
scheduler: slurm
node_types:
  cpu: {gpus_per_node: 0, cpus: 32, memory: 128GB}
  h100: {gpu: h100, gpu_type: h100, gpus_per_node: 4, cpus: 64, memory: 512GB}
partitions:
  batch: {nodes: {cpu: 10}, default: true, max_walltime: "2-00:00:00"}
  gpu: {nodes: {h100: 4}, max_walltime: "2-00:00:00"}
"""
SPEC = """experiment_name: demo
data: {data_dir: data}
training: {batch_size: 8, use_accelerate: false}  # Accelerate's own reader takes seconds to start
resources: {cluster: ./cluster.yaml, num_gpus: 0, cpus: 2, walltime: "10:00"}
"""


def points(sweep: str):
    """The points of a spec with that sweep, and what is said of them."""
    document, found = compiler.layered(Inputs(File("spec.yaml", f"{SPEC}sweep: {sweep}\n".encode())))
    assert document, found
    settings, found = compiler.check(document)
    assert settings, found
    return compiler.points(document)


def compiled(sweep: str, *options: str, spec: str = SPEC) -> int:
    """The exit status of compiling for Slurm in this folder."""
    Path("cluster.yaml").write_text(CLUSTER)
    Path("spec.yaml").write_text(f"{spec}sweep: {sweep}\n")
    return main(["compile", "spec.yaml", "--target", "slurm", "-o", "out", *options])


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_grid_has_every_combination_with_the_last_key_fastest():
    found, said = points("{grid: {seed: [1, 2], learning_rate: [1e-4, 3e-4, 5e-4]}}")
    assert not said
    assert [point.name for point in found] == ["0001", "0002", "0003", "0004", "0005", "0006"]
    assert [point.text for point in found][:4] == [
        "seed=1 training.learning_rate=0.0001",
        "seed=1 training.learning_rate=0.0003",
        "seed=1 training.learning_rate=0.0005",
        "seed=2 training.learning_rate=0.0001",
    ]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_grid_has_distinct_points_as_many_as_the_product(sizes):
    keys = ["seed", "training.epochs", "model.num_blocks", "model.iters"]
    grid = {key: list(range(1, size + 1)) for key, size in zip(keys, sizes, strict=False)}
    found, said = points(json.dumps({"grid": grid}))
    expected = 1
    for size in sizes:
        expected *= size
    assert not said
    assert len(found) == expected == len({point.text for point in found}) == len({point.name for point in found})
    assert [point.index for point in found] == list(range(1, expected + 1))


def test_list_points_are_numbered_and_named_points_keep_their_names():
    assert [point.name for point in points("{list: [{seed: 1}, {model.num_blocks: 2}]}")[0]] == ["0001", "0002"]
    named, _ = points("{points: {small: {model.feature_dims: 64}, large: {model.feature_dims: 256, seed: 7}}}")
    assert [(point.name, point.text) for point in named] == [
        ("small", "model.feature_dims=64"),
        ("large", "model.feature_dims=256 seed=7"),
    ]


@pytest.mark.parametrize(
    ("sweep", "code", "column"),
    [
        ("{max_parallel: 2}", "R330", 1),
        ("{grid: {seed: [1]}, list: [{seed: 1}]}", "R330", 1),
        ("{grid: {training.learning_rat: [1]}}", "R331", 16),
        ("{grid: {training: [1]}}", "R331", 16),
        ("{list: [{seed: 1}, {resources.nodes: 2}]}", "R332", 28),
        ("{points: {a: {experiment_name: x}}}", "R332", 22),
        ("{list: []}", "R333", 9),
        (f"{{grid: {{seed: {[1] * 400}, model.iters: {[1] * 400}}}}}", "R333", 9),
    ],
)
def test_invalid_sweep_is_refused_at_its_place(sweep, code, column):
    found, said = points(sweep)
    assert not found
    assert [(item.code, item.span.line, item.span.column) for item in said] == [(code, 5, column)]


def test_error_of_several_points_is_reported_once_with_the_first_point(capsys):
    assert compiled("{grid: {training.learning_rate: [1e-4, fast], seed: [1, 2]}}") == 1
    said = capsys.readouterr().err
    assert said.count("error[R106]") == 1, said
    assert "spec.yaml:5:" in said
    assert "fast" in said
    assert "in point 0003: training.learning_rate=fast seed=1" in said
    assert not Path("out").exists()
    assert main(["validate", "spec.yaml"]) == 1
    assert "in point 0003" in capsys.readouterr().err


def test_shared_lock_and_point_lock_merge_to_one_lock():
    assert compiled("{grid: {training.learning_rate: [1e-4, 3e-4], seed: [1, 2]}, max_parallel: 3}") == 0
    shared = yaml.safe_load(Path("out/lock.yaml").read_text())
    assert "seed" not in shared
    assert "learning_rate" not in shared["training"]
    own = yaml.safe_load(Path("out/points/0003/lock.yaml").read_text())
    assert set(own) == {"lock_version", "shared", "point", "experiment_name", "seed", "training", "output_dir"}
    for index, (rate, seed) in enumerate([(1e-4, 1), (1e-4, 2), (3e-4, 1), (3e-4, 2)], 1):
        path = Path(f"out/points/{index:04}/lock.yaml")
        lock = preflight.check(path, {}, launched=False)
        assert (lock.training.learning_rate, lock.seed, lock.point) == (rate, seed, f"{index:04}")
        assert (lock.experiment_name, lock.output_dir) == (f"demo-{index:04}", f"outputs/demo/{index:04}")
        assert lock.logging.mlflow_experiment_name == "demo"
    script = Path("out/job.sbatch").read_text()
    assert "#SBATCH --array=1-4%3" in script
    rows = [line.split("\t") for line in Path("out/points.tsv").read_text().splitlines()]
    assert rows[0] == ["name", "values", "lock"]
    assert [row[1] for row in rows[1:]][2] == "training.learning_rate=0.0003 seed=1"


GROUP = {"match": ["backbone.*"], "learning_rate_factor": 0.1, "weight_decay": 0.0}


@pytest.mark.parametrize(
    "values",
    [
        [{"seed": 3, "model.num_blocks": 2}, {"training.learning_rate": 5e-4}],
        # What only the first point has is not in the others, and what only others have not in the first.
        [{"training.frozen": ["backbone.*"]}, {"seed": 1}, {"training.frozen": []}],
        [{"seed": 1}, {"training.frozen": ["backbone.*"]}],
        [{"training.parameter_groups": [GROUP]}, {"training.parameter_groups": []}],
        [
            {"training.optimizer": "sgd", "training.early_stopping.patience": 3},
            {"training.optimizer": "adamw", "seed": 1},
        ],
        # A lock has another text for each of these.
        [{"training.loss_args": args} for args in ({"w": 1}, {"w": 1.0}, {"w": True}, {}, {"w": {"a": 1}}, {"w": {}})],
        [{"training.loss_args": args} for args in ({}, {"w": 1})],
    ],
)
def test_point_lock_equals_the_lock_of_an_equal_spec(values):
    Path("own.py").write_text("def loss(**arguments):\n    return None\n")
    own = SPEC.replace("use_accelerate", "loss: 'own:loss', use_accelerate")
    spec = own if any("training.loss_args" in point for point in values) else SPEC
    assert compiled(json.dumps({"list": values}), spec=spec) == 0
    for index, point in enumerate(values, 1):
        Path("spec.yaml").write_text(spec)
        settings = [word for key, value in point.items() for word in ("--set", f"{key}={json.dumps(value)}")]
        assert main(["compile", "spec.yaml", "--target", "slurm", "-o", f"alone{index}", *settings]) == 0
        alone, found = read_lock(Path(f"alone{index}/lock.yaml")), read_lock(Path(f"out/points/000{index}/lock.yaml"))
        for part in ("model", "training", "engine", "data", "parallel", "hardware", "memory", "checkpoint", "seed"):
            one, other = (json.dumps(lock.model_dump()[part], sort_keys=True) for lock in (alone, found))
            assert one == other, part
        assert alone.fingerprint() == found.fingerprint()


def test_point_with_another_precision_has_its_own_engine_files():
    spec = SPEC.replace("num_gpus: 0", "num_gpus: 4, partition: gpu").replace(", use_accelerate: false", "")
    sweep = "{list: [{seed: 1}, {training.precision: fp16}]}"
    assert compiled(sweep, spec=spec) == 0
    assert not Path("out/points/0001/deepspeed.json").exists()
    own = json.loads(Path("out/points/0002/deepspeed.json").read_text())
    assert own["fp16"]["enabled"]
    assert not json.loads(Path("out/deepspeed.json").read_text()).get("fp16", {}).get("enabled")
    accelerate = yaml.safe_load(Path("out/points/0002/accelerate.yaml").read_text())
    assert accelerate["deepspeed_config"]["deepspeed_config_file"] == "out/points/0002/deepspeed.json"
    lock = read_lock(Path("out/points/0002/lock.yaml"))
    assert lock.file("deepspeed.json") == "deepspeed.json"
    assert read_lock(Path("out/points/0001/lock.yaml")).file("deepspeed.json") == "../../deepspeed.json"
    preflight.check_artifacts(lock, Path("out/points/0002"))
    preflight.check_batch(lock, Path("out/points/0002"))


@pytest.mark.parametrize("name", ["points/0002/lock.yaml", "points.tsv", "node.sh"])
def test_edited_file_is_refused_in_preflight_of_a_point(name):
    assert compiled("{list: [{seed: 1}, {seed: 2}]}") == 0
    path = Path("out") / name
    path.write_text(path.read_text() + "# edited\n")
    with pytest.raises(RuntimeFinding, match="is not the one that was compiled"):
        preflight.check(Path("out/points/0002/lock.yaml"), {}, launched=False)


def test_points_removed_from_a_sweep_are_reported_and_deleted():
    assert compiled("{grid: {seed: [1, 2, 3]}}") == 0
    Path("out/points/mine.txt").write_text("not ratc's")
    assert compiled("{grid: {seed: [1, 2]}}", "--check") == 1
    assert compiled("{grid: {seed: [1, 2]}}") == 0
    assert sorted(path.name for path in Path("out/points").iterdir()) == ["0001", "0002", "mine.txt"]
    assert compiled("{grid: {seed: [1, 2]}}", "--check") == 0
    shutil.rmtree("out/points/0002")
    assert compiled("{grid: {seed: [1, 2]}}", "--check") == 1


def test_points_that_change_the_launcher_are_refused(capsys):
    assert compiled("{grid: {training.use_accelerate: [false, true]}}") == 1
    said = capsys.readouterr().err
    assert "error[R334]" in said
    assert "job.launcher" in said
    assert not Path("out").exists()


def test_local_target_refuses_an_array(capsys):
    Path("spec.yaml").write_text(f"{SPEC}sweep: {{grid: {{seed: [1, 2]}}}}\n")
    assert main(["compile", "spec.yaml"]) == 1
    assert "error[R401]: the target `local` cannot run an array" in capsys.readouterr().err


def test_script_reads_the_point_name_from_the_table():
    assert compiled("{points: {small: {seed: 1}, large-2: {seed: 2}}}") == 0
    line = next(line for line in Path("out/job.sbatch").read_text().splitlines() if line.startswith("ratc_point="))
    for index, name in ((1, "small"), (2, "large-2"), (3, "")):
        script = f'ratc_here=out SLURM_ARRAY_TASK_ID={index}; {line}; printf %s "$ratc_point"'
        assert subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True).stdout == name
