"""The parts of the runtime one by one: compatibility, model, losses, metrics, order of samples, schedule."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ratc_runtime.config.lock import Lock, read_lock
from ratc_runtime.data.loading import EvaluationOrder, TrainOrder
from ratc_runtime.data.sources import open_split
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models import rat_patches
from ratc_runtime.models.build import build_model
from ratc_runtime.tasks.segmentation.losses import Bce, Combined, Dice
from ratc_runtime.tasks.segmentation.metrics import baseline_mask, counts, labels, score
from ratc_runtime.training.lr_schedule import learning_rate

from tests.effort import examples
from tests.helpers.lockfile import environment, write_data, write_lock


def lock_with(folder: Path, **changes: Any) -> Lock:
    return read_lock(write_lock(folder, **changes))


def published_rat(**arguments: Any) -> torch.nn.Module:
    ResolutionAwareTransformer = rat_patches.import_rat()

    model: torch.nn.Module = ResolutionAwareTransformer(
        input_features=1, feature_dims=16, num_blocks=1, num_heads=2, iters=1, sga_kernel_size=5, stride=4, **arguments
    )
    return model


def test_rat_as_published_takes_no_bf16_and_ours_trains(tmp_path: Path) -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 1, 32, 32)
    published = published_rat().to(torch.bfloat16)
    with pytest.raises(RuntimeError, match="view_as_complex"):
        published(image.to(torch.bfloat16))
    assert rat_patches.keep_rotary_in_float32(published) == 2
    assert rat_patches.keep_rotary_in_float32(published) == 0
    assert published(image.to(torch.bfloat16))[0]["x_out"].dtype == torch.bfloat16
    model = build_model(lock_with(tmp_path))
    target = (image > 0.5).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = Combined()(model(image), target)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert any(name.endswith("rose.freqs") for name in gradients)
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    full = Combined()(model(image), target)
    assert loss.item() == pytest.approx(full.item(), rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("imported", "left_out"), [("timm", "wandb"), ("deepspeed", "mlflow")])
def test_a_package_is_imported_without_what_takes_longer_than_itself(imported: str, left_out: str) -> None:
    """In a model's own code, too. What was left out can be imported later; what is there already stays."""
    code = (
        "import importlib.util, sys\n"
        "from ratc_runtime.models.build import rat_patches as compat\n"
        "compat.define_torchvision_operators()\n"
        f"import {imported}\n"
        f"assert {left_out!r} not in sys.modules\n"
        f"assert importlib.util.find_spec({left_out!r})\n"
        f"sys.modules[{left_out!r}] = there = type(sys)({left_out!r})\n"
        "import importlib\n"
        "from ratc_runtime.unneeded import UNNEEDED\n"
        f"module = next(name for name, package in UNNEEDED.items() if package == {left_out!r})\n"
        "importlib.reload(sys.modules[module])\n"
        f"assert sys.modules[{left_out!r}] is there\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment())


def test_positions_are_exact_under_bf16_autocast() -> None:
    """CPU autocast lets the published embedding through, with positions rounded to bf16: 257 becomes 256."""
    published_rat()
    from RoSE import RotarySpatialEmbedding

    torch.manual_seed(0)
    grid = (1, 300)
    rotary = RotarySpatialEmbedding(8, 2, 2, initial_scaling=None)
    x = torch.randn(1, 300, 8).to(torch.bfloat16)
    exact = rotary(x.float(), (1.0, 1.0), grid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = rotary(x, (1.0, 1.0), grid)
        rat_patches.keep_rotary_in_float32(rotary)
        ours = rotary(x, (1.0, 1.0), grid)
    assert (rounded - exact).abs().max() > 0.1
    assert torch.equal(ours, exact)


def test_rotary_in_float32_changes_nothing_in_float32() -> None:
    torch.manual_seed(0)
    model, image = published_rat(), torch.rand(1, 1, 32, 32)
    before = model(image)[0]["x_out"]
    rat_patches.keep_rotary_in_float32(model)
    assert torch.equal(model(image)[0]["x_out"], before)


def test_rat_with_bf16_weights_as_deepspeed_makes_them(tmp_path: Path) -> None:
    model = build_model(lock_with(tmp_path)).to(torch.bfloat16)
    model(torch.rand(2, 1, 32, 32, dtype=torch.bfloat16)).float().mean().backward()
    rotary = [(name, p) for name, p in model.named_parameters() if name.endswith("rose.freqs")]
    assert rotary
    for _, parameter in rotary:
        assert parameter.dtype == torch.bfloat16
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize(("height", "width"), [(32, 32), (30, 44)])
def test_multi_scale_logits_have_the_size_of_the_finest_image(tmp_path: Path, height: int, width: int) -> None:
    write_data(tmp_path / "data")
    lock = lock_with(tmp_path, data__scales=[0.5, 1.0], data__image_size=[height, width], model__multi_scale=True)
    item = open_split(lock, tmp_path / "data", "train")[0]
    assert [tuple(level.shape) for level in item["image"]] == [(1, height // 2, width // 2), (1, height, width)]
    assert item["target"].shape == (1, height, width)
    assert set(item["target"].unique().tolist()) == {0.0, 1.0}
    model = build_model(lock)
    logits = model([level[None].repeat(2, 1, 1, 1) for level in item["image"]])
    assert logits.shape == (2, 1, height, width)
    logits.mean().backward()
    assert model.spacings == [(2.0, 2.0), (1.0, 1.0)]


def test_pixels_hear_of_their_groups(tmp_path: Path) -> None:
    """What RAT computes reaches the logits: without its groups they are others."""
    torch.manual_seed(0)
    model = build_model(lock_with(tmp_path)).eval()
    image = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        before = model(image)
        model.backbone.init_proj.weight.add_(0.5)
        assert not torch.allclose(model(image), before)


def test_recomputed_blocks_give_the_same_gradients(tmp_path: Path) -> None:
    def gradients(recompute: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = build_model(lock_with(tmp_path, training__activation_checkpointing=recompute)).eval()
        torch.manual_seed(1)
        model(torch.rand(1, 1, 32, 32)).square().mean().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for one, other in zip(gradients(False), gradients(True), strict=True):
        assert torch.equal(one, other)


def test_losses_at_known_points() -> None:
    target = torch.zeros(2, 1, 4, 4)
    target[:, :, :2] = 1
    assert Bce()(torch.zeros_like(target), target).item() == pytest.approx(math.log(2))
    right, wrong = (target * 2 - 1) * 50, (1 - target * 2) * 50
    for loss in (Bce(), Dice(), Combined()):
        assert loss(right, target).item() == pytest.approx(0, abs=1e-6)
        assert loss(wrong, target).item() > 0.9 * (50 if isinstance(loss, Bce) else 1)
    empty = torch.zeros_like(target)
    assert Dice()(torch.full_like(target, -50.0), empty).item() == pytest.approx(0, abs=1e-6)
    assert Combined()(torch.zeros_like(target).bfloat16(), target).dtype == torch.float32


def test_scores_are_of_sums_not_of_averages() -> None:
    target = torch.zeros(2, 1, 10, 10)
    target[0, :, :, :5] = 1  # 50 pixels, all found
    target[1, 0, 0, 0] = 1  # one, missed, and one too many
    logits = torch.full_like(target, -1.0)
    logits[0][target[0] == 1] = 1
    logits[1, 0, 9, 9] = 1
    per_sample = counts(*labels(logits, target))
    assert per_sample.tolist() == [[[50, 0, 0]], [[0, 1, 1]]]
    total = score(per_sample.sum((0, 1)))
    assert total.dice == pytest.approx(100 / 102)
    assert total.iou == pytest.approx(50 / 52)
    nothing = score(torch.zeros(3))
    assert math.isnan(nothing.dice)
    assert math.isnan(nothing.iou)


@settings(max_examples=examples(60), deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_the_baseline_is_the_best_threshold_of_the_mean(seed: int, number: int) -> None:
    masks = (torch.rand(number, 1, 3, 4, generator=torch.Generator().manual_seed(seed)) > 0.6).double()
    mask, threshold = baseline_mask(masks.sum(0), number)
    if not masks.any():
        assert math.isnan(threshold)
        assert not mask.any()
        return
    mean = masks.mean(0)
    assert torch.equal(mask, mean >= threshold - 1e-9)

    def dice(candidate: torch.Tensor) -> float:
        return score(counts(*labels((candidate.double() - 0.5).expand_as(masks), masks)).sum((0, 1))).dice

    best = max(dice(mean >= level) for level in mean.unique())
    assert dice(mask) == pytest.approx(best)


@settings(max_examples=examples(60), deadline=None)
@given(st.integers(1, 60), st.sampled_from([(8, 1, 8), (8, 2, 2), (8, 4, 1), (8, 8, 1), (6, 3, 2)]), st.integers(0, 3))
def test_a_step_holds_the_same_samples_for_any_world(
    tmp_path_factory: pytest.TempPathFactory, length: int, split: tuple[int, int, int], epoch: int
) -> None:
    batch, world, micro = split
    folder = tmp_path_factory.mktemp("locks")

    def order(world: int, micro: int, rank: int) -> TrainOrder:
        lock = lock_with(
            folder,
            training__global_batch_size=batch,
            training__micro_batch_size=micro,
            training__gradient_accumulation_steps=batch // world // micro,
            parallel__world_size=world,
            parallel__processes_per_node=world,
        )
        made = TrainOrder(length, lock, rank)
        made.epoch = epoch
        return made

    alone = [index for part in order(1, batch, 0) for index in part]
    assert len(set(alone)) == len(alone) == length // batch * batch
    per_rank = [[index for part in order(world, micro, rank) for index in part] for rank in range(world)]
    share = batch // world
    for step in range(length // batch):
        together = [index for rank in per_rank for index in rank[step * share : (step + 1) * share]]
        assert together == alone[step * batch : (step + 1) * batch]
    resumed = order(world, micro, 0)
    resumed.first_step = 1
    assert [index for part in resumed for index in part] == per_rank[0][share:]


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 6))
def test_an_evaluation_sees_every_sample_once(length: int, world: int, micro: int) -> None:
    ranks = [list(EvaluationOrder(length, micro, rank, world)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    seen = sorted(index for batches in ranks for batch in batches for index in batch)
    assert [index for index in seen if index < length] == list(range(length))


def test_schedules(tmp_path: Path) -> None:
    def rates(**changes: Any) -> list[float]:
        training = lock_with(tmp_path, training__epochs=4, training__learning_rate=1.0, **changes).training
        return [learning_rate(training, step, 10) for step in range(40)]

    cosine = rates(training__warmup_epochs=1.0, training__min_learning_rate=0.1)
    assert cosine[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert cosine[10] == pytest.approx(1.0)
    assert cosine[25] == pytest.approx(0.55)
    assert cosine[10:] == sorted(cosine[10:], reverse=True)
    assert 0.1 < cosine[39] < 0.11
    steps = rates(training__scheduler="step", training__step_epochs=2, training__warmup_epochs=0)
    assert steps == pytest.approx([1.0] * 20 + [0.1] * 20)
    assert rates(training__scheduler="none", training__warmup_epochs=0) == [1.0] * 40


def test_a_finding_survives_the_way_between_processes() -> None:
    import pickle

    finding = RuntimeFinding("R506", "what", "why\nand where", "do", everywhere=False)
    copied = pickle.loads(pickle.dumps(finding))
    assert copied.render() == "error[R506]: what\n  note: why\n        and where\n  help: do"
    assert not copied.everywhere
