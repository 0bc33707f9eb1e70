"""Traced recurrent layers against cuDNN on an H200 (torch 2.11, cuDNN 9.19, 26 November 2026)."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from ratc.memory.compose import compose
from ratc.memory.estimate import replay
from ratc.memory.trace import parse
from ratc.memory.zero import Strategy, layout
from tests.helpers.tracing import MODELS, zoo

pytestmark = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the runtime extra")

MIB = 2**20
# mode, inputs, hidden, layers, directions, steps, batch, type, dropout; peak of forward, what it keeps, its output, and
# peak of backward beyond what was there, in bytes. The module's weights have the type, the input is batch-first.
MEASURED = [
    ("lstm", 256, 1024, 2, 1, 384, 32, "bfloat16", False, 480019456, 329810432, 25165824, 184320512),
    ("lstm", 256, 1024, 2, 1, 384, 32, "float32", True, 940573696, 606601728, 50331648, 402194944),
    ("lstm", 256, 1024, 2, 1, 384, 96, "bfloat16", True, 1377601024, 939557376, 75497472, 485786624),
    ("lstm", 256, 1024, 2, 1, 384, 96, "float16", False, 1270089216, 907543040, 75497472, 410289152),
    ("lstm", 256, 1024, 2, 1, 384, 96, "float32", False, 2523399680, 1815085568, 150994944, 803800064),
    ("lstm", 256, 512, 3, 2, 800, 64, "bfloat16", False, 2793457152, 1920516608, 104857600, 933282816),
    ("lstm", 256, 512, 3, 2, 800, 64, "float32", True, 5500830720, 3805282304, 209715200, 1814135808),
    ("lstm", 80, 256, 1, 1, 100, 16, "float32", False, 29041664, 9896448, 1638400, 21107200),
    ("lstm", 80, 256, 1, 1, 100, 16, "float16", True, 19687936, 4948480, 819200, 15720448),
    ("lstm", 512, 512, 2, 2, 200, 32, "float16", True, 321192448, 159449600, 13107200, 189825024),
    ("lstm", 512, 512, 2, 2, 200, 32, "float32", False, 603980800, 315621888, 26214400, 344523264),
    ("lstm", 128, 128, 2, 1, 1000, 8, "bfloat16", True, 54982656, 25249280, 2048000, 32984064),
    ("lstm", 128, 128, 2, 1, 1000, 8, "float32", True, 165509120, 49313280, 4096000, 121381376),
    ("gru", 256, 1024, 2, 1, 384, 32, "float16", False, 486409216, 352584192, 25165824, 160850432),
    ("gru", 256, 1024, 2, 1, 384, 96, "bfloat16", False, 1405249024, 1078223360, 75497472, 367158272),
    ("gru", 256, 1024, 2, 1, 384, 96, "float32", True, 2861303296, 2120221184, 150994944, 821347328),
    ("gru", 256, 512, 3, 2, 800, 64, "float16", True, 3013477888, 2229010944, 104857600, 836146176),
    ("gru", 80, 256, 1, 1, 100, 16, "float32", False, 29094912, 11502080, 1638400, 19175936),
    ("gru", 80, 256, 1, 1, 100, 16, "bfloat16", True, 19824640, 6270464, 819200, 14345728),
    ("gru", 512, 512, 2, 2, 200, 32, "bfloat16", True, 349660160, 201155072, 13107200, 171074048),
    ("gru", 128, 128, 2, 1, 1000, 8, "bfloat16", False, 58654720, 29076992, 2048000, 32226816),
    ("gru", 128, 128, 2, 1, 1000, 8, "float16", True, 91060224, 28808704, 2048000, 64900608),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _models_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(MODELS))


def trace(content: Any) -> dict[str, Any]:
    """Return a trace, recorded by children of this process: without another import of torch."""
    from ratc_runtime.trace.isolated import record_both
    from ratc_runtime.trace.match import match
    from ratc_runtime.trace.request import read

    request = read(content)
    return match(*record_both(request), request.content, "")


def test_tracing_works_after_multithreaded_computation() -> None:
    """The children of one that has would wait for OpenMP's threads, which it has and they have not."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.zeros(1 << 20).add_(1)
        assert layer(image_size=(64, 256), hidden=512)["events"]
    finally:
        torch.set_num_threads(before)


