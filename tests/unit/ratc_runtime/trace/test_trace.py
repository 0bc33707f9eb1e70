"""The trace: its format, and the semantics of CUDA restored on CPU tensors."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ratc.memory.trace import parse
from tests.helpers import tracing
from tests.helpers.packages import EIGHT_BITS
from tests.helpers.tracing import allocations, failure, replay, request, run, trace, traces, zoo

pytestmark = [
    pytest.mark.slow,  # nearly every test traces in processes of its own
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the runtime extra"),
]


def total(made: dict[str, Any], **wanted: str) -> tuple[float, float]:
    """Return the summed fixed and per-sample bytes of the allocations with the wanted names."""
    found = list(allocations(made, **wanted))
    return sum(event[1] for event in found), sum(event[2] for event in found)


def test_the_trace_file_has_the_documented_format(tmp_path: Path) -> None:
    content = request()
    made = trace(content, tmp_path)
    assert made["trace_version"] == 4
    assert made["request"] == content
    assert made["batch_sizes"] == [2, 4]
    assert total(made, kind="parameter") == (made["parameters"]["bytes"], 0)
    assert made["parameters"]["bytes"] == 4 * made["parameters"]["count"]
    alive: set[int] = set()
    for event in made["events"]:
        if len(event) == 1:
            alive.remove(event[0])  # freed once, and only what lives
        else:
            assert event[0] not in alive
            assert event[1] + 2 * event[2] >= 0
            alive.add(event[0])
    build, second = made["steps"]
    assert all(len(event) == 6 and made["phases"][event[3]] == "build" for event in made["events"][:build])
    # What an optimizer step leaves behind, the next one does not leave again
    replayed = {**made, "events": made["events"][:second]}
    # (the loop keeps loss and norm of the last step, 4 bytes each, and the trace ends after the loop).
    assert replay(replayed, 3)[1] - replay(made, 3)[1] == 8


def test_a_step_has_its_phases_kinds_and_modules(tmp_path: Path) -> None:
    made = trace(request(), tmp_path)
    weights = made["parameters"]["bytes"]
    # Two steps, each with a gradient for every weight that the loss depends on; AdamW keeps two numbers for each, and
    # fused a count of steps (4 bytes) for each tensor on the device.
    gradients, state = total(made, kind="gradient"), total(made, kind="optimizer")
    assert gradients[1] == state[1] == 0
    assert 0.9 * 2 * weights < gradients[0] <= 2 * weights
    assert state[0] == gradients[0] + 4 * len(list(allocations(made, kind="gradient"))) / 2
    assert total(made, phase="input", kind="input")[1] == 2 * 4 * 32 * 32 * (3 + 1)
    assert total(made, kind="activation", phase="forward")[1] > 0
    # Backward works for the modules whose forward made the graph.
    in_backward = {event[4] for event in allocations(made, phase="backward")}
    assert {"backbone.sga_layers.0.mlp.fc1", "backbone.mr_attn_layers.0.qkv", "stem.0"} <= in_backward
    owners = {event[4] for event in allocations(made, kind="gradient")}
    assert {"backbone.sga_layers.0.q", "stem.3", "fuse.2"} <= owners


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_sizes_are_linear_in_the_micro_batch(tmp_path: Path, precision: str) -> None:
    content = request(training__precision=precision)
    one, other = trace(content, tmp_path), trace({**content, "batch_sizes": [3, 8]}, tmp_path)
    assert one["events"] == other["events"]


def test_pairwise_models_have_sizes_quadratic_in_the_micro_batch(tmp_path: Path) -> None:
    """At 1,000 samples and 16 prototypes, not only at the batches that were traced."""
    made = parse(trace(zoo("Pairs", args={"width": 256}), tmp_path))
    assert max(made.program.sizes(1000)) == 4 * 1016 * 1016 * 256


def test_a_micro_batch_of_one_has_a_separate_trace(tmp_path: Path) -> None:
    """A transposed batch of 1 is still contiguous, and is not copied."""
    made = trace({**request(), "batch_sizes": [1]}, tmp_path)
    assert made["batch_sizes"] == [1]
    one, several = list(allocations(made)), list(allocations(trace(request(), tmp_path)))
    assert {growth for _, _, growth, *_ in one} == {0}
    assert len(one) < len(several)
    sizes = [{size + growth for _, size, growth, phase, *_ in found if phase == "input"} for found in (one, several)]
    assert sizes[0] == sizes[1]


def test_a_linear_layer_adds_its_bias_in_place(tmp_path: Path) -> None:
    """Torch does so to a product that is no fake tensor; the input is transposed here, so that no `addmm` does both."""
    made = trace(request(training__precision="fp32"), tmp_path)
    found = allocations(made, phase="forward", module="backbone.sga_layers.0.kv")
    assert {kind for *_, kind in found if kind != "workspace"} == {"activation"}  # no product beside the sum


def test_two_traces_are_identical(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        trace(request(), tmp_path / folder)
    assert (tmp_path / "a/trace.json").read_bytes() == (tmp_path / "b/trace.json").read_bytes()


def test_the_autocast_lists_equal_those_of_torch() -> None:
    import torch
    from ratc_runtime.trace import autocast

    header = Path(torch.__file__).parent / "include/ATen/autocast_mode.h"
    text = header.read_text()
    for macro, names in {
        "LOWER_PRECISION_FP": autocast.LOWER_PRECISION,
        "FP32": autocast.FLOAT32,
        "FP32_SET_OPT_DTYPE": autocast.FLOAT32_RESULT,
        "PROMOTE": autocast.WIDEST,
    }.items():
        block = re.search(rf"#define AT_FORALL_{macro}\(_\)((?:.*\\\n)+.*)", text)
        assert block is not None
        entries = re.findall(r"_\((\w+)(?:, (\w+))?\)", block.group(1))
        assert [f"{name}.{overload}" if overload else name for name, overload in entries] == names
    different = re.search(r"#define AT_FORALL_DIFFERENT_REDISPATCH_SIGNATURE\(_\)((?:.*\\\n)+.*)", text)
    assert different is not None
    assert re.findall(r'"([\w.]+)"', different.group(1)) == list(autocast.NORM)


def test_autocast_casts_as_cuda_does(tmp_path: Path) -> None:
    script = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from ratc_runtime.trace.ledger import Ledger
from ratc_runtime.trace import kernels
kernels.install((8, 0))
with FakeTensorMode():
    x = torch.zeros(4, 8, device="cpu")
    w = torch.zeros(8, 8, device="cpu", requires_grad=True)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        h = x @ w
        assert torch.mm(x, w).dtype == h.dtype == torch.bfloat16
        assert h.softmax(-1).dtype == torch.float32 and h.sum().dtype == torch.float32
        assert h.softmax(-1, dtype=torch.bfloat16).dtype == torch.bfloat16
        assert torch.nn.functional.layer_norm(h, (8,)).dtype == torch.float32
        assert h.norm().dtype == h.norm(dim=1).dtype == torch.float32
        assert torch.nn.functional.gelu(h).dtype == torch.bfloat16
        assert torch.cat([h, h]).dtype == torch.bfloat16 and torch.cat([h, x]).dtype == torch.float32
        assert torch.addcmul(x, h, h).dtype == torch.float32
        assert (x.double() @ w.double()).dtype == torch.float64
        with torch.autocast("cpu", enabled=False):
            assert (x @ w).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.float16):
        half = (x @ w)
        assert half.softmax(-1).dtype == half.log_softmax(-1).dtype == torch.float32
        half.softmax(-1).sum().backward()
        assert w.grad.dtype == torch.float32
    assert (x @ w).dtype == torch.float32
"""
    done = run(["-c", script], {})
    assert done.returncode == 0, done.stderr


