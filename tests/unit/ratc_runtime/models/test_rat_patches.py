"""RAT's rotary embedding in fp32, and packages imported without their slow optional imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ratc_runtime.models import rat_patches
from ratc_runtime.models.build import build_model
from ratc_runtime.tasks.segmentation.losses import Combined

from tests.helpers.lockfile import environment, lock_with


def published_rat(**arguments: Any) -> torch.nn.Module:
    ResolutionAwareTransformer = rat_patches.import_rat()

    model: torch.nn.Module = ResolutionAwareTransformer(
        input_features=1, feature_dims=16, num_blocks=1, num_heads=2, iters=1, sga_kernel_size=5, stride=4, **arguments
    )
    return model


def test_patched_rat_trains_in_bf16_and_the_published_one_fails(tmp_path: Path) -> None:
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
def test_packages_are_imported_without_slow_optional_imports(imported: str, left_out: str) -> None:
    """In a model's own code, too. What was left out can be imported later; what is there already stays."""
    code = (
        "import importlib.util, sys\n"
        "from ratc_runtime.models import load_torchvision\n"
        f"import {imported}\n"
        f"assert {left_out!r} not in sys.modules\n"
        f"assert importlib.util.find_spec({left_out!r})\n"
        f"sys.modules[{left_out!r}] = there = type(sys)({left_out!r})\n"
        "import importlib\n"
        "from ratc_runtime.config.skipped_imports import SKIPPED\n"
        f"module = next(name for name, package in SKIPPED.items() if package == {left_out!r})\n"
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


def test_the_patched_rotary_embedding_changes_no_float32_output() -> None:
    torch.manual_seed(0)
    model, image = published_rat(), torch.rand(1, 1, 32, 32)
    before = model(image)[0]["x_out"]
    rat_patches.keep_rotary_in_float32(model)
    assert torch.equal(model(image)[0]["x_out"], before)


def test_rotary_frequencies_get_gradients_with_bf16_weights(tmp_path: Path) -> None:
    model = build_model(lock_with(tmp_path)).to(torch.bfloat16)
    model(torch.rand(2, 1, 32, 32, dtype=torch.bfloat16)).float().mean().backward()
    rotary = [(name, p) for name, p in model.named_parameters() if name.endswith("rose.freqs")]
    assert rotary
    for _, parameter in rotary:
        assert parameter.dtype == torch.bfloat16
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().sum() > 0
