"""The section `compression` of a spec: its values in the lock, and its errors."""

import pytest

from ratc import compiler, facts
from ratc.compiler import File, Inputs
from ratc.diagnostics import has_errors

SPEC = """\
experiment_name: demo
data: {{data_dir: data}}
training: {{batch_size: 8, epochs: {epochs}}}
compression: {{{words}}}
"""
MACHINE = facts.Machine(gpus=0, card=None, cpus=2, memory_bytes=None, source="this machine")


def resolved(words: str, epochs: int = 20):
    """The plan of a spec with this section, and what was found."""
    text = SPEC.format(words=words, epochs=epochs)
    settings, found = compiler.analyse(Inputs(File("spec.yaml", text.encode())))
    if settings is None:
        return None, found
    plan, more = compiler.plan(settings, None, MACHINE)
    return plan, (*found, *more)


@pytest.mark.parametrize(
    ("words", "epochs", "end"),
    [
        ("sparsity: 0.5, begin_epoch: 5", 20, 15),
        ("sparsity: 0.5, begin_epoch: 17", 20, 17),
        ("sparsity: 0.5, begin_epoch: 5, end_epoch: 19", 20, 19),
        ("sparsity: 0.5", 20, None),
        ("quantization: dynamic, aware: true", 20, None),
    ],
)
def test_end_epoch_of_pruning_is_given_or_derived(words, epochs, end):
    plan, found = resolved(words, epochs)
    assert plan is not None, found
    assert plan.values["compression.end_epoch"].value == end
    assert plan.values["compression.metric"].value == "dice"


def test_plan_without_the_compression_section_has_no_compression_values():
    text = SPEC.format(words="", epochs=2).replace("compression: {}\n", "")
    settings, _ = compiler.analyse(Inputs(File("spec.yaml", text.encode())))
    plan, _ = compiler.plan(settings, None, MACHINE)
    assert not [path for path in plan.values if path.startswith("compression")]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("sparsity: 0.5, metric: dise", "R225"),
        ("sparsity: 0.5, begin_epoch: 9, end_epoch: 8", "R351"),
        ("sparsity: 0.5, begin_epoch: 20", "R351"),
        ("sparsity: 0.5, end_epoch: 8", "R351"),
        ("begin_epoch: 5", "R352"),
        ("aware: true", "R352"),
    ],
)
def test_contradictory_compression_keys_are_refused_at_their_line(words, code):
    plan, found = resolved(words)
    assert plan is None
    assert has_errors(found)
    wrong = next(item for item in found if item.code == code)
    assert wrong.span is not None
    assert wrong.span.line == 4