def test_dropout_keeps_a_mask_of_one_byte(tmp_path: Path) -> None:
    content = zoo("Mlp", args={"width": 64, "depth": 1})
    on_card = total(trace(content, tmp_path), kind="activation", phase="forward")[1]
    on_host = total(trace({**content, "semantics": "cpu"}, tmp_path), kind="activation", phase="forward")[1]
    elements = 2 * 32 * 32 * 4 * 64  # two steps
    assert on_host - on_card == elements * (4 - 1)


def test_each_thread_has_a_cublas_workspace(tmp_path: Path) -> None:
    given = {"cublas_workspace": 4096}
    for capability, asked, size in (("8.0", {}, 8_519_680), ("9.0", {}, 32 * 2**20), ("9.0", given, 4096)):
        made = trace(request(compute_capability=capability, **asked), tmp_path)
        # Those of convolutions and reductions are their modules'.
        found = [(event[1], event[3]) for event in allocations(made, kind="workspace") if not event[4]]
        assert found == [(size, "forward"), (size, "backward")]


def test_the_fused_optimizer_makes_no_copies_of_the_weights(tmp_path: Path) -> None:
    content = zoo("Mlp")
    on_card, on_host = trace(content, tmp_path), trace({**content, "semantics": "cpu"}, tmp_path)
    weights = on_card["parameters"]["bytes"]

    def peak_in_optimizer(made: dict[str, Any]) -> float:
        live = peak = 0.0
        sizes: dict[int, float] = {}
        for event in made["events"]:
            if len(event) == 1:
                live -= sizes.pop(event[0], 0.0)
            elif made["phases"][event[3]] == "optimizer" and made["kinds"][event[5]] == "temporary":
                sizes[event[0]] = event[1]
                live += event[1]
            peak = max(peak, live)
        return peak

    assert peak_in_optimizer(on_card) < 0.01 * weights
    assert peak_in_optimizer(on_host) < 0.01 * weights


