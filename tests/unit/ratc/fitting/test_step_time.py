"""The step time of a plan: from a trace or a measurement, or a reason; and the output of the commands.

A stand-in for the runtime gives the traces.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from ratc.cli import main
from ratc.fitting import from_measurement, step_time
from ratc.memory.request import variant
from ratc.workflow import inputs
from ratc.workflow.request import CompileRequest
from tests.helpers import made_traces
from tests.helpers.measurements import measurement
from tests.unit.ratc.cli.test_fit import runtime  # noqa: F401  # the fixture is used by its name

SPEC = """experiment_name: demo
training: {{batch_size: 8, target_batch_size: 64, epochs: 10, {training}}}
data: {{data_dir: data, image_size: 128}}
resources: {{num_gpus: {gpus}, gpu: {card}, cpus: 8{resources}}}
"""
#: A product of a tenth of the peak's operations a second for each sample, in the forward pass of a micro-batch.
WORK = [["mm", "bf16", 1, 2, 1, 0, 3.12e13, 0, 0]]


@pytest.fixture
def spec(runtime, tmp_path, monkeypatch, checks_given):  # noqa: F811
    """Write a spec; its model's traces have WORK, once for each micro-batch."""
    made = []
    for accumulating in (False, True):
        work = [[*WORK[0][:4], 2 if accumulating else 1, *WORK[0][5:]]]
        made.append({**made_traces.layers(accumulating=accumulating), "work": work, "request": {}})
    made[1]["request"] = {"accumulation": 2}
    single, several = (json.dumps(json.dumps(one)) for one in made)
    runtime(f"open(sys.argv[1], 'w').write({single} if request['accumulation'] == 1 else {several})\n")
    monkeypatch.chdir(tmp_path)

    def write(training="", gpus=1, card="a100-40", resources=""):
        Path("spec.yaml").write_text(SPEC.format(training=training, gpus=gpus, card=card, resources=resources))

    return write


def plan():
    request = CompileRequest("spec.yaml")
    loaded = inputs.load(request)
    made, found, _ = inputs.resolve(request, loaded.settings)
    assert made is not None, found
    return made


def test_step_time_is_the_micro_batches_at_a_share_of_the_peak(spec):
    spec()
    found, why = step_time.predict_step(plan(), ".")
    assert why == ""
    assert found.seconds == pytest.approx(8 * (8 * 0.1 / 0.8 + 1e-5) + 0.00142)
    assert (found.samples, found.world_size, found.how) == (64, 1, "predicted")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"gpus": 0, "card": "null"}, "it trains on the CPU"),
        ({"card": "mi300x"}, "only the kernels of NVIDIA's cards are known"),
        ({"training": "compile: true"}, "the kernels of compiled models are not counted"),
    ],
)
def test_step_time_that_cannot_be_predicted_has_a_reason(spec, given, why):
    spec(**given)
    assert step_time.predict_step(plan(), ".") == (None, why)


def test_step_time_is_taken_from_a_measurement_of_the_same_step(spec):
    """10 samples a second for each sample of the micro-batch: 0.1 s for each micro-batch of any size."""
    spec()
    made = plan()
    wanted = from_measurement.conditions(made, variant(made, "8.0"), ".")
    entry = from_measurement.measured.entry(measurement(conditions=replace(wanted, allocator="native")))
    facts = made.facts.__class__({**made.facts, "measured": replace(made.settings["seed"], value=[entry])})
    found, _ = step_time.predict_step(replace(made, facts=facts), ".")
    assert found.how == "measured"
    assert found.seconds == pytest.approx(0.8)
    assert found.why == "measured on 2026-11-23 with torch 2.13.0"


def test_compile_prints_the_step_time_but_does_not_write_it(spec, capsys):
    spec()
    assert main(["compile", "spec.yaml", "-o", "out"]) == 0
    said = capsys.readouterr().err
    line = "a step of 64 samples takes 8 s (4 s to 16 s, no step was measured on this card), 8 samples/s"
    assert said.count("predicted:") == 1
    assert f"ratc: predicted: {line}\n" in said
    files = {path: path.read_bytes() for path in Path("out").iterdir()}
    assert main(["compile", "spec.yaml", "-o", "out", "--no-predict"]) == 0
    assert "predicted" not in capsys.readouterr().err
    assert main(["compile", "spec.yaml", "-o", "out", "--samples", "6400"]) == 0
    said = capsys.readouterr().err
    assert "an epoch of 100 steps takes 13 min 20 s, all 10 take 2 h 13 min" in said
    assert "2.22 GPU hours" in said
    assert files == {path: path.read_bytes() for path in Path("out").iterdir()}


def test_compile_says_why_no_time_is_predicted_for_another_vendor(spec, capsys):
    spec(card="mi300x")
    assert main(["compile", "spec.yaml", "-o", "out"]) == 0
    assert "time of a step is not predicted: only the kernels of NVIDIA's cards are known" in capsys.readouterr().err