def rounded(size: int) -> int:
    return -(-size // 512) * 512


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: "-".join(str(part) for part in row[:9]))
def test_cudnn_sizes_equal_the_measured_ones(row: tuple[Any, ...]) -> None:
    import torch
    from ratc_runtime.trace.recurrent import Shape

    mode, inputs, hidden, layers, directions, steps, batch, name, dropout, peak, kept, output, backward = row
    dtype = getattr(torch, name)
    element, rows = dtype.itemsize, steps * batch
    shape = Shape(
        mode, inputs, hidden, 0, layers, directions, steps, rows, batch, element, dropout, packed=False, dtype=dtype
    )
    state, sequence = rounded(layers * directions * batch * hidden * element), rounded(rows * inputs * element)
    states = (4 if mode == "lstm" else 2) * state
    buffer = rounded(shape.buffer * element)
    # Weights in bfloat16 are not flattened beforehand; the rest holds reserve, states, output.
    keeps = rounded(shape.reserve_bytes) + output + states + (buffer if name == "bfloat16" else 0)
    takes = keeps + rounded(shape.workspace_bytes()) + sequence
    gives = states + 2 * sequence + rounded(shape.workspace_bytes(forward=False)) + buffer
    # A block of the caching allocator can hold up to 1 MiB more than was asked for: one for reserve, one for workspace.
    assert keeps <= kept < keeps + 2 * MIB
    assert -MIB // 4 < peak - takes < 2 * MIB + 1024
    assert -MIB // 4 < backward - gives < 2 * MIB or backward < gives <= backward + buffer


def peaks(made: dict[str, Any], micro_batch: int) -> tuple[int, int]:
    parsed = parse(made)
    program = compose(parsed, layout(parsed, Strategy()))
    found = replay(program, micro_batch)
    return found.peak_allocated_bytes, found.peak_reserved_bytes


def test_peaks_of_an_lstm_step_equal_the_measured_ones() -> None:
    """`lstm, bf16` of benchmarks/memory/gpu.py, at both micro-batches: peaks of allocated and reserved bytes."""
    content = zoo(
        "Lstm",
        args={"width": 256, "hidden": 1024},
        data__image_size=[128, 256],
        training__precision="bf16",
        compute_capability="9.0",
    )
    made = trace(content)
    for micro_batch, allocated, reserved in ((96, 1855267840, 1952448512), (32, 826909696, 1065353216)):
        found = peaks(made, micro_batch)
        assert found[0] == pytest.approx(allocated, rel=1e-4)
        assert found[1] == pytest.approx(reserved, rel=1e-3)


def layer(model: str = "Layer", image_size: tuple[int, int] = (8, 16), **arguments: Any) -> Any:
    changes = arguments.pop("changes", {})
    arguments = {"kind": "lstm", "width": image_size[1], "hidden": 32, **arguments}
    return trace(zoo(f"recurrent_models:{model}", args=arguments, data__image_size=list(image_size), **changes))


def reserve(made: dict[str, Any]) -> list[float]:
    """Bytes a sample of what a recurrent layer's forward keeps beside tensors of known shape: the largest first."""
    return sorted(
        (
            event[2]
            for event in made["events"]
            if len(event) == 6
            and made["modules"][event[4]] == "layer"
            and made["kinds"][event[5]] == "activation"
            and made["phases"][event[3]] == "forward"
        ),
        reverse=True,
    )


UPPER_BOUND = pytest.mark.xfail(reason="known lengths count as the longest possible: an upper bound", strict=False)


def test_a_gru_over_800_steps_is_traced_as_few_events() -> None:
    made = layer(kind="gru", image_size=(267, 64), hidden=256, layers=2)
    assert len(made["events"]) < 400
    assert reserve(made)[0] == 801 * 256 * 4 * 13


