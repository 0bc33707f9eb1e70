"""The spec key that a scheduler's refusal is about."""

from __future__ import annotations

import pytest

from ratc.plan import Value, Values
from ratc.scheduler.dialect import Answer
from ratc.scheduler.refusal import refusal


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ("sbatch: error: Batch job submission failed: Invalid partition name specified", "partition"),
        ("sbatch: error: invalid partition specified: nope", "partition"),
        ("Invalid account or account/partition combination specified", "account"),
        ("Invalid qos specification", "qos"),
        ("Requested time limit is invalid (missing or exceeds some limit)", "walltime"),
        ("Memory required by task is not available", "memory"),
        ("sbatch: error: Memory specification can not be satisfied", "memory"),
        ("Node count specification invalid", "nodes"),
        ("More processors requested than permitted", "cpus"),
        ("Invalid generic resource (gres) specification", "num_gpus"),
        ("Invalid feature specification", "node_type"),
        ("Requested node configuration is not available", None),
        ("normal: No such queue. Job not submitted.", "queue"),
        ("RUNLIMIT: Cannot exceed queue's hard limit(s). Job not submitted.", "walltime"),
        ("MEMLIMIT: Cannot exceed queue's hard limit(s). Job not submitted.", "memory"),
        ("Too many processors requested. Job not submitted.", "cpus"),
    ],
)
def test_refusal_points_at_the_spec_key_that_it_is_about(words: str, key: str | None) -> None:
    from ratc.diagnostics import Source, Span

    queue = "queue" if key == "queue" else "partition"
    keys = ("account", "qos", "walltime", "memory", "nodes", "cpus", "num_gpus", "node_type", queue)
    source = Source("spec.yaml", "")
    spans = {name: Span(source, line, 1, line, 2) for line, name in enumerate(keys, 1)}
    given = Values({f"resources.{name}": Value("x", "spec", "", (), span) for name, span in spans.items()})
    assert refusal(Answer("sbatch", 1, "", words), given, False).span == (spans[key] if key else None)
    left_open = Values({path: Value(None, "default") for path in given})
    assert refusal(Answer("sbatch", 1, "", words), left_open, False).span is None
