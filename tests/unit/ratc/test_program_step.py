"""A spec that describes the step of its own program: memory and time are predicted from it, as for ratc's own loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ratc_runtime.config import elastic
from ratc_runtime.config.program_lock import ProgramLock, read_any

import ratc
from ratc.cli import main
from ratc.fitting.check_batch import SKIP
from tests.helpers import made_traces
from tests.places import CASES
from tests.unit.ratc.cli.test_fit import answers, runtime  # noqa: F401  # the fixture is used by its name

#: A sample takes 12 MiB: the largest power of two that fits a card of 40 GiB is 2048.
SPEC = """experiment_name: demo
entrypoint: {script: train.py, args: ["${micro_batch_size}"]}
model: {name: "step:make"}
task_type: custom
data: {dataset: "step:Pieces"}
training: {target_batch_size: 8192, loss: "step:loss", optimizer: adam, gradient_clipping: 1.0}
resources: {gpu: a100-40, num_gpus: 1, cpus: 4}
"""
STEP = """def make(width=0): ...
def loss(): ...
class Pieces:
    def __init__(self, data_dir, split): ...
"""
CLUSTER = (CASES / "elastic-program/clusters/ours.yaml").read_text()
#: The same as a spec of the built-in loop.
LOOP = SPEC.replace('entrypoint: {script: train.py, args: ["${micro_batch_size}"]}\n', "").replace(
    "data: {", "data: {data_dir: data, "
)


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime: Any) -> Path:  # noqa: F811
    """The spec beside a script that must not be run, with traces of equal layers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RATC_TRUST", "1")
    runtime(answers())
    (tmp_path / "train.py").write_text("open('ran', 'w')\n")
    (tmp_path / "step.py").write_text(STEP)
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return path


def compiled(text: str, *options: str) -> tuple[int, dict[str, Any]]:
    """The status of compiling a spec, and its lock."""
    Path("spec.yaml").write_text(text)
    status = main(["compile", "spec.yaml", "-o", "out", *options])
    return status, yaml.safe_load(Path("out/lock.yaml").read_text()) if status == 0 else {}


def test_the_micro_batch_and_the_memory_are_those_of_the_loop_that_makes_the_step(spec: Path) -> None:
    status, lock = compiled(SPEC)
    assert status == 0
    assert (lock["training"]["micro_batch_size"], lock["training"]["gradient_accumulation_steps"]) == (2048, 4)
    assert lock["entrypoint"]["args"] == ["2048"]
    status, loop = compiled(LOOP)
    assert status == 0
    assert lock["memory"] == loop["memory"]
    assert lock["memory"]["peak_reserved_bytes"] > 2048 * 12 * made_traces.MIB
    assert lock["training"]["allocator"] == loop["training"]["allocator"]
    assert lock["training"]["micro_batch_size"] == loop["training"]["micro_batch_size"]
    assert not Path("ran").exists()


def test_the_lock_is_read_with_its_prediction(spec: Path) -> None:
    assert compiled(SPEC)[0] == 0
    lock = read_any(Path("out/lock.yaml"))
    assert isinstance(lock, ProgramLock)
    assert lock.memory is not None
    assert lock.memory.margin
    assert lock.training.allocator == "native"


def test_the_allocator_of_the_lock_is_set_by_the_script(spec: Path) -> None:
    text = SPEC.replace("optimizer: adam", "optimizer: adam, allocator: expandable_segments")
    assert compiled(text)[0] == 0
    assert "PYTORCH_ALLOC_CONF=expandable_segments:True" in Path("out/run.sh").read_text()


