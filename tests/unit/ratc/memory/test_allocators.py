"""`training.allocator`: the choice between native and expandable segments, and the scripts that set it."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ratc.catalog import alloc_conf
from ratc.cli import main
from ratc.memory.allocators import choose, searchers
from ratc.memory.choose import Variant
from ratc.memory.terms import Device
from ratc.memory.zero import Strategy
from tests.effort import HANGS_S
from tests.helpers import made_traces
from tests.unit.ratc.cli.test_fit import answers, runtime  # noqa: F401  # the fixture is used by its name

MIB = made_traces.MIB
VARIANT, CHECKPOINTED = Variant("fp32"), Variant("fp32", activation_checkpointing=True)
#: Blocks of sizes that leave holes: on a card of HELPED MiB expandable segments hold twice as many samples.
HOLES = {"temporary": 13 * MIB, "activation": 7 * MIB}
HELPED, ALIKE = 3482, 8192
#: The same for one sample: on a card of `only()` MiB native segments hold none.
LARGE = {"temporary": 13 * 64 * MIB, "activation": 7 * 64 * MIB}


def library(**what):
    traces = made_traces.pair(**what)
    return {VARIANT: traces, CHECKPOINTED: traces}


def choose_allocator(mib, asked="auto", share=64, variants=(VARIANT,), stages=(0,), strategy=None, **what):
    found = searchers(library(**(what or HOLES)), share, asked)
    return choose(found, variants, strategy or Strategy(), Device("card", mib * MIB, "8.0"), stages)


def expandable_only_mib():
    """MiB of a card on which one sample of LARGE fits with expandable segments alone."""
    sizes = range(2000, 9000, 20)
    return next(
        mib
        for mib in sizes
        if choose_allocator(mib, "expandable_segments", **LARGE) and not choose_allocator(mib, "native", **LARGE)
    )


# The choice.


def test_auto_chooses_expandable_segments_only_if_they_raise_the_micro_batch():
    native, found = choose_allocator(HELPED, "native"), choose_allocator(HELPED)
    assert found.allocator == "expandable_segments"
    assert found.choice.estimate.micro_batch > native.choice.estimate.micro_batch
    assert found.reason == "with expandable segments micro-batch 64 fits, without them 32"
    found = choose_allocator(ALIKE)
    assert found.allocator == "native"
    assert found.reason == "expandable segments would not raise the micro-batch"


@pytest.mark.parametrize("mib", range(900, 9000, 450))
def test_auto_equals_the_better_allocator_and_prefers_native(mib):
    found = {asked: choose_allocator(mib, asked) for asked in ("auto", "native", "expandable_segments")}
    sizes = {asked: one.choice.estimate.micro_batch if one else 0 for asked, one in found.items()}
    assert sizes["auto"] == max(sizes["native"], sizes["expandable_segments"])
    if found["auto"]:
        better = sizes["expandable_segments"] > sizes["native"]
        assert found["auto"].allocator == ("expandable_segments" if better else "native")


def test_auto_chooses_expandable_segments_if_they_lower_the_zero_stage():
    strategy = Strategy("deepspeed", 8)
    gains = set()
    for mib in range(2500, 14000, 250):
        what = {"weight": 256 * MIB, "activation": 20 * MIB, "temporary": 33 * MIB}
        every = {
            asked: choose_allocator(mib, asked, 16, stages=(1, 2, 3), strategy=strategy, **what)
            for asked in ("auto", "native")
        }
        if every["auto"] and every["auto"].allocator != "native":
            choice, native = every["auto"].choice, every["native"] and every["native"].choice
            costs = [(one.accumulation, one.estimate.strategy.zero_stage) for one in (choice, native) if one]
            assert costs == sorted(costs)
            assert len(set(costs)) == len(costs)
            gains.add(every["auto"].reason.split()[0])
        elif every["auto"]:
            assert every["auto"].reason == "expandable segments would not raise the micro-batch or avoid a ZeRO stage"
    assert gains


def test_expandable_segments_are_tried_before_checkpointing():
    found = choose_allocator(expandable_only_mib(), variants=(VARIANT, CHECKPOINTED), **LARGE)
    assert found.variant == VARIANT
    assert found.allocator == "expandable_segments"
    assert found.reason.startswith("nothing fits without expandable segments or recomputation, with them micro-batch ")


# Fused attention, which costs no time as far as is known.


def choose_attention(mib, *names, share=64, asked="native"):
    """What is taken of attentions that need 12, 3 and 2 MiB a sample: full, fused and chunked."""
    sizes = {"full": 12, "fused": 3, "chunked": 2}
    every = {
        Variant("fp32", attention_memory=name): made_traces.pair(temporary=size * MIB, activation=0)
        for name, size in sizes.items()
    }
    wanted = [Variant("fp32", attention_memory=name) for name in names]
    return choose(searchers(every, share, asked), wanted, Strategy(), Device("card", mib * MIB, "8.0"), (0,))


def test_fused_attention_is_chosen_if_it_raises_the_micro_batch():
    kept = choose_attention(4000, "full", "fused")
    assert (kept.variant.attention_memory, kept.choice.accumulation, kept.full) == ("full", 1, None)
    found = choose_attention(1500, "full", "fused")
    assert (found.variant.attention_memory, found.choice.accumulation) == ("fused", 1)
    assert found.full == choose_attention(1500, "full").choice
    assert found.full.accumulation > 1
    alone = choose_attention(1500, "fused")
    assert (alone.choice, alone.full) == (found.choice, None)


def test_chunked_attention_is_not_chosen_if_full_attention_fits():
    assert choose_attention(1500, "full", "chunked").variant.attention_memory == "full"


@pytest.mark.parametrize("mib", range(900, 3000, 300))
@pytest.mark.parametrize("asked", ["auto", "native"])
def test_choice_of_attention_equals_the_better_of_full_and_fused(mib, asked):
    alone = [choose_attention(mib, name, asked=asked) for name in ("full", "fused")]
    best = min((one.choice.accumulation for one in alone if one), default=None)
    found = choose_attention(mib, "full", "fused", asked=asked)
    assert (found and found.choice.accumulation) == best


# Variables.


@pytest.mark.parametrize(
    ("text", "options", "implied"),
    [
        ("", {}, None),
        ("expandable_segments:True", {"expandable_segments": "True"}, "expandable_segments"),
        (" expandable_segments : False ", {"expandable_segments": "False"}, "native"),
        ("max_split_size_mb:128", {"max_split_size_mb": "128"}, None),
        (
            "roundup_power2_divisions:[256:1,512:2,>:4],expandable_segments:True",
            {"roundup_power2_divisions": "[256:1,512:2,>:4]", "expandable_segments": "True"},
            "expandable_segments",
        ),
        ("expandable_segments:maybe", {"expandable_segments": "maybe"}, None),
        (",,:,", {}, None),
    ],
)
def test_allocator_variable_is_parsed_into_options(text, options, implied):
    assert alloc_conf.options(text) == options
    assert alloc_conf.implied(text) == implied


def test_other_options_of_the_allocator_variable_are_kept():
    given = {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128,expandable_segments:False", "PYTORCH_ALLOC_CONF": "a:1"}
    assert alloc_conf.settings("expandable_segments", given) == "max_split_size_mb:128,a:1,expandable_segments:True"
    assert alloc_conf.settings("native", {}) == "expandable_segments:False"


# From the spec to the lock and the scripts: a stand-in for the runtime gives the traces.

SPEC = """experiment_name: demo
training: {{target_batch_size: 64, use_accelerate: false, deepspeed: false{training}}}
data: {{data_dir: data, image_size: 128}}
environment: {{variables: {{{variables}}}}}
"""
FACTS = "gpus_per_node: 1\ngpu: made-up\ngpu_memory_mib: {mib}\ncompute_capability: '8.0'\ncpus: 8\n"


@pytest.fixture
def compiled(runtime, tmp_path, monkeypatch, capsys):  # noqa: F811
    runtime(answers(**HOLES))
    monkeypatch.chdir(tmp_path)

    def run(mib, training="", variables="", more="", options=()):
        Path("spec.yaml").write_text(
            SPEC.format(training=f", {training}" if training else "", variables=variables) + more
        )
        Path("facts.yaml").write_text(FACTS.format(mib=mib))
        status = main(["compile", "spec.yaml", "--facts", "facts.yaml", "-o", "out", *options])
        text = Path("out/lock.yaml").read_text() if status == 0 else ""
        return status, yaml.safe_load(text), text, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("mib", "training", "allocator", "micro", "reason"),
    [
        (HELPED, "", "expandable_segments", 64, "with expandable segments micro-batch 64 fits, without them 32"),
        (HELPED, "allocator: native", "native", 32, None),
        (HELPED, "allocator: expandable_segments", "expandable_segments", 64, None),
        (ALIKE, "", "native", 64, "expandable segments would not raise the micro-batch"),
        (ALIKE, "batch_size: 8", "native", 8, "the default: no prediction asks for expandable segments"),
    ],
)
def test_lock_has_the_allocator_and_its_reason(compiled, mib, training, allocator, micro, reason):
    status, lock, text, said = compiled(mib, training)
    assert status == 0, said
    assert lock["training"]["allocator"] == allocator
    assert lock["training"]["micro_batch_size"] == micro
    line = next(line for line in text.splitlines() if line.startswith("  allocator:"))
    assert line == f"  allocator: {allocator}" + (f"  # {reason}" if reason else "")


def test_cpu_run_has_no_allocator_and_exports_no_variable(compiled):
    status, lock, text, said = compiled(HELPED, "allocator: expandable_segments", "", "resources: {num_gpus: 0}\n")
    assert status == 0, said
    assert lock["training"]["allocator"] is None
    assert "  allocator: null  # trains on the CPU" in text
    assert "ALLOC_CONF" not in Path("out/run.sh").read_text()


def test_variable_of_the_spec_sets_the_allocator_if_the_key_is_auto(compiled):
    status, lock, text, said = compiled(HELPED, "", "PYTORCH_CUDA_ALLOC_CONF: 'expandable_segments:True'")
    assert status == 0, said
    assert lock["training"]["allocator"] == "expandable_segments"
    assert lock["training"]["micro_batch_size"] == 64
    assert "allocator: expandable_segments  # as `environment.variables` says" in text
    status, lock, _, _ = compiled(HELPED, "", "PYTORCH_ALLOC_CONF: 'expandable_segments:False'")
    assert lock["training"]["allocator"] == "native"
    assert lock["training"]["micro_batch_size"] == 32


@pytest.mark.parametrize(
    ("training", "variables", "said"),
    [
        ("allocator: native", "PYTORCH_ALLOC_CONF: 'expandable_segments:True'", "and `training.allocator` is `native`"),
        (
            "allocator: expandable_segments",
            "PYTORCH_CUDA_ALLOC_CONF: 'a:1,expandable_segments:False'",
            "sets `expandable_segments:False`, and `training.allocator` is `expandable_segments`",
        ),
        (
            "",
            "PYTORCH_ALLOC_CONF: 'expandable_segments:True', PYTORCH_CUDA_ALLOC_CONF: 'expandable_segments:False'",
            "contradict each other",
        ),
        ("", "PYTORCH_CUDA_ALLOC_CONF: 'backend:cudaMallocAsync'", "asks for the allocator backend `cudaMallocAsync`"),
        ("", "PYTORCH_CUDA_ALLOC_CONF: 'expandable_segments:maybe'", "to `maybe`, which torch does not accept"),
        ("", "PYTORCH_CUDA_ALLOC_CONF: 'max_split_size_mb:128,garbage'", "is not a list of `option:value`"),
        ("", "PYTORCH_ALLOC_CONF: 'max_split_size_mb'", "is not a list of `option:value`"),
        ("", "PYTORCH_ALLOC_CONF: '\\n'", "is not a list of `option:value`"),
        ("", "PYTORCH_ALLOC_CONF: 'roundup_power2_divisions:[256:1'", "is not a list of `option:value`"),
        ("", "PYTORCH_HIP_ALLOC_CONF: 'max_split_size_mb:lots'", "to `lots`, which torch does not accept"),
        ("", "PYTORCH_ALLOC_CONF: 'garbage_collection_threshold:-1'", "to `-1`, which torch does not accept"),
    ],
)
def test_contradictory_or_malformed_allocator_variables_are_refused(compiled, training, variables, said):
    status, _, _, err = compiled(ALIKE, training, variables)
    assert status == 1
    assert "error[R227]" in err
    assert said in err


@pytest.mark.parametrize(
    "text",
    [
        "",
        "max_split_size_mb:128",
        "max_split_size_mb: 128 , garbage_collection_threshold:0.8,",
        "roundup_power2_divisions:[256:1,512:2,>:4],pinned_use_cuda_host_register:True",
        "roundup_power2_divisions:4",
    ],
)
def test_valid_allocator_options_have_no_fault(text):
    assert alloc_conf.fault(text) is None
    assert not alloc_conf.unknown(text)


OPTIONS = [
    "garbage_collection_threshold:1.0", "garbage_collection_threshold:0", "garbage_collection_threshold:.25",
    "roundup_power2_divisions:3", "roundup_power2_divisions:0", "roundup_power2_divisions:[256:3]",
    "roundup_power2_divisions:[255:2]", "roundup_power2_divisions:[256:0,512:2,>:4]", "large_segment_size_mb:10",
    "large_segment_size_mb:11", "max_split_size_mb:10", "max_split_size_mb:20",
]  # fmt: skip

ASK_TORCH = """
import contextlib, sys, torch