def test_diff_has_the_step_time_of_given_micro_batches(spec, capsys):
    spec()
    Path("old.yaml").write_text(Path("spec.yaml").read_text())
    Path("spec.yaml").write_text(
        Path("spec.yaml").read_text().replace("target_batch_size: 64", "target_batch_size: 128")
    )
    assert main(["diff", "old.yaml", "spec.yaml"]) == 1
    assert (
        "time of an optimizer step: 8 s predicted, 8 samples/s → 16 s predicted, 8 samples/s" in capsys.readouterr().out
    )


def test_fit_prints_the_step_time_after_the_breakdown(spec, capsys):
    spec()
    assert main(["fit", "spec.yaml", "--samples", "6400"]) == 0
    out = capsys.readouterr().out
    assert "predicted: a step of 64 samples takes" in out
    # The training of the spec's own micro-batch, as `ratc compile` has it.
    assert "2.22 GPU hours" in out
    assert out.count("GPU hours") == 1


@pytest.mark.parametrize("command", [("compile", "spec.yaml", "-o", "out"), ("fit", "spec.yaml")])
def test_step_time_includes_waits_for_slow_data_loading(spec, capsys, command):
    """64 samples by 2 processes of 2 samples/s each: 16 s, of which the card computes 8."""
    spec()
    assert main([*command, "--set", "data.num_workers=2", "--samples", "6400", "--loader-rate", "2"]) == 0
    told = "".join(capsys.readouterr())
    assert "a step of 64 samples takes 16 s (16 s to 16 s," in told
    assert "4 samples/s, for 8 s of it the GPUs wait for samples\n" in told
    assert "without evaluation and checkpoints\n" in told


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf", "1e3", "2000000000"])
def test_invalid_loader_rate_is_refused(spec, capsys, rate):
    spec()
    assert main(["fit", "spec.yaml", f"--loader-rate={rate}"]) == 2
    assert f"`{rate}` is not a number above 0 and at most 1e+09" in capsys.readouterr().err


@pytest.mark.parametrize(("walltime", "again"), [("3:00:00", None), ("2:00:00", "once"), ("1:00:00", "2 times")])
def test_walltime_that_is_too_short_is_a_warning_with_the_requeues(spec, capsys, walltime, again):
    """8,001 s of steps; a job saves 180 s before its end."""
    spec(resources=f', walltime: "{walltime}"')
    assert main(["compile", "spec.yaml", "--target", "slurm", "-o", "out", "--samples", "6400"]) == 0
    said = capsys.readouterr().err
    assert ("warning[R354]" in said) is (again is not None)
    if again:
        assert f"is predicted to take 2 h 13 min, and the job's walltime is {int(walltime[0])} h" in said.replace(
            "60 min", "1 h"
        )
        assert f": it is requeued {again}" in said


def test_a_training_that_needs_more_restarts_than_it_may_make_is_said_to_end_unfinished(spec, capsys):
    spec(resources=', walltime: "1:00:00"}\ncheckpoint: {max_restarts: 1')
    assert main(["compile", "spec.yaml", "--target", "slurm", "-o", "out", "--samples", "6400"]) == 0
    said = capsys.readouterr().err
    assert ": it needs 2 restarts, and `max_restarts` is 1" in said
    assert "set a larger `checkpoint.max_restarts`" in said


def test_a_partition_that_requeues_no_jobs_needs_several_of_them(spec, capsys):
    Path("clusters").mkdir()
    Path("clusters/ours.yaml").write_text(CLUSTER.replace("partitions: {gpu: {", "partitions: {gpu: {requeue: false, "))
    spec(gpus=4, resources=', cluster: ours, walltime: "00:20:00"')
    assert main(["compile", "spec.yaml", "--target", "slurm", "-o", "out", "--samples", "64000"]) == 0
    said = capsys.readouterr().err
    assert "warning[R354]" in said
    assert re.search(r"the job's walltime is 20 min: it needs \d+ jobs, one after the other", said)
    assert "submit the job again each time" in said


@pytest.mark.parametrize(
    ("walltime", "help_"),
    [
        ("1:00:00", "ask for a longer `resources.walltime`: a job there may run for 2 h"),
        ("2:00:00", "no job there may run that long"),
    ],
)
def test_the_help_names_the_longest_walltime_of_the_partition(spec, capsys, walltime, help_):
    Path("clusters").mkdir()
    Path("clusters/ours.yaml").write_text(CLUSTER.replace("2-00:00:00", "2:00:00"))
    spec(gpus=4, resources=f', cluster: ours, walltime: "{walltime}"')
    assert main(["compile", "spec.yaml", "--target", "slurm", "-o", "out", "--samples", "64000"]) == 0
    said = capsys.readouterr().err
    assert "warning[R354]" in said
    assert f"help: {help_}\n" in said


