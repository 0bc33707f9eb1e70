"""The summary of the differences between two locks."""

from __future__ import annotations

from ratc.scheduler import summary


def test_differences_list_changed_values_but_not_artifacts() -> None:
    old = summary.values("lock.yaml", "seed: 1\ndata: {scales: [1, 2]}\nartifacts: {a: 1}\n")
    new = summary.values("lock.yaml", "seed: 1\ndata: {scales: [1, 3]}\nartifacts: {a: 2}\nmodel: {depth: 2}\n")
    assert summary.differences(old, new) == ["data.scales: [1, 2] -> [1, 3]", "model.depth: nothing -> 2"]
    assert len(summary.differences({}, {f"k{number}": 1 for number in range(100)})) == 9
