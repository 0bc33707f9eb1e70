"""The step time from the results of an earlier run: used only for the same step; malformed files are ignored."""

import json
from pathlib import Path

import pytest
from ratc_runtime.config.lock import read_lock

from ratc.cli import main
from ratc.fitting import earlier_run
from ratc.workflow import inputs
from ratc.workflow.request import CompileRequest
from tests.helpers.lockfile import run_training, write_data

SPEC = """experiment_name: demo
model: {{name: rat, feature_dims: 8, num_blocks: 1, num_heads: 2, stride: 8}}
training: {{epochs: {epochs}, batch_size: 2, target_batch_size: {batch}}}
data: {{data_dir: data, image_size: 32}}
resources: {{num_gpus: 0, cpus: 2}}
logging: {{backend: tensorboard}}
"""


def write(epochs: int = 5, batch: int = 4) -> None:
    Path("spec.yaml").write_text(SPEC.format(epochs=epochs, batch=batch))


def measured_step():
    request = CompileRequest("spec.yaml")
    loaded = inputs.load(request)
    plan, said, _ = inputs.resolve(request, loaded.settings)
    assert plan is not None, said
    return earlier_run.measured(plan, ".")


@pytest.fixture
def finished_run(tmp_path, monkeypatch):
    """Compile a spec; the function writes the results that its run would leave."""
    monkeypatch.chdir(tmp_path)
    write()
    assert main(["compile", "spec.yaml"]) == 0
    lock = read_lock(Path("compiled/demo/local/lock.yaml")).model_dump(mode="json")
    Path("outputs/demo").mkdir(parents=True)
    account = {"steps": 100, "samples_per_second": 8.0}

    def write_results(text: str = "", lock=lock, **changes) -> None:
        content = {"status": "finished", "lock": lock, "account": {**account, **changes}}
        Path("outputs/demo/results.json").write_text(text or json.dumps(content))

    return write_results


def test_step_time_is_taken_from_an_earlier_run_of_the_same_step(finished_run):
    assert measured_step() is None
    finished_run()
    step = measured_step()
    assert (step.how, step.seconds, step.samples, step.unknown) == ("measured", 0.5, 4, "")
    assert step.why == "the average of 100 steps in outputs/demo, with waits for data"
    write(epochs=50)
    assert measured_step().seconds == 0.5


def test_earlier_run_of_another_step_is_ignored(finished_run):
    finished_run()
    write(batch=8)
    assert measured_step() is None


@pytest.mark.parametrize(("others", "is_taken"), [([1, 1], True), ([2, 1], False), ([], True)])
def test_earlier_run_on_changing_numbers_of_processes_is_ignored(finished_run, others, is_taken):
    """Its speed is the average over all of them."""
    finished_run()
    results = json.loads(Path("outputs/demo/results.json").read_text())
    results["starts"] = {"last": [{"world_size": world} for world in others], "number": len(others)}
    finished_run(json.dumps(results))
    assert (measured_step() is not None) == is_taken


@pytest.mark.parametrize("path", ["model.name", "training.precision", "data.num_workers", "hardware.device"])
def test_earlier_run_without_a_value_of_its_step_is_ignored(finished_run, path):
    finished_run()
    results = json.loads(Path("outputs/demo/results.json").read_text())
    section, _, key = path.partition(".")
    del results["lock"][section][key]
    finished_run(lock=results["lock"])
    assert measured_step() is None


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "null", '{"lock": 1}', '{"lock": {}, "account": {}}', "[" * 100_000, '"' + "\\ud800" + '"', "\0"],
)
def test_malformed_results_file_is_ignored(finished_run, text):
    finished_run(text)
    assert measured_step() is None


@pytest.mark.parametrize(
    "changes",
    [{"samples_per_second": value} for value in (0, -1, "8", None, True, float("nan"), float("inf"))]
    + [{"steps": 19}, {"steps": "100"}],
)
def test_earlier_run_with_an_invalid_speed_is_ignored(finished_run, changes):
    finished_run(**changes)
    assert measured_step() is None


def test_symlinked_results_file_is_ignored(finished_run, tmp_path):
    finished_run()
    Path("outputs/demo/results.json").rename("elsewhere.json")
    Path("outputs/demo/results.json").symlink_to(tmp_path / "elsewhere.json")
    assert measured_step() is None


def test_step_time_is_read_from_the_results_of_a_real_run(tmp_path, monkeypatch, capsys, checks_given):
    """10 images, 2 steps an epoch: the runtime's own file is what the compiler reads."""
    write_data(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    write(epochs=10)
    assert main(["compile", "spec.yaml"]) == 0
    done = run_training(
        tmp_path / "compiled/demo/local/lock.yaml",
        "--data-dir",
        str(tmp_path / "data"),
        "--output-dir",
        str(tmp_path / "outputs/demo"),
    )
    assert done.returncode == 0, done.stderr
    speed = json.loads(Path("outputs/demo/results.json").read_text())["account"]["samples_per_second"]
    assert measured_step().seconds == pytest.approx(4 / speed)
    write(epochs=20)
    capsys.readouterr()
    assert main(["compile", "spec.yaml", "--samples", "10"]) == 0
    said = capsys.readouterr().err
    assert "ratc: measured: a step of 4 samples takes" in said
    assert "an epoch of 2 steps" in said
    assert main(["explain", "spec.yaml", "training.batch_size"]) == 0
    assert "measured: a step of 4 samples takes" in capsys.readouterr().out