def test_r318_for_a_given_micro_batch_that_does_not_fit(
    spec: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(SKIP, raising=False)
    text = SPEC.replace("target_batch_size: 8192", "target_batch_size: 8192, batch_size: 4096")
    assert compiled(text)[0] == 1
    said = capsys.readouterr().err
    assert "error[R318]: micro-batch 4096 does not fit on a100-40" in said
    assert "use `batch_size: 2048`" in said
    status, lock = compiled(text, "--no-predict")
    assert status == 0
    assert lock["memory"] == {"peak_allocated_bytes": None, "peak_reserved_bytes": None, "margin": None}


def test_keys_of_the_step_have_an_effect_and_others_have_none(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "spec.yaml"]) == 0
    assert "R207" not in capsys.readouterr().err
    spec.write_text(SPEC.replace("optimizer: adam", "optimizer: adam, scheduler: step"))
    assert main(["validate", "spec.yaml"]) == 0
    assert "`training.scheduler` has no effect" in capsys.readouterr().err
    spec.write_text(SPEC.replace('model: {name: "step:make"}\n', ""))
    assert main(["validate", "spec.yaml"]) == 0
    said = capsys.readouterr().err
    assert "`training.optimizer` has no effect" in said
    assert "`data.dataset` has no effect" in said


def test_the_step_is_checked_as_that_of_the_loop(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec.write_text(SPEC.replace('data: {dataset: "step:Pieces"}', "data: {dataset: isic}"))
    assert main(["validate", "spec.yaml"]) == 1
    assert "error[R226]" in capsys.readouterr().err
    spec.write_text(SPEC.replace('model: {name: "step:make"}', 'model: {name: "step:mak"}'))
    assert main(["compile", "spec.yaml", "-o", "out"]) == 1
    assert "error[R236]" in capsys.readouterr().err


def test_keys_that_only_the_loop_has_are_still_refused(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ("activation_checkpointing: auto", "learning_rate: auto", "deepspeed: true"):
        spec.write_text(SPEC.replace("optimizer: adam", f"optimizer: adam, {more}"))
        assert main(["validate", "spec.yaml"]) == 1
        assert "error[R245]" in capsys.readouterr().err


def test_commands_that_predict_predict(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "spec.yaml"]) == 0
    assert "Micro-batch 2048 is taken" in capsys.readouterr().out
    assert main(["profile", "spec.yaml"]) == 0
    assert "micro-batch 2048 x 4 accumulation steps" in capsys.readouterr().out
    assert main(["explain", "spec.yaml", "training.micro_batch_size"]) == 0
    said = capsys.readouterr().out
    assert "training.micro_batch_size = 2048" in said
    assert "At the peak of a step on" in said
    assert main(["report", "spec.yaml"]) == 0
    page = Path("report.html").read_text()
    assert "Peak memory" in page
    assert "No memory is predicted" not in page
    assert ratc.fit(ratc.CompileRequest("spec.yaml")).rows


def test_a_change_of_the_step_is_the_cause_of_another_micro_batch(
    spec: Path,
    runtime: Any,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("step.py").write_text("def make(width=0): ...\n" + STEP.partition("\n")[2])
    assert main(["diff", "spec.yaml", "spec.yaml"]) == 0
    heavy = answers(activation=200.0 * made_traces.MIB)
    light = answers()
    runtime(f"if request['model']['args']:\n    {heavy}else:\n    {light}")
    Path("other.yaml").write_text(SPEC.replace('"step:make"', '"step:make", args: {width: 1}'))
    capsys.readouterr()
    assert main(["diff", "spec.yaml", "other.yaml"]) == 1
    said = capsys.readouterr().out
    root = said.index("model.args.width")
    assert "has no effect" not in said
    assert "cosmetic" not in said[root:].splitlines()[0]
    assert root < said.index("training.micro_batch_size: 2048"), "below its cause"


@pytest.mark.parametrize(
    "more", ["warmup_epochs: 500", "min_learning_rate: 1.0", "init_from: {path: nothere.pt}", "extensions: []"]
)
def test_a_key_without_effect_stops_nothing(spec: Path, capsys: pytest.CaptureFixture[str], more: str) -> None:
    status, lock = compiled(SPEC.replace("optimizer: adam", f"optimizer: adam, {more}"))
    said = capsys.readouterr().err
    assert (status, "error[" in said) == (0, False), said
    assert lock["training"]["micro_batch_size"] == 2048
    assert "has no effect" in said
    spec.write_text(SPEC.replace("data: {", "data: {class_names: [a, b], "))
    assert main(["validate", "spec.yaml"]) == 0
    assert "R211" not in capsys.readouterr().err


def test_several_tasks_are_refused_once(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec.write_text(SPEC.replace("task_type: custom", "task_type: multi"))
    assert main(["validate", "spec.yaml"]) == 1
    said = capsys.readouterr().err
    assert said.count("error[") == said.count("error[R245]") == 1


def test_a_description_without_a_model_is_told_what_it_lacks(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec.write_text(SPEC.replace('model: {name: "step:make"}\n', ""))
    assert main(["validate", "spec.yaml"]) == 0
    assert "with `model.name` it describes the program's step" in capsys.readouterr().err


def on_a_cluster(text: str) -> str:
    """The spec for one or two nodes of a cluster, each with four cards of 40 GB."""
    Path("clusters").mkdir(exist_ok=True)
    Path("clusters/ours.yaml").write_text(CLUSTER)
    at = "gpu: a100-40, num_gpus: 1, cpus: 4"
    return text.replace(at, "cluster: ours, nodes: {min: 1, max: 2}, gpus_per_node: 4, walltime: '10:00:00'")


def test_each_number_of_nodes_has_a_micro_batch_and_a_prediction_of_its_own(spec: Path) -> None:
    status, lock = compiled(on_a_cluster(SPEC), "--target", "slurm")
    assert status == 0
    rows = lock["elastic"]
    assert {nodes: row["micro_batch_size"] for nodes, row in rows.items()} == {"1": 2048, "2": 1024}
    peaks = {nodes: row["peak_reserved_bytes"] for nodes, row in rows.items()}
    assert peaks["1"] > 1.9 * peaks["2"] > 0
    found = read_any(Path("out/lock.yaml"))
    assert isinstance(found, ProgramLock)
    small = elastic.of_start(found, {"RATC_NODES": "1"})
    assert small.memory is not None
    assert (small.training.micro_batch_size, small.memory.peak_reserved_bytes) == (2048, peaks["1"])


def test_points_of_a_sweep_share_one_prediction_if_the_step_is_the_same(spec: Path, tmp_path: Path) -> None:
    text = on_a_cluster(SPEC).replace("nodes: {min: 1, max: 2}", "nodes: 1")
    status, lock = compiled(text + "sweep: {grid: {training.learning_rate: [1e-3, 1e-4]}}\n", "--target", "slurm")
    assert status == 0
    assert lock["training"]["micro_batch_size"] == 2048
    assert (tmp_path / "calls").read_text() == "x"
    status, lock = compiled(text + "sweep: {grid: {model.args.width: [1, 2]}}\n", "--target", "slurm")
    assert status == 0
    assert (tmp_path / "calls").read_text() == "xxx", "one more for each width"


@pytest.mark.parametrize("launcher", ["srun", "none", "torchrun", "accelerate"])
def test_the_launcher_does_not_matter_to_the_step(spec: Path, launcher: str) -> None:
    status, lock = compiled(SPEC + f"launcher: {launcher}\n")
    assert (status == 0) == (launcher != "srun")  # which needs Slurm
    if lock:
        assert lock["training"]["micro_batch_size"] == 2048


def test_without_trust_the_step_is_not_predicted(
    spec: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RATC_TRUST")
    monkeypatch.setenv("RATC_CONFIG", str(spec.parent / "config"))
    assert main(["compile", "spec.yaml", "-o", "out"]) == 1
    assert "error[R446]" in capsys.readouterr().err
    assert main(["compile", "spec.yaml", "-o", "out", "--no-predict"]) == 0


def test_on_the_cpu_nothing_is_predicted(spec: Path) -> None:
    status, lock = compiled(SPEC.replace("gpu: a100-40, num_gpus: 1", "num_gpus: 0").replace("8192", "16"))
    assert status == 0
    assert lock["training"]["allocator"] is None
    assert lock["memory"]["margin"] is None