for text in sys.argv[1:]:
    with contextlib.suppress(Exception):
        torch._C._accelerator_setAllocatorSettings(text)
        print(text)
"""


def test_accepted_option_values_are_those_that_torch_accepts():
    """Asked of torch itself, in a process of its own: an accepted value is a setting of the process."""
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, "-c", ASK_TORCH, *OPTIONS], capture_output=True, text=True, timeout=HANGS_S, check=True
    )
    assert done.stdout.split() == [text for text in OPTIONS if alloc_conf.fault(text) is None]


def test_unknown_allocator_option_is_a_warning(compiled):
    status, _, _, err = compiled(ALIKE, "", "PYTORCH_ALLOC_CONF: 'max_split_size_mb:128,new_one:1'")
    assert status == 0
    assert "warning[R227]" in err
    assert "`new_one`, which torch 2.13 does not know" in err


@pytest.mark.parametrize(
    ("option", "warned"),
    [("max_split_size_mb:128", True), ("roundup_power2_divisions:4", True), ("pinned_num_register_threads:2", False)],
)
def test_option_that_the_prediction_ignores_is_a_warning(compiled, option, warned):
    status, _, _, err = compiled(ALIKE, "", f"PYTORCH_CUDA_ALLOC_CONF: '{option}'")
    assert status == 0
    assert (f"the prediction of memory does not take into account `{option.partition(':')[0]}`" in err) == warned


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("CUBLAS_WORKSPACE_CONFIG: '4096:8'", "is `4096:8`, and cuBLAS takes `:SIZE:COUNT` in KiB"),
        (
            "TORCH_CUBLASLT_UNIFIED_WORKSPACE: 0",
            "the prediction of memory does not take into account `TORCH_CUBLASLT_UNIFIED_WORKSPACE: 0`",
        ),
    ],
)
def test_cublas_setting_that_the_prediction_ignores_is_a_warning(compiled, variable, said):
    status, _, _, err = compiled(ALIKE, "", variable)
    assert status == 0
    assert f"warning[R227]: {said}" in err or f"warning[R227]: `CUBLAS_WORKSPACE_CONFIG` {said}" in err


def test_memory_fraction_is_the_lowest_of_all_variables():
    assert alloc_conf.fraction({}) == 1
    given = {"PYTORCH_ALLOC_CONF": "per_process_memory_fraction:0.5", "PYTORCH_CUDA_ALLOC_CONF": "backend:native"}
    assert alloc_conf.fraction(given) == 0.5
    given["PYTORCH_CUDA_ALLOC_CONF"] = "backend:native,per_process_memory_fraction:.25"
    assert alloc_conf.fraction(given) == 0.25


def test_memory_fraction_lowers_the_micro_batch(compiled):
    fewer = "PYTORCH_CUDA_ALLOC_CONF: 'per_process_memory_fraction:0.2'"
    chosen = [compiled(ALIKE, "", text)[1]["training"]["micro_batch_size"] for text in ("", fewer)]
    assert chosen[1] < chosen[0]


def test_explain_and_fit_show_the_reason_for_the_allocator(compiled, capsys):
    compiled(HELPED)
    assert main(["explain", "spec.yaml", "--facts", "facts.yaml", "training.allocator"]) == 0
    out = capsys.readouterr().out
    assert "training.allocator = expandable_segments" in out
    assert "with expandable segments micro-batch 64 fits, without them 32" in out
    assert main(["fit", "spec.yaml", "--facts", "facts.yaml", "--card", "a100-40"]) == 0
    out = capsys.readouterr().out
    assert "The allocator's setting is native: expandable segments would not raise the micro-batch." in out


def test_given_micro_batch_keeps_native_segments_and_suggests_expandable_ones(compiled, checks_given):
    status, _, _, said = compiled(HELPED, "batch_size: 64")
    assert "R318" in said
    assert "would fit with `allocator: expandable_segments`: micro-batch 64" in said
    status, lock, _, said = compiled(HELPED, "batch_size: 64, allocator: expandable_segments")
    assert status == 0, said
    assert "R318" not in said
    assert lock["training"]["allocator"] == "expandable_segments"


def test_if_nothing_fits_natively_expandable_segments_are_suggested(compiled, runtime):  # noqa: F811
    runtime(answers(**LARGE))
    status, _, _, said = compiled(expandable_only_mib(), "allocator: native")
    assert status == 1
    assert "error[R317]" in said
    assert "would fit with `allocator: expandable_segments`" in said


#: In the place of the interpreter: says what it was started with, and what the allocator's variables are.
STUB = """#!/bin/sh
echo "$2 [${PYTORCH_ALLOC_CONF-unset}] [${PYTORCH_CUDA_ALLOC_CONF-unset}]"
"""


def run_script(script, *words, **environment):
    """The lines of a script whose interpreter is the stub."""
    stub = Path("stub").absolute()
    stub.write_text(STUB)
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    done = subprocess.run(
        ["bash", script, *words],
        env={"PATH": os.environ["PATH"], "RATC_PYTHON": str(stub), **environment},
        capture_output=True,
        text=True,
        timeout=HANGS_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("mib", "variables", "wanted"),
    [
        (HELPED, "", "expandable_segments:True"),
        (ALIKE, "", "expandable_segments:False"),
        (ALIKE, "PYTORCH_CUDA_ALLOC_CONF: 'max_split_size_mb:128'", "max_split_size_mb:128,expandable_segments:False"),
    ],
)
def test_run_sh_sets_both_allocator_variables_over_those_of_the_shell(compiled, mib, variables, wanted):
    assert compiled(mib, "", variables)[0] == 0
    inherited = "expandable_segments:True"
    first, train = run_script("out/run.sh", PYTORCH_CUDA_ALLOC_CONF=inherited)
    # Preflight still sees what was inherited, so that it can warn.
    assert first == f"ratc_runtime.preflight [unset] [{inherited}]"
    assert train == f"ratc_runtime.train [{wanted}] [{wanted}]"


NODE = {"RAT_DATA_DIR": "data", "RAT_OUTPUT_DIR": "results", "SLURM_PROCID": "0", "SLURM_NODEID": "0"}


def test_node_sh_sets_both_allocator_variables(compiled):
    assert compiled(HELPED, options=("--target", "slurm"))[0] == 0
    Path("results/logs").mkdir(parents=True)
    lines = run_script("out/node.sh", str(Path("out/lock.yaml").absolute()), "here", "1", "7", "0", **NODE)
    assert lines[-1].endswith("[expandable_segments:True] [expandable_segments:True]")


def test_each_point_of_an_array_sets_its_own_allocator(compiled):
    sweep = "sweep: {grid: {training.allocator: [native, expandable_segments]}}\n"
    status, _, text, said = compiled(HELPED, more=sweep, options=("--target", "slurm"))
    assert status == 0, said
    assert "allocator:" not in text, "the points do not share it"
    Path("results/logs").mkdir(parents=True)
    seen = {}
    for lock in sorted(Path("out/points").glob("*/lock.yaml")):
        lines = run_script("out/node.sh", str(lock.absolute()), "here", "1", "7", "0", **NODE)
        seen[yaml.safe_load(lock.read_text())["training"]["allocator"]] = lines[-1].split(" ", 1)[1]
    assert seen == {
        "native": "[expandable_segments:False] [expandable_segments:False]",
        "expandable_segments": "[expandable_segments:True] [expandable_segments:True]",
    }
