"""The choice of micro-batch and ZeRO stage, and the suggestions if nothing fits."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratc.memory.allocators import choose, searchers
from ratc.memory.choose import Searcher, Step, Untraceable, Variant, describe, in_order, leanest
from ratc.memory.terms import Device
from ratc.memory.zero import Strategy
from tests.effort import examples
from tests.helpers.made_traces import MIB, Pair, pair, trace

GIB = 1 << 30
SMALL, LARGE = Device("small", 8 * GIB, "8.0"), Device("large", 80 * GIB, "8.0")
FP32 = Variant("fp32", image_size=(256, 256))


def searcher(share=64, **what):
    return Searcher({FP32: pair(**what)}, share)


def test_largest_fitting_divisor_is_chosen():
    search = searcher(60, activation=60 * MIB)
    found = search.choose(FP32, Strategy(), SMALL)
    assert found.estimate.fits
    assert 60 % found.estimate.micro_batch == 0
    assert found.accumulation * found.estimate.micro_batch == 60
    assert not found.next_larger.fits
    assert found.next_larger.micro_batch == min(n for n in (30, 60, 20, 15, 12, 10) if n > found.estimate.micro_batch)
    assert sum(found.breakdown.by_kind.values()) == found.estimate.peak_allocated_bytes


def test_micro_batch_of_the_whole_share_needs_no_accumulation():
    found = searcher(64).choose(FP32, Strategy(), LARGE)
    assert (found.estimate.micro_batch, found.accumulation, found.next_larger) == (64, 1, None)


def test_step_without_accumulation_is_predicted_from_its_own_trace():
    light, heavy = trace(), trace(activation=10_000 * MIB, accumulating=True)
    found = Searcher({FP32: Pair(light, heavy)}, 8).choose(FP32, Strategy(), SMALL)
    assert found.accumulation == 1
    assert Searcher({FP32: Pair(heavy, light)}, 8).choose(FP32, Strategy(), SMALL).accumulation == 2


@dataclass
class Noting:
    """Traces that note what is asked of them: (several micro-batches, one sample)."""

    made: Pair
    asked: set[tuple[bool, bool]] = field(default_factory=set)

    def trace(self, accumulating, one_sample):
        self.asked.add((accumulating, one_sample))
        return self.made.trace(accumulating, one_sample)


@pytest.mark.parametrize(
    ("share", "activation", "micro_batch", "asked"),
    [
        (8, 2, 8, {(False, False)}),
        (8, 600, 2, {(False, False), (True, False)}),
        (8, 1200, 1, {(False, False), (True, False), (True, True)}),
        (1, 2, 1, {(False, True)}),
    ],
)
def test_one_sample_trace_is_requested_only_if_needed(share, activation, micro_batch, asked):
    traces = Noting(pair(activation=activation * MIB))
    choice = Searcher({FP32: traces}, share).choose(FP32, Strategy(), SMALL)
    assert (choice.estimate.micro_batch, traces.asked) == (micro_batch, asked)


@given(share=st.integers(1, 400), activation=st.integers(1, 600))
@settings(max_examples=examples(60), deadline=None)
def test_choice_equals_an_exhaustive_search_over_divisors(share, activation):
    search = searcher(share, activation=activation * MIB)
    fitting = [n for n in range(1, share + 1) if share % n == 0 and search.estimate(FP32, Strategy(), SMALL, n).fits]
    found = search.choose(FP32, Strategy(), SMALL)
    assert (found.estimate.micro_batch if found else None) == max(fitting, default=None)


def test_share_below_one_sample_raises_a_value_error():
    with pytest.raises(ValueError, match="share of 0"):
        Searcher({}, 0)


def large_model_states(width=2):
    """Much state, little activation: what ZeRO is for. 4 x 256 MiB of weights in 16 bits are 512 Mi parameters."""
    return {"weight": 256 * MIB, "activation": 200 * MIB, "temporary": MIB, "optimizer": False, "width": width}


@pytest.mark.parametrize("gib", [6, 8, 10, 12, 16, 24])
def test_lowest_zero_stage_without_more_accumulation_is_chosen(gib):
    wanted = replace(FP32, precision="bf16", engine="deepspeed")
    search = Searcher({wanted: pair(**large_model_states())}, 32)
    strategy, card = Strategy("deepspeed", 8), Device("card", gib * GIB, "8.0")
    stages = (0, 1, 2, 3)
    by_stage = {stage: search.choose(wanted, replace(strategy, zero_stage=stage), card) for stage in stages}
    least = min(choice.accumulation for choice in by_stage.values() if choice)
    lowest = min(stage for stage, choice in by_stage.items() if choice and choice.accumulation == least)
    found = search.choose_stage(wanted, strategy, card, stages)
    assert found.estimate.strategy.zero_stage == lowest
    assert found == by_stage[lowest]


def test_no_zero_stage_is_predicted_after_one_without_accumulation(monkeypatch):
    wanted = replace(FP32, precision="bf16", engine="deepspeed")
    search = Searcher({wanted: pair(**large_model_states())}, 32)
    predicted: list[int] = []
    predictor = search.predictor
    monkeypatch.setattr(
        search,
        "predictor",
        lambda variant, strategy, micro: predicted.append(strategy.zero_stage) or predictor(variant, strategy, micro),
    )
    found = search.choose_stage(wanted, Strategy("deepspeed", 8), LARGE, (0, 1, 2, 3))
    assert (found.estimate.strategy.zero_stage, found.accumulation) == (0, 1)
    assert set(predicted) == {0}


def test_zero_stage_is_suggested_if_the_model_states_do_not_fit():
    wanted = replace(FP32, precision="bf16", engine="deepspeed")
    search = Searcher({wanted: pair(**large_model_states())}, 8)
    strategy, card = Strategy("deepspeed", 8), Device("card", 8 * GIB, "8.0")
    assert search.choose(wanted, strategy, card) is None
    assert search.choose_stage(wanted, strategy, card, (0, 1, 2, 3)).estimate.strategy.zero_stage >= 1
    told = search.does_not_fit(wanted, strategy, card, stages=(0, 1, 2, 3))
    assert told.alternatives[0].change == "`zero_stage: 1`"
    assert told.alternatives[0].choice.estimate.fits


def test_offloading_is_suggested_if_no_zero_stage_fits():
    wanted = replace(FP32, precision="bf16", engine="deepspeed")
    search = Searcher({wanted: pair(**large_model_states())}, 8)
    card = Device("card", 6 * GIB, "8.0")
    strategy = Strategy("deepspeed", 2, 3)
    assert search.choose(wanted, strategy, card) is None
    ways = search.does_not_fit(wanted, strategy, card, stages=(0, 1, 2, 3)).alternatives
    assert [way.change for way in ways] == ["`zero_stage: 3` with `offload_optimizer: true`"]
    assert ways[0].choice.estimate.host_bytes > 0


def library(factor=1.0):
    """8.6 GiB a sample in fp32 at 256 pixels; half in bf16, a quarter with checkpointing, by the area for images."""
    sample = 2200 * MIB * factor
    return {
        FP32: pair(activation=sample),
        replace(FP32, precision="bf16"): pair(activation=sample / 2),
        replace(FP32, activation_checkpointing=True): pair(activation=sample / 4),
        replace(FP32, image_size=(192, 192)): pair(activation=sample * 9 / 16),
        replace(FP32, image_size=(128, 128)): pair(activation=sample / 4),
        replace(FP32, precision="bf16", image_size=(128, 128)): pair(activation=sample / 8),
    }


def test_if_nothing_fits_the_result_has_the_need_and_suggestions():
    search = Searcher(library(), 8)
    assert search.choose(FP32, Strategy(), SMALL) is None
    cards = [LARGE, Device("middle", 16 * GIB, "8.0"), Device("other", 40 * GIB, "9.0"), SMALL]
    told = search.does_not_fit(FP32, Strategy(), SMALL, cards)
    assert not told.estimate.fits
    assert told.need_bytes > SMALL.memory_bytes
    assert [name for name, _ in told.breakdown.largest()] == ["layers.3", "layers.2", "layers.1"] or len(
        told.breakdown.largest()
    ) == 3
    changes = [way.change for way in told.alternatives]
    # One change each; of the image sizes the largest that does; of the cards those that are traced, smallest first.
    assert changes == [
        "`precision: bf16`",
        "`activation_checkpointing: true`",
        "`image_size: 192`",
        "card middle",
        "card large",
    ]
    for way in told.alternatives:
        assert way.choice.estimate.fits


@given(
    st.lists(st.tuples(st.integers(1, 200), st.integers(0, 200), st.integers(1, 8)), min_size=1, max_size=5),
    st.integers(0, 3),
)
@settings(max_examples=examples(50))
def test_leanest_step_is_that_of_an_exhaustive_search(sizes, stage):
    steps = [
        Step(
            searcher(8, activation=activation * MIB, temporary=temporary * MIB), FP32, Strategy(zero_stage=stage), micro
        )
        for activation, temporary, micro in sizes
    ]
    step, need = leanest(steps, SMALL)
    assert need == min(one.predictor.need(SMALL, one.micro_batch) for one in steps)
    assert need == step.predictor.need(SMALL, step.micro_batch)
    assert step.predictor.least_need(SMALL, step.micro_batch) <= need


def test_if_the_whole_share_needs_less_it_is_among_the_sizes():
    light, heavy = trace(), trace(activation=10_000 * MIB, accumulating=True)
    search = Searcher({FP32: Pair(light, heavy)}, 2)
    steps = [Step(search, FP32, Strategy(), micro) for micro in search.sizes()]
    assert leanest(steps, SMALL)[0].micro_batch == 2


def test_changes_that_do_not_make_it_fit_are_not_suggested():
    search = Searcher(library(factor=3.9), 8)
    changes = [way.change for way in search.does_not_fit(FP32, Strategy(), SMALL).alternatives]
    assert "`precision: bf16`" not in changes
    assert changes == []
    assert [way.change for way in Searcher(library(2.5), 8).does_not_fit(FP32, Strategy(), SMALL).alternatives] == [
        "`activation_checkpointing: true`",
        "`image_size: 128`",
    ]


def test_of_a_change_that_is_hopeless_without_accumulation_no_further_trace_is_made():
    traced = {wanted: Noting(made) for wanted, made in library(3.9).items()}
    assert Searcher(traced, 8).does_not_fit(FP32, Strategy(), SMALL).alternatives == ()
    asked = {wanted: traces.asked for wanted, traces in traced.items()}
    assert asked[replace(FP32, activation_checkpointing=True)] == {(False, False)}
    assert asked[replace(FP32, image_size=(128, 128))] == {(False, False)}


def test_untraceable_change_is_not_suggested():
    class Broken:
        def trace(self, accumulating, one_sample):
            raise Untraceable

    ways = (
        Searcher({**library(), replace(FP32, precision="bf16"): Broken()}, 8)
        .does_not_fit(FP32, Strategy(), SMALL)
        .alternatives
    )
    assert [way.change for way in ways] == ["`activation_checkpointing: true`", "`image_size: 192`"]
    with pytest.raises(Untraceable):
        Searcher({FP32: Broken()}, 8).choose(FP32, Strategy(), SMALL)


def variants_of_less_memory():
    """8.6 GiB a sample as asked for, half of it with chunked attention, a quarter with checkpointing, a tenth with
    both.
    """
    parts = {("full", False): 1, ("chunked", False): 1 / 2, ("full", True): 1 / 4, ("chunked", True): 1 / 10}
    return {
        replace(FP32, attention_memory=attention, activation_checkpointing=checkpointed): pair(
            activation=2200 * MIB * part, temporary=MIB
        )
        for (attention, checkpointed), part in parts.items()
    }


@pytest.mark.parametrize(
    ("gib", "attention", "checkpointed"),
    [(80, "full", False), (8, "chunked", False), (4, "full", True), (2.5, "chunked", True)],
)
def test_checkpointing_is_chosen_only_if_nothing_fits_without_it(gib, attention, checkpointed):
    card = Device("card", int(gib * GIB), "8.0")
    allowed = in_order(FP32, ("full", "chunked"), (False, True))
    taken = choose(searchers(variants_of_less_memory(), 1, "native"), allowed, Strategy(), card, (0,))
    used = taken.variant
    assert (used.attention_memory, used.activation_checkpointing) == (attention, checkpointed)
    assert taken.choice.estimate.fits
    for passed in allowed[: allowed.index(used)]:
        assert Searcher(variants_of_less_memory(), 1).choose(passed, Strategy(), card) is None


def test_variant_that_the_spec_does_not_allow_is_never_traced():
    class Forbidden(dict):
        def __getitem__(self, wanted):
            assert not wanted.activation_checkpointing, "nobody may trace this"
            return super().__getitem__(wanted)

    card = Device("card", 4 * GIB, "8.0")
    search = searchers(Forbidden(variants_of_less_memory()), 1, "native")
    assert choose(search, in_order(FP32, ("full", "chunked"), (False,)), Strategy(), card, (0,)) is None
    assert choose(search, [], Strategy(), card, (0,)) is None


def test_suggested_change_is_written_as_in_a_spec():
    assert describe(FP32, FP32) is None
    assert describe(FP32, replace(FP32, image_size=(128, 96))) == "`image_size: [128, 96]`"
    assert describe(FP32, replace(FP32, attention_memory="chunked")) == "`attention_memory: chunked`"
    assert describe(FP32, replace(FP32, precision="bf16", activation_checkpointing=True)) is None
    assert describe(FP32, replace(FP32, kernels="9.0")) is None


def test_larger_cards_reuse_the_replay_of_another_card(monkeypatch):
    """A second card with room asks for no replay of its own: the first never met its cap."""
    import ratc.memory.estimate as estimate

    done = []
    genuine = estimate.replay
    monkeypatch.setattr(estimate, "replay", lambda *args: done.append(args[2]) or genuine(*args))
    search = searcher(16)
    for size in (80, 60, 40):
        search.choose(FP32, Strategy(), Device(f"card {size}", size * GIB, "8.0"))
    assert len(done) == 1


def test_search_over_240_divisors_needs_at_most_10_replays(monkeypatch):
    """720,720 has 240 divisors; bisection over live bytes leaves a handful to replay, however many there are."""
    import ratc.memory.estimate as estimate

    done = []
    genuine = estimate.replay
    monkeypatch.setattr(estimate, "replay", lambda *args: done.append(args) or genuine(*args))
    found = searcher(720720).choose(FP32, Strategy(), LARGE)
    assert found.next_larger is not None
    assert len(done) <= 10
