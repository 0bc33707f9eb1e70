"""The global batch is exact, or refused with a suggestion that resolves."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ratc import compiler
from ratc.compiler import File, Inputs
from ratc.diagnostics import Diagnostic
from ratc.yaml.write import mapping
from tests.effort import examples

sizes = st.none() | st.integers(1, 96) | st.sampled_from([128, 500, 512, 1000, 4096])


def batch(target: int | None, micro: int | None, accumulation: int | None, gpus: int, nodes: int = 1):
    """The plan of a run of these sizes, and what is said."""
    training = {"target_batch_size": target, "batch_size": micro, "gradient_accumulation_steps": accumulation}
    spec = {
        "experiment_name": "demo",
        "data": {"data_dir": "d"},
        "training": {key: value for key, value in training.items() if value is not None},
        "resources": {"gpu": "h100", "num_gpus": gpus, "nodes": nodes, "cpus": 64},
    }
    analysed, found = compiler.analyse(Inputs(File("spec.yaml", mapping(spec).encode())))
    assert analysed, found
    return compiler.plan(analysed, None, None)


def suggestions(diagnostic: Diagnostic) -> list[tuple[str, int]]:
    """What the help of an R304 names, as pairs of what to change and to what."""
    named = []
    for part in "".join(diagnostic.helps).removeprefix("use ").split(", or ") if diagnostic.helps else ():
        if part.startswith("`"):
            named.append(("micro", int(part.strip("`").removeprefix("batch_size: "))))
        elif "GPU" in part:
            named.append(("gpus", int(part.split()[0])))
        else:
            named += [("target", int(number)) for number in part.split(" or ")]
    return named


@settings(max_examples=examples(1000))
@given(sizes, sizes, st.none() | st.integers(1, 12), st.integers(1, 16), st.sampled_from([1, 1, 2, 4]))
@example(32, 2, 2, 4, 1)
@example(500, None, None, 64, 1)
def test_global_batch_is_exact_or_refused_with_a_valid_suggestion(target, micro, accumulation, per_node, nodes):
    world = per_node * nodes
    plan, found = batch(target, micro, accumulation, world, nodes)
    if plan:
        got = {key: plan.values[f"training.{key}"].value for key in ("global_batch_size", "micro_batch_size")}
        steps = plan.values["training.gradient_accumulation_steps"].value
        assert got["global_batch_size"] == got["micro_batch_size"] * steps * world
        assert target in (None, got["global_batch_size"])
        assert micro in (None, got["micro_batch_size"])
        assert accumulation in (None, steps)
        return
    (refusal,) = found
    assert refusal.code == "R304"
    given_sizes = {"target": target, "micro": micro, "accumulation": accumulation, "gpus": world, "nodes": nodes}
    named = suggestions(refusal)
    assert any(what == "target" for what, _ in named)
    for what, number in named:
        if what == "gpus" and nodes > 1:
            continue  # the number of nodes may have to follow
        assert number != given_sizes[what], "what was refused is not a way out"
        better, again = batch(**{**given_sizes, what: number})
        assert better, (named, again)


@pytest.mark.parametrize(
    ("target", "micro", "accumulation", "gpus"),
    [
        (999_999_999, 1_000_000_000, None, 1),
        (999_999_937, None, None, 999_999_936),
        (999_999_937, None, 2, 999_999_936),
        (7, 2, None, 1_000_000_000),
        (None, 1_000_000_000, 1_000_000_000, 1_000_000_000),
        (1_000_000_000, 7, None, 1),
        (5, 1_000_000_000, 1_000_000_000, 1),
    ],
)
def test_huge_sizes_resolve_or_are_refused_with_usable_suggestions(target, micro, accumulation, gpus):
    plan, found = batch(target, micro, accumulation, gpus)
    if plan:
        assert plan.values["training.global_batch_size"].value < 2**63, "the lock can hold it"
    else:
        for what, number in suggestions(found[0]):
            assert 1 <= number <= 1_000_000_000, f"{what} could never be that"
