"""The smallest set of blocks to recompute, compared with trying every set on its own trace of a real small model."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from ratc.memory.choose import Searcher, Variant
from ratc.memory.estimate import live_peak, replay
from ratc.memory.recomputation import Assumed
from ratc.memory.smallest_set import blocks, fitting
from ratc.memory.terms import Device
from ratc.memory.trace import Trace, parse
from ratc.memory.zero import Strategy
from tests.helpers import tracing
from tests.helpers.made_traces import Pair
from tests.helpers.tracing import zoo

PLAIN = Variant("fp32")
MICRO = 64

#: A model of each kind: equal blocks; blocks that differ in all; stages of which each halves the image.
MODELS: dict[str, dict[str, Any]] = {
    "vit": zoo("vit", args={"depth": 4}, data__image_size=[64, 64]),
    "resnet": zoo("resnet", args={"layers": (2, 1, 1, 1)}, data__image_size=[64, 64]),
    "uneven": zoo("Uneven", data__image_size=[32, 32]),
    "gpt-2": zoo(
        "LanguageModel",
        args={"kind": "gpt2", "tokens": 128, "n_embd": 64, "n_layer": 6, "n_head": 2, "vocab_size": 512},
    ),
}
#: Those whose every set is traced by itself. Of the others a few sets are, to compare with the traces put together.
EVERY_SET = ("uneven",)


def variant_of(names: tuple[str, ...]) -> Variant:
    return replace(PLAIN, activation_checkpointing=names) if names else PLAIN


def subsets(names: list[str]) -> Iterator[tuple[str, ...]]:
    for size in range(len(names) + 1):
        yield from combinations(names, size)


@functools.cache
def traced(name: str) -> dict[Variant, Trace]:
    """The traces of a model's step: the plain one, the one with every block, and those of some or all sets."""
    content = MODELS[name]
    with tempfile.TemporaryDirectory() as folder:
        return _traced(name, content, Path(folder))


def _traced(name: str, content: dict[str, Any], folder: Path) -> dict[Variant, Trace]:

    def request_with(which: Any) -> dict[str, Any]:
        return {**content, "training": {**content["training"], "activation_checkpointing": which}}

    plain, every = map(parse, tracing.traces([request_with(False), request_with(True)], folder))
    found = {PLAIN: plain, replace(PLAIN, activation_checkpointing=True): every}
    names = list(dict.fromkeys(span.name for span in plain.blocks))
    named = [(names[0],), (names[-1],), (names[0], names[2])]
    if name in EVERY_SET:
        named = [one for one in subsets(names) if one]
    made = tracing.traces([request_with(list(one)) for one in named], folder)
    found |= {variant_of(one): parse(trace) for one, trace in zip(named, made, strict=True)}
    return found


def library(found: Mapping[Variant, Trace]) -> dict[Variant, Pair]:
    return {variant: Pair(trace, trace) for variant, trace in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_composed_checkpointing_trace_needs_the_memory_of_a_real_one(name: str) -> None:
    """The bytes in use agree to a hundredth at any size, and those that the allocator reserves to a twentieth."""
    found = traced(name)
    assumed = Assumed(
        library({PLAIN: found[PLAIN], replace(PLAIN, activation_checkpointing=True): all_checkpointed(found)})
    )
    real = {variant: trace for variant, trace in found.items() if isinstance(variant.activation_checkpointing, tuple)}
    assert len(real) >= 3
    for variant, trace in real.items():
        made = assumed[variant].trace(False, False).program
        for micro in (2, MICRO, 512):
            assert live_peak(made, micro) == pytest.approx(live_peak(trace.program, micro), rel=0.01), variant
            ours, theirs = (replay(one, micro).peak_reserved_bytes for one in (made, trace.program))
            assert ours == pytest.approx(theirs, rel=0.05), variant


def all_checkpointed(found: Mapping[Variant, Trace]) -> Trace:
    return found[replace(PLAIN, activation_checkpointing=True)]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_smallest_set_has_the_size_found_by_exhaustive_search(name: str) -> None:
    found = traced(name)
    searcher = Searcher(library(found), MICRO)
    strategy = Strategy()
    candidates = blocks(searcher, PLAIN, strategy, MICRO, {})
    names = [block.name for block in candidates]
    assert 4 <= len(names) <= 8
    tried = searcher if name in EVERY_SET else Searcher(Assumed(library(found)), MICRO)
    predictors = {one: tried.predictor(variant_of(one), strategy, MICRO) for one in subsets(names)}
    # From the least cap at which any set fits to the one that the plain step needs.
    low = min(predictor.lowest(MICRO) for predictor in predictors.values())
    high = predictors[()].unbounded(MICRO).peak_reserved_bytes
    outside = Device("card", 0, "8.0")
    beside = -predictors[()].budget(outside)
    sizes = set()
    for part in range(13):
        cap = low + (high - low) * part // 12
        device = Device("card", int(cap / (1 - predictors[()].margin_of(outside)) * 1.008) + beside, "8.0")
        least = min((len(one) for one, each in predictors.items() if each.at(each.cap(device), MICRO)), default=None)
        if least == 0:
            continue
        taken = next(fitting(searcher, PLAIN, strategy, device, MICRO, candidates), None)
        assert (None if taken is None else len(taken)) == least, (part, taken)
        sizes.add(least)
    assert len(sizes - {None}) >= 2, "the budgets are all alike"