def test_of_a_range_the_time_on_the_fewest_nodes_is_told_and_held_against_the_walltime(spec, capsys):
    """Alone a node takes four times as long as four."""
    spec(gpus="null", resources=', walltime: "1:00:00", gpus_per_node: 1, nodes: {min: 1, max: 4}')
    assert main(["compile", "spec.yaml", "--target", "slurm", "-o", "out", "--samples", "6400"]) == 0
    said = capsys.readouterr().err
    assert "all 10 take 33 min 21 s" in said
    assert "ratc: on 1 node, the fewest: an epoch of 100 steps takes 13 min 20 s, all 10 take 2 h 13 min" in said
    assert "predicted to take 2 h 13 min, and the job's walltime is 1 h" in said.replace("60 min", "1 h")
    assert ": it is requeued 2 times" in said


CLUSTER = """name: ours
scheduler: slurm
node_types:
  a100: {gpu: a100-40, gpus_per_node: 4, gpu_type: a100, cpus: 32, gpu_link_gb_s: 300, network_gb_s: 25,
         price_per_gpu_hour: 1.5, currency: CHF, watts_per_gpu: 600}
partitions: {gpu: {nodes: {a100: 4}, max_walltime: "2-00:00:00"}}
"""


def test_cluster_facts_give_bandwidth_price_and_power(spec, capsys):
    Path("clusters").mkdir()
    Path("clusters/ours.yaml").write_text(CLUSTER)
    spec(gpus=4, resources=', cluster: ours, walltime: "10:00:00"')
    assert main(["compile", "spec.yaml", "--target", "slurm", "-o", "out", "--samples", "6400"]) == 0
    said = capsys.readouterr().err
    assert "without communication" not in said
    assert "GPU hours" in said
    assert " CHF at 1.5 a GPU hour" in said
    assert "kWh: 600 W for each GPU" in said
    lock = Path("out/lock.yaml").read_bytes()
    Path("clusters/ours.yaml").write_text(CLUSTER.replace("1.5", "3"))
    assert main(["compile", "spec.yaml", "--target", "slurm", "-o", "out"]) == 0
    again = Path("out/lock.yaml").read_bytes()
    # Only the digest of the facts differs.
    differing = [pair for pair in zip(lock.splitlines(), again.splitlines(), strict=True) if pair[0] != pair[1]]
    assert all(b"ours.yaml" in one for one, _ in differing)


def test_fit_for_a_scheduler_takes_card_bandwidth_and_price_of_the_cluster(spec, capsys):
    Path("clusters").mkdir()
    Path("clusters/ours.yaml").write_text(CLUSTER)
    spec(gpus=4, card="null", resources=', cluster: ours, walltime: "10:00:00"')
    assert main(["fit", "spec.yaml", "--target", "slurm", "--samples", "6400"]) == 0
    out = capsys.readouterr().out
    assert "A100" in out
    assert "without communication" not in out
    assert " CHF at 1.5 a GPU hour" in out
    assert main(["fit", "spec.yaml", "--target", "slrm"]) == 1
    assert "error[R401]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("currency: CHF, ", ""), "the price of an hour of `a100`, 1.5, has no currency"),
        (("CHF", "francs"), "currency"),
        (("gpu_link_gb_s: 300", "gpu_link_gb_s: 300000"), "gpu_link_gb_s"),
        (("network_gb_s: 25", "network_gb_s: 0"), "network_gb_s"),
        (("watts_per_gpu: 600", "watts_per_gpu: -1"), "watts_per_gpu"),
        (("price_per_gpu_hour: 1.5", "price_per_gpu_hour: -1.5"), "price_per_gpu_hour"),
    ],
)
def test_impossible_bandwidth_price_or_power_facts_are_refused(spec, capsys, change, said):
    Path("clusters").mkdir()
    Path("clusters/ours.yaml").write_text(CLUSTER.replace(*change))
    spec(gpus=4, resources=', cluster: ours, walltime: "10:00:00"')
    assert main(["compile", "spec.yaml", "--target", "slurm", "-o", "out"]) == 1
    assert said in capsys.readouterr().err
    assert not Path("out").exists()


def test_explain_lists_the_step_time_by_kernel_class(spec, capsys):
    spec()
    assert main(["explain", "spec.yaml", "training.batch_size"]) == 0
    out = capsys.readouterr().out
    assert "predicted: a step of 64 samples takes" in out
    assert "        8 s  matrix products" in out


def test_report_states_the_step_time_in_a_sentence(spec):
    spec()
    assert main(["report", "spec.yaml", "-o", "page.html", "--no-cards"]) == 0
    assert "Predicted: a step of 64 samples takes" in Path("page.html").read_text()


@pytest.mark.parametrize("batch", ["batch_size: 8, ", ""])
def test_untraceable_step_is_traced_only_once(spec, runtime, capsys, batch):  # noqa: F811
    calls = runtime("sys.exit(3)")
    spec()
    text = Path("spec.yaml").read_text().replace("batch_size: 8, ", batch)
    Path("spec.yaml").write_text(text)
    assert main(["compile", "spec.yaml", "-o", "out"]) == 0
    assert "a step" not in capsys.readouterr().err
    assert calls.read_text() == "x"