@pytest.mark.parametrize(
    ("arguments", "units"),
    [
        ({"kind": "lstm"}, 5),
        ({"kind": "lstm", "layers": 3}, 17),
        ({"kind": "lstm", "bidirectional": True, "bias": False}, 10),
        ({"kind": "gru", "layers": 2, "bidirectional": True}, 26),
        ({"kind": "rnn"}, 2),
        ({"kind": "rnn", "nonlinearity": "relu"}, 2),
        ({"kind": "lstm", "proj_size": 16}, 6),
        pytest.param({"kind": "lstm", "packed": "sorted"}, 2.5, marks=UPPER_BOUND),
        pytest.param({"kind": "gru", "packed": "unsorted"}, 3, marks=UPPER_BOUND),
        ({"kind": "lstm", "packed": "unknown"}, 5),
    ],
    ids=str,
)
def test_the_reserve_space_for_backward_has_the_size_of_cudnn(arguments: dict[str, Any], units: float) -> None:
    """In numbers a hidden unit and step; sequences of half the length keep half, unknown lengths count as whole."""
    steps, hidden = 3 * 8, 32
    assert reserve(layer(**arguments))[0] == units * steps * hidden * 4


def test_dropout_reserves_one_bit_per_value_and_a_permanent_state() -> None:
    arguments = {"layers": 2, "changes": {"compute_capability": "9.0"}}
    plain = layer(**arguments)
    made = layer(dropout=0.1, **arguments)
    assert reserve(made)[0] - reserve(plain)[0] == 24 * 32 / 8
    states = [event[0] for event in made["events"] if len(event) == 6 and event[1] == 132 * 49152]
    assert len(states) == 1
    assert [states[0]] not in made["events"]


def test_weights_and_gradients_are_flattened_into_one_buffer_each() -> None:
    made = layer(layers=2, bidirectional=True)
    kinds, modules = made["kinds"], made["modules"]
    whole = sum(2 * 4 * 32 * (given + 32 + 2) for given in (16, 64)) * 4

    def sizes(kind: str) -> list[float]:
        return [e[1] for e in made["events"] if len(e) == 6 and (kinds[e[5]], modules[e[4]]) == (kind, "layer")]

    assert sizes("parameter") == [whole]
    assert sizes("gradient") == [whole, whole]  # of two steps
    build = made["events"][: made["steps"][0]]
    assert sum(e[1] for e in build if len(e) == 6 and kinds[e[5]] == "temporary") == whole  # before they were flattened


def test_autocast_copies_the_weights_into_a_buffer_at_each_call() -> None:
    once = layer(changes={"training__precision": "bf16"})
    twice = layer("Reused", changes={"training__precision": "bf16"})
    whole = 4 * 32 * (16 + 32 + 2) * 2

    def count(made: dict[str, Any]) -> int:
        return sum(len(e) == 6 and e[1:3] == [whole, 0] and made["phases"][e[3]] == "forward" for e in made["events"])

    assert (count(once), count(twice)) == (2, 4)  # two steps


def test_a_frozen_layer_reserves_nothing() -> None:
    made = layer("Frozen", hidden=64)
    assert not reserve(made)


def test_without_cudnn_a_layer_runs_step_by_step() -> None:
    fused, single = layer(hidden=32), layer("WithoutCudnn", hidden=32)
    assert len(single["events"]) > 3 * len(fused["events"])


def test_cpu_semantics_do_not_use_cudnn() -> None:
    made = layer("WithoutCudnn", changes={"semantics": "cpu"})
    assert 5 * 24 * 32 * 4 not in [event[2] for event in made["events"] if len(event) == 6]


def test_under_deepspeed_weights_are_compacted_at_each_call() -> None:
    made = layer(changes={"engine": "deepspeed"})
    whole = 4 * 32 * (16 + 32 + 2) * 4
    found = [e for e in made["events"] if len(e) == 6 and e[1:3] == [whole, 0] and made["phases"][e[3]] == "forward"]
    assert len(found) == 2


def test_backward_through_a_layer_in_evaluation_mode_fails() -> None:
    from ratc_runtime.trace.failure import TraceError

    with pytest.raises(TraceError) as met:
        layer("Evaluating")
    assert "cudnn RNN backward" in met.value.failure.message
