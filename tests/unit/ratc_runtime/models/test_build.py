"""The built-in model: sizes of logits, group features, gradients of recomputed blocks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ratc_runtime.data.sources import open_split
from ratc_runtime.models.build import MOST, build_model

from tests.helpers.lockfile import lock_with, write_data
from tests.places import ROOT


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


def test_group_features_reach_the_logits(tmp_path: Path) -> None:
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


def test_the_schema_has_the_bounds_of_rat_s_arguments() -> None:
    """The bounds of RAT's arguments are those of the spec's schema, so that `validate` refuses what a run would."""
    schema = json.loads((ROOT / "schemas" / "experiment.schema.json").read_text())
    keys = schema["properties"]["model"]["properties"]
    bounds = {name: keys[name]["maximum"] for name in MOST if name != "leading_tokens"}
    assert bounds | {"leading_tokens": MOST["leading_tokens"]} == MOST
    assert keys["leading_tokens"]["enum"] == [0]
