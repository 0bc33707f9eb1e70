"""The assignment and the loss of detection against plain references."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from ratc_runtime.tasks.detection.boxes import generalized_iou, to_corners
from ratc_runtime.tasks.detection.losses import SetPrediction
from ratc_runtime.tasks.detection.matching import Costs, match

from tests.unit.ratc_runtime.tasks.detection.test_metrics import some


def plain_giou(a: list[float], b: list[float]) -> float:
    def area(box: list[float]) -> float:
        return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])

    overlap = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
    around = area([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])
    union = area(a) + area(b) - overlap
    return overlap / union - (around - union) / around


def test_generalized_iou_equals_its_definition_and_is_zero_for_points() -> None:
    boxes = to_corners(some(1, 40, 1, (40,))[1][0]["boxes"])
    found = generalized_iou(boxes[:20, None], boxes[None, 20:])
    for (i, one), (j, other) in itertools.product(enumerate(boxes[:20].tolist()), enumerate(boxes[20:].tolist())):
        assert float(found[i, j]) == pytest.approx(plain_giou(one, other), abs=1e-5)
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    assert float(generalized_iou(point, point)) == 0.0


def brute_force(cost: np.ndarray[Any, Any]) -> float:
    queries, objects = cost.shape
    if objects > queries:
        return brute_force(cost.T)
    return min(
        sum(cost[q, n] for n, q in enumerate(chosen)) for chosen in itertools.permutations(range(queries), objects)
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_assignment_has_the_lowest_cost(seed: int) -> None:
    output, targets = some(4, 5, seed, (3, 0, 5, 7))
    costs = Costs()
    found = match(output["logits"], output["boxes"], targets, costs)
    first = 0
    for sample, target in enumerate(targets):
        cost = costs.of(output["logits"][sample], output["boxes"][sample], target["labels"], target["boxes"]).numpy()
        for layer in range(2):
            here = (found.sample == sample) & (found.layer == layer)
            query, truth = found.query[here].numpy(), found.truth[here].numpy() - first
            assert len(query) == min(5, len(target["labels"]))
            assert len(set(query)) == len(query) == len(set(truth))
            if len(query):
                assert cost[layer, query, truth].sum() == pytest.approx(brute_force(cost[layer]), abs=1e-4)
        first += len(target["labels"])


def test_each_object_gets_the_requested_number_of_queries() -> None:
    """Two queries for each: as if every object were there twice."""
    output, targets = some(2, 7, 3, (2, 0))
    twice = [{**one, "boxes": one["boxes"].repeat(2, 1), "labels": one["labels"].repeat(2)} for one in targets]
    found = match(output["logits"], output["boxes"], targets, Costs(), [[2, 1], [2, 1]])
    doubled = match(output["logits"], output["boxes"], twice, Costs())
    first = found.layer == 0
    assert found.truth[first].bincount().tolist() == [2, 2]
    assert set(found.query[first].tolist()) == set(doubled.query[doubled.layer == 0].tolist())
    assert found.truth[~first].bincount().tolist() == [1, 1]
    assert not bool((found.sample == 1).any())


def plain_loss(output: dict[str, torch.Tensor], targets: list[Any], loss: SetPrediction, last: int) -> float:
    """The same sums, box by box and query by query; `last` is how many queries an object has in the last layer."""
    costs, whole, first = loss.costs, 0.0, 0
    most = [*[loss.repeats] * (output["logits"].shape[1] - 1), last]
    room = [output["logits"].shape[2] // max(1, len(target["labels"])) for target in targets]
    copies = [[max(1, min(one, free)) for one in most] for free in room]
    found = match(output["logits"], output["boxes"], targets, costs, copies)
    logits, boxes = output["logits"].double(), output["boxes"].double()
    samples, layers, queries, classes = logits.shape
    for sample, target in enumerate(targets):
        count = max(1, len(target["labels"]))
        for layer in range(layers):
            rows = torch.nonzero((found.sample == sample) & (found.layer == layer)).flatten().tolist()
            owner = {int(found.query[row]): int(found.truth[row]) - first for row in rows}
            total = 0.0
            for query, cls in itertools.product(range(queries), range(classes)):
                chance = float(logits[sample, layer, query, cls].sigmoid())
                yes = query in owner and int(target["labels"][owner[query]]) == cls
                right, alpha = (chance, costs.alpha) if yes else (1 - chance, 1 - costs.alpha)
                total += costs.classification * alpha * (1 - right) ** costs.gamma * -np.log(right)
            for query, truth in owner.items():
                one, other = boxes[sample, layer, query], target["boxes"][truth].double()
                total += costs.l1 * float((one - other).abs().sum())
                total += costs.giou * (1 - plain_giou(to_corners(one).tolist(), to_corners(other).tolist()))
            whole += total / count / copies[sample][layer] / layers / samples
        first += len(target["labels"])
    return whole


def test_the_loss_equals_its_definition_and_is_a_mean_over_parts() -> None:
    loss = SetPrediction()
    output, targets = some(4, 5, 11, (3, 0, 5, 1))
    whole = float(loss(output, targets))
    assert whole == pytest.approx(plain_loss(output, targets, loss, last=1), rel=1e-5)
    # Proposals are a layer more, in which an object has several queries.
    proposals = {key: value[:, :1] for key, value in some(4, 9, 12, (1,) * 4)[0].items()}
    first = plain_loss(proposals, targets, loss, last=loss.repeats)
    assert float(loss({**output, "proposals": proposals}, targets)) == pytest.approx((2 * whole + first) / 3, rel=1e-5)
    parts = [
        float(loss({key: value[n : n + 1] for key, value in output.items()}, targets[n : n + 1])) for n in range(4)
    ]
    assert whole == pytest.approx(sum(parts) / 4, rel=1e-5)


def test_the_gradient_equals_finite_differences() -> None:
    loss = SetPrediction()
    output, targets = some(2, 4, 5, (2, 1))
    # Far from where another assignment would be cheaper, and in doubles.
    wide = {key: value.double().requires_grad_() for key, value in output.items()}

    def at(logits: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.Tensor, "float", lambda tensor: tensor)
            return loss({"logits": logits, "boxes": boxes}, [{**t, "boxes": t["boxes"].double()} for t in targets])

    assert torch.autograd.gradcheck(at, (wide["logits"], wide["boxes"]), eps=1e-6, atol=1e-4, rtol=1e-3)