def states_by_hand(shape: tuple[int, ...], optimizer: str) -> int:
    """Return the bytes of an optimizer's state of one weight on a card: numbers of 4 bytes, by the sources."""
    count = math.prod(shape)
    if optimizer == "adafactor":  # a mean of squares for each row and each column; its count of steps is on the host
        return 4 * (sum(shape) if len(shape) == 2 else count)
    if optimizer == "muon" and len(shape) == 2:  # one momentum
        return 4 * count
    if optimizer in ("sgd", "lion"):
        return 4 * count
    if optimizer.endswith("_8bit"):  # each average: a byte for each number, and the largest of each 256
        averages = 1 if optimizer == "lion_8bit" else 2
        return averages * (4 * count if count < 4096 else count + 4 * math.ceil(count / 256))
    return 4 * (2 * count + 1)  # two averages and a count of steps


#: Bytes of the 256 values that the 8 bits of an average stand for: once for all weights, and not in a prediction.
TABLES = {"adamw_8bit": 2 * 4 * 256, "lion_8bit": 4 * 256}


@pytest.mark.parametrize(
    "optimizer",
    ["adamw", "adam", "sgd", "adafactor", "muon", "lion", *(pytest.param(name, marks=EIGHT_BITS) for name in TABLES)],
)
def test_optimizer_states_equal_those_counted_by_hand(tmp_path: Path, optimizer: str) -> None:
    width = 48 if optimizer in TABLES else 24
    made = trace(zoo("Mlp", args={"width": width, "depth": 1}, training__optimizer=optimizer), tmp_path)
    shapes = [(width, 3), (width,), (width,), (width,), (4 * width, width), (4 * width,), (width, 4 * width), (width,)]
    shapes += [(3, width), (3,)]
    assert made["parameters"]["count"] == sum(map(math.prod, shapes))
    assert total(made, kind="optimizer") == (sum(states_by_hand(shape, optimizer) for shape in shapes), 0)


REAL_STATES = """
import json, sys
import torch
sys.path[:0] = ["."]
from ratc_runtime.engine.optimizer import make_optimizer
from ratc_runtime.models.build import build_model
from ratc_runtime.trace.request import read
made = read(json.load(sys.stdin))
model = build_model(made.lock)
optimizer = make_optimizer(model, made.lock)
for parameter in model.parameters():
    parameter.grad = torch.randn_like(parameter)
optimizer.step()
values = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
print(sum({one.untyped_storage()._cdata: one.untyped_storage().nbytes() for one in values}.values()))
"""


@pytest.mark.parametrize("optimizer", ["lion", *(pytest.param(name, marks=EIGHT_BITS) for name in TABLES)])
def test_predicted_optimizer_states_equal_the_real_ones(tmp_path: Path, optimizer: str) -> None:
    """Of a model with an embedding, whose states stay in fp32, and a weight whose last block of 256 is not full."""
    sizes = {"n_embd": 60, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 101}
    content = zoo("LanguageModel", args={"kind": "gpt2", "tokens": 16, **sizes}, training__optimizer=optimizer)
    done = run(["-c", REAL_STATES], content)
    assert done.returncode == 0, done.stderr
    assert total(trace(content, tmp_path), kind="optimizer") == (int(done.stdout) - TABLES.get(optimizer, 0), 0)


def test_a_deepspeed_trace_has_half_precision_weights_and_no_optimizer(tmp_path: Path) -> None:
    made = trace(request(engine="deepspeed", training__precision="bf16"), tmp_path)
    assert made["parameters"]["bytes"] == 2 * made["parameters"]["count"]
    assert total(made, kind="optimizer") == (0, 0)
    assert total(made, phase="optimizer") == (0, 0)
    assert total(made, kind="gradient")[0] <= 2 * made["parameters"]["bytes"]


