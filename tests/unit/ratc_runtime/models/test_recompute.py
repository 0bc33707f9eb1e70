"""Recomputed blocks: their selection, unchanged gradients, and less saved memory."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models.build import build_model
from ratc_runtime.models.recompute import blocks, recompute
from torch import nn

from tests.helpers.lockfile import lock_with, results, run_training, write_lock


class Nested(nn.Module):
    """Two blocks in a list, one of them with layers of its own, a block in a sequence, and one that is there twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.layers = nn.ModuleList([nn.Sequential(nn.Linear(4, 64), nn.GELU(), nn.Linear(64, 4)), nn.Tanh()])
        self.tail = nn.Sequential(nn.Sigmoid())
        self.again = nn.ModuleList([self.inner.layers[0]])

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        for layer in self.inner.layers:
            given = layer(given)
        found: torch.Tensor = self.tail(self.again[0](given))
        return found


def saved_and_gradients(which: bool | list[str]) -> tuple[int, list[torch.Tensor]]:
    """Bytes that autograd keeps between forward and backward, each tensor once, and the gradients."""
    torch.manual_seed(0)
    model = Nested()
    recompute(model, which)
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = model(torch.rand(256, 4)).square().mean()
    size = sum(kept.values())
    out.backward()
    return size, [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def test_blocks_are_the_elements_of_outermost_lists_each_once() -> None:
    assert list(blocks(Nested())) == ["inner.layers.0", "inner.layers.1", "tail.0"]
    assert list(blocks(nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Tanh())))) == ["0", "1"]


@pytest.mark.parametrize("which", [True, ["inner.layers.0"], ["inner.layers.1", "tail.0"]])
def test_gradients_do_not_depend_on_the_recomputed_blocks(which: bool | list[str]) -> None:
    for one, other in zip(saved_and_gradients(False)[1], saved_and_gradients(which)[1], strict=True):
        assert torch.equal(one, other)


def test_a_recomputed_block_saves_no_activations() -> None:
    plain, of_some = saved_and_gradients(False)[0], saved_and_gradients(["inner.layers.0"])[0]
    # Of both calls of the block: the results of its first layer and of its GELU, 256 x 64 numbers of 4 bytes each.
    assert plain - of_some >= 2 * 2 * 256 * 64 * 4
    assert saved_and_gradients(True)[0] < plain / 4


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(4),
        nn.BatchNorm1d(4, momentum=None),
        nn.BatchNorm1d(4, track_running_stats=False),
        nn.BatchNorm1d(4).eval(),
        nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
    ],
    ids=["usual", "cumulative", "untracked", "frozen", "instance"],
)
def test_a_recomputed_norm_counts_each_batch_once(norm: nn.Module) -> None:
    ends = []
    for which in (False, True):
        torch.manual_seed(0)
        # A norm that is the block itself, and one inside of a block.
        model = nn.Sequential(copy.deepcopy(norm), nn.Sequential(nn.Conv1d(4, 4, 3), copy.deepcopy(norm), nn.GELU()))
        recompute(model, which)
        for _ in range(3):
            model(torch.rand(8, 4, 16)).square().mean().backward()
        ends.append({**model.state_dict(), **{name: one.grad for name, one in model.named_parameters()}})
    assert ends[0].keys() == ends[1].keys()
    for name, one in ends[0].items():
        # Instance norm takes the mean over copies of its statistics, which rounds.
        torch.testing.assert_close(one, ends[1][name], rtol=1e-5, atol=0, msg=name)


def test_a_norm_that_a_recomputed_block_calls_twice_counts_twice() -> None:
    norm = nn.BatchNorm1d(4)
    model = nn.Sequential(nn.Sequential(norm, nn.GELU(), norm))
    recompute(model, True)
    model(torch.rand(8, 4)).square().mean().backward()
    assert norm.num_batches_tracked == 2


def test_r373_for_names_that_match_no_block(tmp_path: Path) -> None:
    lock = lock_with(tmp_path, training__activation_checkpointing=["backbone.sga_layers.0", "nothing.1"])
    with pytest.raises(RuntimeFinding, match=r"R373.*nothing\.1") as refused:
        build_model(lock)
    assert "backbone.sga_layers.0" in refused.value.note


def test_a_run_with_recomputed_blocks_has_the_same_losses_and_continues(project: Path) -> None:
    """The losses of the run that keeps everything, and of one that continues from the checkpoint of its first epoch."""
    losses = []
    for place, which in (("plain", False), ("some", ["backbone.mr_attn_layers.0", "fuse.0"])):
        lock = write_lock(
            project / place,
            training__activation_checkpointing=which,
            training__epochs=2,
            output_dir=f"out-{place}",
        )
        done = run_training(lock)
        assert done.returncode == 0, done.stderr
        losses.append([epoch["train_loss"] for epoch in results(project / f"out-{place}")["epochs"]])
    assert losses[0] == losses[1]
    out = project / "out-some"
    (out / "results.json").unlink()
    (out / "checkpoints/epoch-0002-step-000000.pt").unlink()
    for link in ("last.pt", "best.pt"):
        (out / "checkpoints" / link).unlink()
        (out / "checkpoints" / link).symlink_to("epoch-0001-step-000000.pt")
    done = run_training(lock)
    assert done.returncode == 0, done.stderr
    assert "continuing" in done.stdout + done.stderr
    assert [epoch["train_loss"] for epoch in results(out)["epochs"]] == losses[0]
