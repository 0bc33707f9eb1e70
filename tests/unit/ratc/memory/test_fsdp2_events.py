"""FSDP2 block by block, for a model of equal layers that is counted on paper."""

from dataclasses import replace

import pytest

from ratc.memory.compose import compose
from ratc.memory.estimate import breakdown, live_peak, replay
from ratc.memory.zero import ShardedUnit, Strategy, layout
from tests.helpers.made_traces import MIB, trace

RANKS = 4
#: Layers of 4 MiB, each a unit; 2 MiB of activations a sample and layer, 3 MiB while one runs.
NAMES = {f"layers.{number}": "Layer" for number in range(4)}


def model(**what):
    return replace(trace(**what), classes=NAMES, wrap=("Layer",))


def fsdp2(shard="full", **more):
    return Strategy("fsdp2", RANKS, shard=shard, shards=more.pop("shards", RANKS), **more)


def composed(strategy, **what):
    made = model(**what)
    return compose(made, layout(made, strategy))


def bytes_between_steps(program):
    """Bytes by kind that live from one step to the next."""
    return breakdown(program, 1, len(program.ops) - 1).by_kind


def most_alive(program, name):
    """The most blocks of a name that are alive at once."""
    found = highest = 0
    for op in program.ops:
        block = op if op >= 0 else ~op
        if program.modules[program.module[block]] == f"({name})":
            found += 1 if op >= 0 else -1
            highest = max(highest, found)
    return highest


def test_fsdp2_units_are_the_modules_of_the_wrap_classes():
    units = layout(model(), fsdp2()).units
    assert set(units) == {ShardedUnit("", 0), *(ShardedUnit(name, 4 * MIB) for name in NAMES)}
    assert layout(model(), fsdp2(wrap=("Other",))).units == (ShardedUnit("", 16 * MIB),)


@pytest.mark.parametrize("shards", [2, 4])
def test_model_states_are_sharded_between_steps(shards):
    kinds = bytes_between_steps(composed(fsdp2(shards=shards)))
    assert kinds["parameter"] == 16 * MIB // shards
    assert kinds["optimizer"] == 2 * 16 * MIB // shards
    assert "gradient" not in kinds
    assert "bucket" not in kinds


def test_offloaded_shards_take_host_memory_only():
    made = model()
    kinds = bytes_between_steps(composed(fsdp2(offload_optimizer=True)))
    assert not {"parameter", "optimizer", "gradient"} & kinds.keys()
    assert layout(made, fsdp2(offload_optimizer=True)).host_bytes > 0


def test_at_most_two_units_are_all_gathered_at_once():
    program = composed(fsdp2())
    assert most_alive(program, "all-gathered unit") == 2
    assert most_alive(program, "gathered weights") == 1
    assert most_alive(program, "reduced unit") == 1


def test_sharding_of_gradients_only_keeps_the_gathered_weights():
    assert most_alive(composed(fsdp2("grads")), "gathered weights") == 4
    assert live_peak(composed(fsdp2("grads")), 1) > live_peak(composed(fsdp2()), 1)


def test_model_without_units_is_gathered_at_once():
    alone, units = composed(fsdp2(wrap=())), composed(fsdp2())
    assert most_alive(alone, "gathered weights") == 1
    assert live_peak(alone, 1) > live_peak(units, 1) + 8 * MIB


def test_gathering_in_bf16_takes_less_memory():
    assert live_peak(composed(fsdp2(precision="bf16", gathered="bf16")), 1) < live_peak(composed(fsdp2()), 1)


@pytest.mark.parametrize("shard", ["full", "grads"])
@pytest.mark.parametrize("accumulating", [False, True])
def test_composed_step_frees_what_it_allocates(shard, accumulating):
    program = composed(fsdp2(shard, accumulates=accumulating), accumulating=accumulating)
    alive = set()
    for op in program.ops:
        if op >= 0:
            assert op not in alive
            alive.add(op)
        else:
            alive.remove(~op)
    found = replay(program, 2)
    assert found.fits
    assert found.peak_reserved_bytes >= live_peak(program, 2)


def test_sharded_states_take_less_memory_than_whole_states():
    made = model()
    whole = compose(made, layout(made, Strategy("torch", RANKS)))
    assert live_peak(composed(fsdp2()), 1) < live_peak(whole, 1)