def test_with_accumulation_gradients_stay_allocated(tmp_path: Path) -> None:
    one, two = (trace(request(accumulation=number), tmp_path) for number in (1, 2))
    assert replay(two, 2)[0] > replay(one, 2)[0]
    assert total(two, phase="input")[1] == 2 * total(one, phase="input")[1]


def test_scales_add_memory_and_activation_checkpointing_saves_it(tmp_path: Path) -> None:
    plain = request(model__args={"feature_dims": 16, "num_blocks": 2, "num_heads": 2, "iters": 1})
    scales = request(model={**plain["model"], "multi_scale": True}, data__scales=[1.0, 0.5])
    recomputed = request(model=plain["model"], training__activation_checkpointing=True)
    first, second, third = traces([plain, scales, recomputed], tmp_path)
    assert total(second, phase="input")[1] == total(first, phase="input")[1] + 2 * 4 * 3 * 16 * 16
    kept = [total(made, phase="forward", kind="activation")[1] for made in (first, third)]
    assert kept[1] < 0.7 * kept[0]


def test_inplace_layer_between_recomputed_blocks_is_named(tmp_path: Path) -> None:
    found = failure(zoo("UNet", training__activation_checkpointing=True), tmp_path)
    assert found["code"] == "R316"
    assert found["message"] == "calling the model failed: a layer overwrites a tensor that the backward pass needs"
    assert "inplace=True" in found["help"]


def test_the_tracer_runs_as_a_command(tmp_path: Path) -> None:
    """Most tests here share one import of torch; this starts an interpreter as a user would."""
    output = tmp_path / "trace.json"
    content = zoo("Mlp", args={"width": 64, "depth": 1})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tracing.RUNTIME), str(tracing.MODELS)])}
    command = [sys.executable, "-m", "ratc_runtime.trace", str(output)]
    done = subprocess.run(command, input=json.dumps(content), env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json.loads(output.read_text()) == trace(content, tmp_path)


def test_simultaneous_frees_are_sorted_into_one_order() -> None:
    """A hash table of addresses frees in another order in each process."""
    from ratc_runtime.trace.match import in_order

    steps, found = [0, 6], []
    for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        made = [(number, True) for number in range(3)]
        freed = [(number, False) for number in order]
        events = [*made, *freed, (3, True), (4, True), (4, False), (5, True), (3, False)]
        found.append(in_order(events, steps))
        assert sorted(found[-1]) == sorted(events)
    assert found[0] == found[1] == found[2]
    assert found[0][3:6] == [(0, False), (1, False), (2, False)]
    assert found[0][-3:] == [(4, False), (5, True), (3, False)]


def custom(**data: Any) -> dict[str, Any]:
    """A custom task of token ids in mappings."""
    model = {"name": "zoo:Reader", "multi_scale": False, "args": {}}
    made = request(model=model, training__loss={"name": "zoo:token_loss", "args": {}})
    return {**made, "task_type": "custom", "data": {**made["data"], **data}}


def test_a_custom_task_is_traced_with_the_example_of_its_data_set(tmp_path: Path) -> None:
    made = trace(custom(dataset="zoo:Words", args={"length": 16}), tmp_path)
    # Ids, mask and labels of 16 tokens, in int64, in each of the two steps.
    assert total(made, phase="input") == (0, 2 * 3 * 16 * 8)
    assert made["parameters"]["count"] == 50 * 8 + 8 * 50 + 50
    # The logits of a sample, and nothing of the lock's images.
    sizes = {event[2] for event in allocations(made, phase="forward")}
    assert 16 * 50 * 4 in sizes


def test_a_custom_task_without_an_example_is_refused_with_help(tmp_path: Path) -> None:
    found = failure(custom(dataset="zoo:NoExample", args={}), tmp_path)
    assert "give zoo:NoExample a static method example" in json.dumps(found)
    assert found["key"] == "data.dataset"


def test_an_example_that_is_no_sample_is_refused_at_the_data_set(tmp_path: Path) -> None:
    found = failure(custom(dataset="hostile:Inputs", args={}), tmp_path)
    assert (found["code"], found["key"]) == ("R316", "data.dataset")
    assert "a pair of them, not a dict with image" in found["message"]
