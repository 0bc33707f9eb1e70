"""The memory check of a micro-batch that the spec gives: its messages, its conditions, and that files do not change."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml

from ratc import compiler, facts
from ratc.cli import main
from ratc.compiler import File
from ratc.fitting import from_measurement
from ratc.fitting.check_batch import MOST, SKIP
from ratc.memory import given
from ratc.memory.choose import Searcher, Variant
from ratc.memory.estimate import Predictor
from ratc.memory.request import variant
from ratc.memory.terms import Device
from ratc.memory.zero import Strategy
from ratc.tracing import fetch
from ratc.workflow import edit_facts
from tests.helpers import made_traces
from tests.helpers.measurements import MACHINE, measurement
from tests.unit.ratc.cli.test_fit import answers, runtime  # noqa: F401  # the fixture is used by its name

GIB = 1 << 30
VARIANT = Variant("fp32")
LIBRARY = {VARIANT: made_traces.pair()}
SPEC = """experiment_name: demo
training: {{{training}}}
data: {{data_dir: data, image_size: 128}}
resources: {{num_gpus: {gpus}, gpu: a100-40, cpus: 8}}
"""
#: A sample takes 12 MiB: the largest power of two that fits a card of 40 GiB is 2048; 4096 needs more than 48 GiB.
FITS, TOO_LARGE = 2048, 4096


def tight() -> int:
    """The largest even micro-batch that fits an A100 of 40 GB, if the margin is not left free."""
    card = facts.find_card("a100-40")
    predictor = Predictor(LIBRARY[VARIANT].accumulating, Strategy(accumulates=True))
    budget = predictor.budget(Device(card.id, card.memory_bytes, card.compute_capability))
    return next(size for size in range(TOO_LARGE, 0, -2) if predictor.at(budget, size) is not None)


TIGHT = tight()


def device(gib: float) -> Device:
    return Device("card", int(gib * GIB), "8.0")


def searcher(share: int = 64) -> Searcher:
    return Searcher(LIBRARY, share)


def same_variant(size: int) -> Variant:
    return VARIANT


def verdict(gib: float, micro_batch: int, share: int = 64, stages=(), strategy=None) -> given.Verdict:
    return given.predicted(searcher(share), same_variant, strategy or Strategy(), device(gib), micro_batch, stages)


def test_given_micro_batch_that_fits_starts_no_search():
    found = verdict(4, 16)
    assert found.fits
    assert not found.is_tight
    assert found.largest is None
    assert found.choice.accumulation == 4
    assert found.choice.estimate == searcher().estimate(VARIANT, Strategy(), device(4), 16)


def test_given_micro_batch_that_does_not_fit_has_need_and_largest_fitting():
    found = verdict(1, 64)
    assert not found.fits
    assert not found.is_tight
    chosen = searcher().choose(VARIANT, Strategy(), device(1))
    assert (found.largest.estimate, found.largest.accumulation) == (chosen.estimate, chosen.accumulation)
    assert found.largest.estimate.micro_batch < 64
    # With a card of that size it fits, and with 3 % less it does not.
    assert verdict(found.need_bytes / GIB * 1.01, 64).fits
    assert not verdict(found.need_bytes / GIB * 0.97, 64).fits


RANGE = SPEC.replace("num_gpus: {gpus}", "gpus_per_node: 1, nodes: {{min: 2, max: 4}}")


def test_a_range_names_the_nodes_that_do_not_fit(compiled):
    status, _, said = compiled(
        f"batch_size: {TOO_LARGE}, target_batch_size: {4 * TOO_LARGE}", "--target", "slurm", spec=RANGE
    )
    assert status == 1
    assert f"error[R318]: micro-batch {TOO_LARGE} does not fit on a100-40" in said
    assert "note: that is on 2 nodes, the fewest of the range" in said


def test_a_range_says_once_that_its_model_cannot_be_called(compiled, runtime):  # noqa: F811
    told = {"code": "R316", "message": "it cannot be called", "where": "net.py:3"}
    runtime(f"print({json.dumps(told)!r}, file=sys.stderr); sys.exit(1)")
    status, _, said = compiled("batch_size: 8, target_batch_size: 64", "--target", "slurm", spec=RANGE)
    assert status == 0, said
    assert said.count("it cannot be called") == 1
    assert "warning[R316]: the micro-batch is not checked: it cannot be called" in said


def test_given_micro_batch_within_the_margin_is_tight():
    large = verdict(1, 64)
    found = verdict(large.need_bytes / GIB * (1 - large.choice.estimate.margin / 2), 64)
    assert not found.fits
    assert found.is_tight


def test_lowest_zero_stage_that_makes_it_fit_is_suggested():
    strategy = Strategy("deepspeed", 8, 1, False, "fp32")
    heavy = {"weight": 256 * made_traces.MIB, "activation": 1024, "temporary": 1024}
    library = {VARIANT: made_traces.pair(**heavy)}
    for stage in (1, 2):
        found = given.predicted(Searcher(library, 4), same_variant, strategy, device(4.5), 2, range(stage + 1, 4))
        assert not found.fits
        assert [way.change for way in found.ways] in ([], ["`zero_stage: 2`"], ["`zero_stage: 3`"])
        for way in found.ways:
            assert way.choice.estimate.fits
            assert way.choice.estimate.micro_batch == 2


@pytest.mark.parametrize(("size", "fits"), [(2, True), (16, True), (32, True), (64, False)])
def test_given_micro_batch_is_judged_by_the_line_through_measured_points(size, fits):
    found = given.by_measurement(measurement(((2, 5), (4, 9))), 64, device(79.1), Strategy(), size)
    assert found is not None
    assert found.fits is fits
    assert found.measured
    if not fits:
        assert found.largest.estimate.micro_batch == 32
        assert found.need_bytes > 129 * GIB


def test_measurement_of_one_size_does_not_judge_a_larger_size():
    assert given.by_measurement(measurement(((2, 5),)), 64, device(79.1), Strategy(), 4) is None


# Compiling: a stand-in for the runtime gives the traces.


@pytest.fixture
def compiled(runtime, tmp_path, monkeypatch, capsys, checks_given):  # noqa: F811
    """Compile on an A100 of 40 GB; returns the status, the bytes of each file, and what was said."""
    calls = runtime(answers())
    monkeypatch.chdir(tmp_path)

    def run(training, *options, gpus=1, spec=SPEC):
        Path("spec.yaml").write_text(spec.format(training=training, gpus=gpus))
        status = main(["compile", "spec.yaml", "-o", "out", *options])
        files = {path.name: path.read_bytes() for path in Path("out").glob("*.*")} if status == 0 else {}
        return status, files, capsys.readouterr().err

    run.traces = lambda: len(calls.read_text()) if calls.exists() else 0
    return run


def test_memory_check_does_not_change_the_compiled_files(compiled):
    training = f"batch_size: {FITS}, target_batch_size: 4096"
    status, files, said = compiled(training)
    assert status == 0, said
    assert "R318" not in said
    assert compiled.traces() == 1
    assert compiled(training, "--no-predict")[1] == files
    assert compiled(training, "--check")[0] == 0
    assert yaml.safe_load(files["lock.yaml"])["memory"]["peak_reserved_bytes"] is None


def test_given_micro_batch_that_does_not_fit_is_an_error_with_suggestions(compiled):
    status, _, said = compiled(f"batch_size: {TOO_LARGE}, target_batch_size: 4096")
    assert status == 1
    assert f"error[R318]: micro-batch {TOO_LARGE} does not fit on a100-40: it needs " in said
    assert "and this one has 39.6 GiB" in said
    numbers = re.search(
        r"note: ([0-9.]+) GiB is ([0-9.]+) GiB .*, ([0-9.]+) GiB beside it .*, and ([0-9.]+) GiB kept", said
    )
    need, *parts = map(float, numbers.groups())
    assert need == pytest.approx(sum(parts), abs=0.3)
    assert "--> spec.yaml:2:24" in said
    assert "on this card the allocator may reserve 38.0 GiB" in said
    assert "note: largest: " in said
    assert f"help: use `batch_size: {FITS}`: micro-batch {FITS} fits, " in said
    assert "`--no-predict`" in said
    assert not Path("out").exists()
    status, _, said = compiled(f"batch_size: {TOO_LARGE}, target_batch_size: 4096", "--no-predict")
    assert status == 0
    assert said == "written: accelerate.yaml, run.sh, lock.yaml\n"


def test_margin_is_a_share_of_the_required_memory_not_of_the_uncapped_peak(compiled, monkeypatch):
    """With less memory the allocator gives cached blocks back, so that the need may lie below that peak."""
    monkeypatch.setattr(Predictor, "need", lambda *_: 40 * GIB)
    status, _, said = compiled(f"batch_size: {TOO_LARGE}, target_batch_size: 4096")
    assert status == 1
    pattern = r"note: 40.0 GiB is ([0-9.]+) GiB that the allocator has to .*, and ([0-9.]+) (GiB|MiB) kept free"
    reserved, free, unit = re.search(pattern, said).groups()
    assert unit == "GiB"
    assert 0.01 < float(free) / (float(free) + float(reserved)) < 0.06


@pytest.mark.parametrize(
    ("training", "way"),
    [
        (f"batch_size: {TOO_LARGE}", f"`batch_size: {FITS}` with `gradient_accumulation_steps: 2`"),
        (
            f"batch_size: {TOO_LARGE}, gradient_accumulation_steps: 2",
            f"`batch_size: {FITS}` with `gradient_accumulation_steps: 4`",
        ),
        ("target_batch_size: 8192, gradient_accumulation_steps: 2", "`gradient_accumulation_steps: 4`"),
    ],
)
def test_suggested_micro_batch_keeps_the_global_batch(compiled, training, way):
    status, _, said = compiled(training)
    assert status == 1
    assert f"help: use {way}: micro-batch {FITS} fits" in said


def test_given_micro_batch_within_the_margin_is_a_warning(compiled):
    status, _, said = compiled(f"batch_size: {TIGHT}, target_batch_size: {2 * TIGHT}")
    assert status == 0, said
    assert f"warning[R318]: micro-batch {TIGHT} fits on a100-40 only within the margin: " in said
    used, has = re.search(r"margin: ([\d.,]+ [GM]iB) predicted, the card has ([\d.,]+ [GM]iB)", said).groups()
    assert used[-3:] == has[-3:]
    assert used < has, "a step that fits is in use on this card"
    assert "help: use `batch_size: " in said


def test_zero_stage_is_suggested_only_if_it_is_predicted_to_fit(compiled, runtime):  # noqa: F811
    runtime(answers(weight=1200 * made_traces.MIB, activation=1024, temporary=1024))
    status, _, said = compiled("batch_size: 2, target_batch_size: 16, zero_stage: 1", gpus=8)
    assert ("error[R318]" in said) == (status == 1)
    if status:
        assert "help: would fit with `zero_stage: " in said


@pytest.mark.parametrize("body", ["sys.exit(3)", "1 / 0", "pass"])
def test_failed_trace_of_a_given_micro_batch_is_a_line_and_no_finding(compiled, runtime, body):  # noqa: F811
    runtime(body)
    status, files, said = compiled("batch_size: 8, target_batch_size: 64")
    assert status == 0
    assert "lock.yaml" in files
    assert "ratc: the micro-batch is not checked against a100-40: " in said
    assert "warning" not in said
    assert "error" not in said


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("R316", 0, "warning[R316]: the micro-batch is not checked: it cannot be called"),
        ("R237", 1, "error[R237]: it cannot be called"),
    ],
)
def test_a_model_that_cannot_be_built_is_a_warning_and_a_wrong_value_an_error(compiled, runtime, code, status, said):  # noqa: F811
    told = {"code": code, "message": "it cannot be called", "where": "net.py:3"}
    runtime(f"print({json.dumps(told)!r}, file=sys.stderr); sys.exit(1)")
    found, files, words = compiled("batch_size: 8, target_batch_size: 64")
    assert found == status
    assert ("lock.yaml" in files) == (status == 0)
    assert said in words


def test_missing_runtime_skips_the_check_with_a_line(compiled, monkeypatch):
    with_it = compiled("batch_size: 8, target_batch_size: 64")[1]
    monkeypatch.setattr(fetch, "runtime_folder", lambda: None)
    monkeypatch.setenv("RATC_CACHE", os.path.abspath("empty"))
    status, files, said = compiled("batch_size: 8, target_batch_size: 64")
    assert status == 0
    assert files == with_it
    assert "is not checked against a100-40: memory cannot be predicted: ratc's runtime is not installed here" in said
    assert "warning" not in said


@pytest.mark.parametrize("way", ["--no-predict", SKIP])
def test_no_predict_option_or_variable_skips_the_trace(compiled, monkeypatch, way):
    options = [way] if way.startswith("-") else []
    if not options:
        monkeypatch.setenv(way, "1")
    status, _, said = compiled(f"batch_size: {TOO_LARGE}", *options)
    assert status == 0
    assert compiled.traces() == 0
    assert "checked" not in said


def test_check_and_diff_trace_nothing_for_a_given_micro_batch(compiled, monkeypatch, capsys):
    training = f"batch_size: {TOO_LARGE}, target_batch_size: 4096"
    assert compiled(training, "--no-predict")[0] == 0
    for command in (["compile", "spec.yaml", "-o", "out", "--check"], ["check", "."], ["diff", "spec.yaml", "out"]):
        assert main(command) == 0, capsys.readouterr()
    assert compiled.traces() == 0


def test_lock_of_no_predict_has_the_default_micro_batch_and_records_the_option(compiled, capsys):
    status, files, said = compiled("target_batch_size: 32", "--no-predict")
    assert status == 0
    assert compiled.traces() == 0
    assert "warning[R305]" in said
    assert yaml.safe_load(files["lock.yaml"])["training"]["micro_batch_size"] == 8
    assert b"--target local --no-predict -o ." in files["lock.yaml"]
    assert main(["check", "."]) == 0, "it is made again in the same way"
    assert compiled.traces() == 0


@pytest.mark.parametrize("card", ["num_gpus: 0", "num_gpus: 1, gpu: mi250x"])
def test_given_micro_batch_is_not_checked_on_cpu_or_amd_cards(compiled, card):
    spec = SPEC.replace("num_gpus: {gpus}, gpu: a100-40", card)
    status, _, said = compiled("batch_size: 4096", spec=spec)
    assert status == 0, said
    assert compiled.traces() == 0
    assert "checked" not in said


def test_explain_shows_the_margin_of_a_given_micro_batch(compiled, capsys):
    compiled(f"batch_size: {FITS}, target_batch_size: {2 * FITS}", "--no-predict")
    assert main(["explain", "spec.yaml", "memory.margin"]) == 0
    assert "kept free as a margin" in capsys.readouterr().out


def test_fit_for_another_card_says_that_the_given_micro_batch_is_unchecked(compiled, capsys):
    compiled(f"batch_size: {FITS}, target_batch_size: {2 * FITS}", "--no-predict")
    for options in (("--card", "h100"), ("--in", "fp32")):
        assert main(["fit", "spec.yaml", *options]) == 0
        assert f"\n\nThe spec's own micro-batch, {FITS}, is not checked here" in capsys.readouterr().out
    compiled("target_batch_size: 32", "--no-predict")
    assert main(["fit", "spec.yaml", "--card", "h100"]) == 0
    assert "own micro-batch" not in capsys.readouterr().out


def test_fit_for_a_named_card_does_not_depend_on_this_machine(compiled, capsys):
    Path("spec.yaml").write_text(SPEC.format(training="target_batch_size: 32", gpus=2).replace(", gpu: a100-40", ""))
    assert "gpu:" not in Path("spec.yaml").read_text()
    assert main(["fit", "spec.yaml", "--card", "h100"]) == 0
    said = capsys.readouterr()
    assert "R309" not in said.err
    assert "h100" in said.out


@pytest.mark.parametrize("command", ["explain", "fit"])
@pytest.mark.parametrize(
    ("size", "outcome"),
    [
        (FITS, f"Micro-batch {FITS} is given by the spec, and fits."),
        (TOO_LARGE, f"Micro-batch {TOO_LARGE} is given by the spec, and does not fit: a card of "),
        (TIGHT, f"Micro-batch {TIGHT} is given by the spec, and fits only within the margin."),
    ],
)
def test_explain_and_fit_show_the_memory_breakdown_of_a_given_micro_batch(compiled, capsys, command, size, outcome):
    compiled(f"batch_size: {size}, target_batch_size: {2 * size}", "--no-predict")
    main([command, "spec.yaml", *(["training.batch_size"] if command == "explain" else [])])
    out = capsys.readouterr().out
    assert f"At the peak of a step on a100-40, micro-batch {size}, predicted:" in out
    assert "activations" in out
    assert outcome in out
    if size == TOO_LARGE:
        assert "above what then remains: it does not fit" in out
        assert f"The largest that fits is {FITS}" in out


def test_given_micro_batch_is_judged_by_a_measurement_before_a_trace(compiled, capsys):
    spec = SPEC.replace("gpu: a100-40", "gpu: h100")
    Path("spec.yaml").write_text(spec.format(training="batch_size: 64", gpus=1))
    settings, _ = compiler.analyse(compiler.Inputs(File("spec.yaml", Path("spec.yaml").read_bytes())))
    plan, _ = compiler.plan(settings, None, None)
    conditions = from_measurement.conditions(plan, variant(plan, "9.0"), ".")
    assert edit_facts.add("facts.yaml", measurement(((2, 5), (4, 9)), conditions=conditions), MACHINE) is None
    status, _, said = compiled("batch_size: 64", "--facts", "facts.yaml", spec=spec)
    assert status == 1
    assert "error[R318]: micro-batch 64 does not fit on h100: it needs a card of 13" in said
    assert "that the allocator has to reserve (measured)" in said
    assert "micro-batch 32 fits" in said
    assert compiled.traces() == 0
    assert compiled("batch_size: 32", "--facts", "facts.yaml", spec=spec)[0] == 0


SWEEP = SPEC + "sweep: {{grid: {{{points}}}}}\n"


def test_points_with_the_same_memory_share_one_check(compiled):
    rates = ", ".join(f"{number}.0e-4" for number in range(1, 41))
    spec = SWEEP.replace("{points}", f"training.learning_rate: [{rates}]")
    status, _, said = compiled("batch_size: 8", "--target", "slurm", spec=spec)
    assert status == 0, said
    assert compiled.traces() == 1
    assert "different points" not in said


def test_only_the_first_and_last_of_many_different_points_are_checked(compiled):
    kernels = ", ".join(f"{1.0 + number / 10}" for number in range(20))
    spec = SWEEP.replace("{points}", f"training.gradient_clipping: [{kernels}]")
    status, _, said = compiled("batch_size: 8", "--target", "slurm", spec=spec)
    assert status == 0, said
    assert compiled.traces() == MOST + 1
    assert f"ratc: the micro-batches of {MOST} different points and of the last point are checked" in said


def test_point_that_does_not_fit_is_named(compiled):
    spec = SWEEP.replace("{points}", f"training.batch_size: [8, {TOO_LARGE}]")
    status, _, said = compiled("target_batch_size: 4096", "--target", "slurm", spec=spec)
    assert status == 1
    assert f"error[R318]: micro-batch {TOO_LARGE} does not fit on a100-40" in said
    assert f"training.batch_size={TOO_LARGE}" in said


def test_trial_that_does_not_fit_is_left_out_of_the_study(compiled):
    study = f"tuning: {{{{search_space: {{{{batch_size: [8, 16, {TOO_LARGE}]}}}}}}}}"
    status, _, said = compiled("target_batch_size: 4096", "--target", "slurm", spec=SPEC + study)
    assert status == 0, said
    assert "warning[R338]: 1 of 3 trials cannot run" in said
    assert "R318" in said


def test_trials_that_share_a_prediction_all_fail_if_nothing_fits(runtime, tmp_path, monkeypatch, capsys):  # noqa: F811
    """No micro-batch fits for either learning rate: the second trial must not pass because the first one asked."""
    runtime(answers(activation=60 * GIB))
    monkeypatch.chdir(tmp_path)
    study = "tuning: {{search_space: {{learning_rate: [1.0e-4, 1.0e-3]}}}}"
    Path("spec.yaml").write_text((SPEC + study).format(training="target_batch_size: 8", gpus=1))
    assert main(["compile", "spec.yaml", "--target", "slurm"]) == 1
    said = capsys.readouterr().err
    assert "error[R339]" in said, said
    assert "R317" in said


def test_suggested_micro_batch_is_judged_with_its_own_attention_variant():
    """`auto` attention follows from the micro-batch: what is advised must fit as the spec would then be compiled."""
    lean, full = Variant("fp32", attention_memory="chunked"), VARIANT
    small = {"activation": 64 * 1024, "temporary": 64 * 1024}
    library = {
        lean: made_traces.pair(**small),
        full: LIBRARY[VARIANT],
    }
    searched = Searcher(library, 4096)
    of = {4096: lean}
    found = given.predicted(searched, lambda size: of.get(size, full), Strategy(), device(2), 4096, ())
    assert not found.fits
    assert found.largest.estimate.fits
    advised = given.predicted(
        searched, lambda size: full, Strategy(), device(2), found.largest.estimate.micro_batch, ()
    )
    assert advised.fits
    always_lean = given.predicted(searched, lambda size: lean, Strategy(), device(2), 4096, ())
    assert always_lean.largest.estimate.micro_batch > found.largest.estimate.micro_batch
