"""Scores of the user's: their means, and values that are no numbers."""

import pytest
import torch
from ratc_runtime.distributed.world import World
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.tasks.own_scores import Mean


def test_the_mean_is_taken_over_samples_and_not_over_batches():
    mean = Mean({"sum": lambda output, target: (output * target).sum()})
    mean.add(torch.tensor([[1.0], [2.0], [3.0]]), torch.ones(3, 1))
    mean.add(torch.tensor([[10.0]]), torch.ones(1, 1))
    assert mean.scores(World(0, 1, torch.device("cpu"))) == {"sum": 4.0}


@pytest.mark.parametrize(
    ("score", "kind"), [("high", "str"), (None, "NoneType"), (torch.ones(2), "a tensor of shape [2]"), ({}, "dict")]
)
def test_r509_for_a_score_that_is_not_a_number(score, kind):
    mean = Mean({"mine": lambda *_: score})
    with pytest.raises(RuntimeFinding, match="R509") as caught:
        mean.add(torch.ones(1, 1), torch.ones(1, 1))
    assert f"score mine returned {kind} for a sample, not a number" in caught.value.render()
