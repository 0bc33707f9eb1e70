"""The scores of detection equal COCO's evaluation for any distribution of samples over ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ratc_runtime.distributed.world import World
from ratc_runtime.tasks.detection.boxes import to_centres
from ratc_runtime.tasks.detection.metrics import AveragePrecision

ALONE = World(0, 1, torch.device("cpu"))


def some(samples: int, queries: int, seed: int, counts: tuple[int, ...]) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """Random outputs of two layers and three classes, and targets with `counts` objects."""
    make = torch.Generator().manual_seed(seed)

    def boxes(*shape: int) -> torch.Tensor:
        low = torch.rand(*shape, 2, generator=make) * 0.6
        return to_centres(torch.cat([low, low + 0.05 + torch.rand(*shape, 2, generator=make) * 0.35], dim=-1))

    output = {"logits": torch.randn(samples, 2, queries, 3, generator=make), "boxes": boxes(samples, 2, queries)}
    targets = [
        {
            "boxes": boxes(count),
            "labels": torch.randint(3, (count,), generator=make),
            "crowd_boxes": torch.zeros(0, 4),
            "crowd_labels": torch.zeros(0, dtype=torch.int64),
        }
        for count in counts
    ]
    return output, targets


def perfect(targets: list[Any]) -> dict[str, torch.Tensor]:
    """Outputs that are the truth."""
    most = max(len(target["labels"]) for target in targets)
    logits, boxes = torch.full((len(targets), 1, most, 3), -9.0), torch.full((len(targets), 1, most, 4), 0.5)
    for sample, target in enumerate(targets):
        for query, (label, box) in enumerate(zip(target["labels"], target["boxes"], strict=True)):
            logits[sample, 0, query, label], boxes[sample, 0, query] = 4.0, box
    return {"logits": logits, "boxes": boxes}


def test_perfect_predictions_score_one_on_any_distribution_over_ranks() -> None:
    names = ["circle", "square", "triangle"]
    output, targets = some(6, 8, 3, (3, 1, 4, 2, 0, 2))
    scorer = AveragePrecision(names)
    scorer.add(perfect(targets), targets)
    best = scorer.scores(ALONE)
    assert best == pytest.approx({"map": 1, "map_50": 1, "map_75": 1, **{f"map/{name}": 1 for name in names}})
    whole, reversed_ = AveragePrecision(names), AveragePrecision(names)
    whole.add(output, targets)
    for n in reversed(range(6)):
        reversed_.add({key: value[n : n + 1] for key, value in output.items()}, targets[n : n + 1])
    assert whole.scores(ALONE) == reversed_.scores(ALONE)
    assert whole.scores(ALONE)["map"] < 0.5
    nothing = AveragePrecision(names)
    nothing.add({key: value[4:5] for key, value in output.items()}, targets[4:5])
    assert np.isnan(nothing.scores(ALONE)["map"])


def test_detections_inside_a_crowd_are_ignored() -> None:
    _, (target,) = some(1, 4, 8, (2,))
    output = perfect([target])
    extra = torch.tensor([0.2, 0.8, 0.1, 0.1])
    output["boxes"] = torch.cat([output["boxes"], extra.expand(1, 1, 1, 4)], dim=2)
    surest = torch.full((1, 1, 1, 3), -9.0)
    surest[..., target["labels"][0]] = 9.0  # surer than the true ones
    output["logits"] = torch.cat([output["logits"], surest], dim=2)

    def score(one: Any) -> float:
        scorer = AveragePrecision(["a", "b", "c"])
        scorer.add(output, [one])
        return scorer.scores(ALONE)["map"]

    crowd = {**target, "crowd_boxes": torch.tensor([[0.2, 0.8, 0.3, 0.3]]), "crowd_labels": target["labels"][:1]}
    assert score(target) < 1
    assert score(crowd) == pytest.approx(1)
