"""Pruning and quantization in training: the schedule, the zeros, and a run that is stopped and continued."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ratc_runtime.config.lock import lock_from
from ratc_runtime.config.sections import Compression
from ratc_runtime.extras import compress, quantizing
from ratc_runtime.extras.pruning import PRUNED, Pruning, prune_weights, share
from torch import nn

from tests.helpers.lockfile import lock_content, results, run_forked, run_training, write_data, write_lock

ASKED = {
    "sparsity": 0.8,
    "structured": False,
    "begin_epoch": 1,
    "end_epoch": 3,
    "quantization": "none",
    "aware": False,
    "metric": "dice",
    "tolerance": 1.0,
}


def asked(**changes: object) -> Compression:
    return Compression(**{**ASKED, **changes})


def zeros(model: nn.Module) -> float:
    weights = [layer.weight for layer in model.modules() if isinstance(layer, PRUNED)]
    return float(sum((weight == 0).sum() for weight in weights) / sum(weight.numel() for weight in weights))


@given(st.floats(0, 0.99), st.integers(1, 50), st.integers(0, 50))
def test_sparsity_grows_from_zero_to_the_requested_share(sparsity: float, begin: int, length: int) -> None:
    compression = asked(sparsity=sparsity, begin_epoch=begin, end_epoch=begin + length)
    shares = [share(compression, epoch) for epoch in range(begin + length + 5)]
    assert shares[:begin] == [0.0] * begin
    assert shares == sorted(shares)
    assert shares[begin + length :] == [pytest.approx(sparsity)] * 5
    # Fast at first and slower then.
    steps = [after - before for before, after in zip(shares[begin:], shares[begin + 1 :], strict=False)]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(steps))
    assert share(asked(begin_epoch=None, end_epoch=None), 100) == 0.0


def test_structured_pruning_removes_the_smallest_whole_channels() -> None:
    layer = nn.Conv2d(1, 4, 2)
    with torch.no_grad():
        for number in range(4):
            layer.weight[number] = (number + 1) * torch.tensor([[1.0, -1], [1, -1]])
    prune_weights(nn.Sequential(layer), 0.5, structured=True)
    assert [bool((channel == 0).all()) for channel in layer.weight] == [True, True, False, False]
    assert set(layer.state_dict()) == {"weight", "bias"}


def test_pruned_weights_stay_zero_through_an_optimizer_step() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    lock = lock_from(lock_content()).replace(compression=asked())
    pruning = Pruning(lock, model)
    for epoch in range(5):
        pruning.begin(epoch, 0)
        before = [layer.weight == 0 for layer in model if isinstance(layer, nn.Linear)]
        for _ in range(3):
            with pruning.kept():
                optimizer.zero_grad()
                model(torch.randn(16, 8)).square().mean().backward()
                optimizer.step()
        after = [layer.weight == 0 for layer in model if isinstance(layer, nn.Linear)]
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
        assert zeros(model) == pytest.approx(share(asked(), epoch), abs=0.03)
    # In the middle of an epoch nothing more is pruned.
    model[0].weight.data[0, 0] = 1.0
    pruning.begin(9, 2)
    assert model[0].weight[0, 0] == 1.0


def test_quantization_aware_training_rounds_like_int8() -> None:
    pytest.importorskip("torchao")
    torch.manual_seed(0)
    aware, plain = (nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)) for _ in range(2))
    parameters = list(aware.parameters())
    quantizing.make_aware(aware)
    assert [id(one) for one in aware.parameters()] == [id(one) for one in parameters], "an optimizer keeps its own"
    plain.load_state_dict(aware.state_dict())  # the very names
    image = torch.randn(5, 16)
    rounded, exact = aware(image), plain(image)
    assert not torch.allclose(rounded, exact, atol=1e-5)
    quantizing.quantize(plain, "weight_only")
    assert torch.allclose(plain(image), rounded, atol=1e-5)
    rounded.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in parameters)


@pytest.mark.slow
def test_a_stopped_run_prunes_like_an_undisturbed_one(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    write_data(tmp_path / "data", train=25)
    changes = {
        "compression": {**ASKED, "quantization": "weight_only", "aware": True},
        "training__epochs": 5,
        "checkpoint__every_steps": 1,
        "checkpoint__keep_last": 100,
    }
    lock = write_lock(tmp_path / "compiled", **changes)
    whole = run_training(lock)
    assert whole.returncode == 0, whole.stderr
    reached = {}
    for path in (tmp_path / "out/checkpoints").glob("epoch-*-step-*.pt"):
        content = torch.load(path, weights_only=False)
        weights = [value for name, value in content["model"].items() if name.endswith("weight") and value.dim() > 1]
        counted = sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)
        reached[content["progress"]["epoch"], content["progress"]["step"]] = counted
    for (epoch, step), counted in reached.items():
        # A checkpoint at the end of an epoch is of the share of that epoch.
        expected = share(asked(), epoch - 1 if step == 0 else epoch)
        assert counted == pytest.approx(expected, abs=0.03), (epoch, step)
    assert max(reached) == (5, 0)

    assert results(tmp_path / "out")["best_epoch"] > 3, "the best one has lost all that it is to lose"

    # Cut off in the middle of an epoch in which weights are zero, and continued.
    (tmp_path / "out").rename(tmp_path / "first")
    (tmp_path / "out/checkpoints").mkdir(parents=True)
    middle = next(iter((tmp_path / "first/checkpoints").glob("epoch-0002-step-*1.pt")))
    (tmp_path / "out/checkpoints/last.pt").write_bytes(middle.read_bytes())
    for name in ("micro_batch.json", "starts.jsonl"):
        if (tmp_path / "first" / name).exists():
            (tmp_path / "out" / name).write_bytes((tmp_path / "first" / name).read_bytes())
    again = run_training(lock)
    assert again.returncode == 0, again.stderr
    assert "continuing after epoch 2, step 1" in again.stdout
    first, second = (
        torch.load(tmp_path / name / "checkpoints/last.pt", weights_only=False)["model"] for name in ("first", "out")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    tail = [epoch["val_loss"] for epoch in results(tmp_path / "first")["epochs"]][2:]
    assert [epoch["val_loss"] for epoch in results(tmp_path / "out")["epochs"]][-len(tail) :] == tail

    # What the lock says is what compressing does: here int8 alone, as the weights are pruned already.
    done = run_forked("ratc_runtime.extras.compress", tmp_path, "first", "-o", "small")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "small/report.json").read_text())
    assert (report["sparsity"], report["quantization"], report["metric"], report["tolerance"]) == (
        0.0,
        "weight_only",
        "dice",
        1.0,
    )
    assert report["after"]["bytes"] < report["before"]["bytes"]
    loaded = compress.load_compressed(tmp_path / "small/model.pt")
    assert compress.sparsity_of(loaded) == report["after"]["sparsity"]
