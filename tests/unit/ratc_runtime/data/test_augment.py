"""Augmentations move masks and boxes with their images, for every transform of the compiler's table."""

from __future__ import annotations

import inspect
import random
from typing import Any

import numpy as np
import pytest
import torch
from ratc_runtime.data import augment
from ratc_runtime.data.augment import Augmentation
from ratc_runtime.data.randomness import sample_seed
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models import torchvision_operators

from ratc.catalog.augmentations import ELSEWHERE, TORCHVISION, TRANSFORMS

SIDE = 64
#: Arguments under which each transform does something to any image.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "RandomHorizontalFlip": {"p": 1.0},
    "RandomVerticalFlip": {"p": 1},
    "RandomDepthFlip": {"p": 1.0},
    "RandomRotation": {"degrees": [20, 40], "interpolation": "bilinear", "fill": 0.2},
    "RandomAffine": {"degrees": 25, "translate": [0.1, 0.1], "scale": [0.8, 1.2], "shear": 5, "fill": 0.3},
    "RandomPerspective": {"distortion_scale": 0.3, "p": 1.0, "fill": 0.3},
    "ElasticTransform": {"alpha": 40.0},
    "RandomCrop": {"size": SIDE, "padding": 6},
    "RandomResizedCrop": {"size": [SIDE, SIDE], "scale": [0.7, 0.8]},
    "ColorJitter": {"brightness": [0.4, 0.6], "contrast": 0.2},
    "RandomPhotometricDistort": {"p": 1.0, "brightness": [0.4, 0.6]},
    "RandomGrayscale": {"p": 1.0},
    "RandomChannelPermutation": {},
    "GaussianBlur": {"kernel_size": 5, "sigma": [1.0, 2.0]},
    "GaussianNoise": {"sigma": 0.1},
    "RandomInvert": {"p": 1.0},
    "RandomPosterize": {"bits": 2, "p": 1.0},
    "RandomSolarize": {"threshold": 0.5, "p": 1.0},
    "RandomAdjustSharpness": {"sharpness_factor": 3, "p": 1.0},
    "RandomAutocontrast": {"p": 1.0},
    "RandomEqualize": {"p": 1.0},
    "RandomErasing": {"p": 1.0, "value": 0.9},
}
GEOMETRIC = sorted(augment.GEOMETRIC)


def blob() -> torch.Tensor:
    """A bright ellipse off the centre, (1, H, W): no flip or turn brings it onto itself."""
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return ((((rows - 26) / 13) ** 2 + ((columns - 36) / 8) ** 2) < 1).float()[None]


def corners(mask: torch.Tensor) -> torch.Tensor:
    """The box around a mask (H, W): x0, y0, x1, y1, past the last pixel."""
    rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
    return torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()


def one(name: str) -> Augmentation:
    return Augmentation([{name: ARGUMENTS[name]}])


def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_the_compiler_s_table_of_transforms_equals_the_installed_torchvision() -> None:
    torchvision_operators.define()
    import torchvision
    from torchvision.transforms import v2

    assert torchvision.__version__.startswith(TORCHVISION)
    assert set(TRANSFORMS) == augment.GEOMETRIC | augment.PHOTOMETRIC | {augment.DEPTH_FLIP} == set(ARGUMENTS)
    assert {name for name, found in TRANSFORMS.items() if not found.moves} == augment.PHOTOMETRIC
    for name, transform in TRANSFORMS.items():
        if name != augment.DEPTH_FLIP:
            takes = inspect.signature(getattr(v2, name)).parameters
            assert set(transform.arguments) == set(takes) - {"expand", "inplace"}, name
            needed = {key for key, found in takes.items() if found.default is inspect.Parameter.empty}
            assert set(transform.required) == needed - {"size"}, name
        for key, value in ARGUMENTS[name].items():
            assert transform.arguments[key].accepts(value), (name, key)
    assert not [name for name in ELSEWHERE if not hasattr(v2, name) or name in TRANSFORMS]


@pytest.mark.parametrize("name", GEOMETRIC)
def test_masks_and_boxes_move_with_the_image(name: str) -> None:
    image, moved_at_all = blob(), 0
    for seed in range(6):
        target = {
            "boxes": corners(image[0] > 0.5)[None],
            "labels": torch.tensor([7]),
            "masks": image.clone(),
            "classes": (image[0] * 3).long(),
            "size": torch.tensor([SIDE, SIDE]),
        }
        moved, found = one(name)(image * 0.6 + 0.2, target, seed)
        bright = moved[0] > 0.55
        assert moved.shape == image.shape
        assert found["masks"].unique().tolist() == [0.0, 1.0]
        assert found["classes"].unique().tolist() == [0, 3]
        # torchvision's nearest neighbour, for masks, lies up to half a pixel beside its interpolation of images.
        assert overlap(bright, found["masks"][0] > 0.5) > 0.87
        assert torch.equal(found["classes"] == 3, found["masks"][0] == 1)
        box, around = found["boxes"][0], corners(bright)
        # A box that is turned gets the box around its corners: it holds the blob, and is not much larger.
        assert (box[:2] <= around[:2] + 1.5).all()
        assert (box[2:] >= around[2:] - 1.5).all()
        assert (box - around).abs().max() < 14
        assert found["labels"].tolist() == [7]
        assert found["size"].tolist() == [SIDE, SIDE]
        moved_at_all += not torch.equal(found["masks"], image)
        alone = one(name)(image * 0.6 + 0.2, image, seed)[1]
        assert torch.equal(alone, found["masks"]), "a mask alone goes the same way"
    assert moved_at_all == 6


@pytest.mark.parametrize("name", GEOMETRIC)
def test_all_slices_of_a_volume_get_the_same_transform(name: str) -> None:
    flat = blob()
    volume = torch.stack([flat, flat * 0.5, flat], dim=1) * 0.6 + 0.2  # (1, 3, H, W)
    mask = torch.stack([flat, torch.zeros_like(flat), flat], dim=1)
    moved, found = one(name)(volume, [mask, mask[0]], 3)
    image_alone, mask_alone = one(name)(flat * 0.6 + 0.2, flat, 3)
    assert torch.allclose(moved[:, 0], image_alone, atol=1e-5)
    assert torch.equal(moved[:, 0], moved[:, 2])
    assert not torch.equal(moved[:, 0], moved[:, 1])
    assert torch.equal(found[0][:, 0], mask_alone)
    assert not found[0][:, 1].any()
    assert torch.equal(found[1], found[0][0])


def test_random_depth_flip_flips_volume_and_masks() -> None:
    volume, mask = torch.rand(2, 5, 8, 8), (torch.rand(1, 5, 8, 8) > 0.5).float()
    moved, found = one("RandomDepthFlip")(volume, {"mask": mask, "label": torch.tensor(1)}, 0)
    assert torch.equal(moved, volume.flip(1))
    assert torch.equal(found["mask"], mask.flip(1))
    with pytest.raises(RuntimeFinding, match="RandomDepthFlip needs volumes"):
        one("RandomDepthFlip")(torch.rand(1, 8, 8), mask[:, 0], 0)


@pytest.mark.parametrize("name", sorted(augment.PHOTOMETRIC))
@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 4, 32, 32)])
def test_photometric_transforms_change_only_the_image(name: str, shape: tuple[int, ...]) -> None:
    image = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1
    before, mask = image.clone(), (torch.rand(1, *shape[1:]) > 0.5).float()
    changed = 0
    for seed in range(3):
        result, found = one(name)(image, mask, seed)
        assert torch.equal(found, mask)
        assert result.shape == image.shape
        changed += not torch.equal(result, image)
    assert torch.equal(image, before), "the data set's own tensor is not written to"
    assert changed


def test_pyramid_levels_are_reduced_from_the_augmented_finest_level() -> None:
    fine = blob()
    levels = [fine[:, ::2, ::2].clone(), fine]
    both, mask = one("RandomAffine")(levels, fine, 5)
    alone, same = one("RandomAffine")(fine, fine, 5)
    assert torch.equal(both[1], alone)
    assert torch.equal(mask, same)
    assert both[0].shape == levels[0].shape
    wanted = torch.nn.functional.avg_pool2d(alone[None], 2)[0]
    assert (both[0] - wanted).abs().mean() < 0.02


def test_augmentation_depends_on_its_seed_only_and_keeps_other_random_states() -> None:
    image = torch.rand(3, 32, 32)
    several = Augmentation([{name: ARGUMENTS[name]} for name in ("RandomAffine", "ColorJitter", "GaussianNoise")])
    torch.manual_seed(1)
    first = several(image, image[:1] > 0.5, 11)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    torch.manual_seed(2)
    torch.rand(5)
    again = several(image, image[:1] > 0.5, 11)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(several(image, image[:1] > 0.5, 12)[0], first[0])
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[1:]  # type: ignore[index,union-attr]
    seeds = {sample_seed(seed, epoch, position) for seed in range(4) for epoch in range(8) for position in range(64)}
    assert len(seeds) == 4 * 8 * 64


def test_boxes_outside_the_image_are_removed_with_their_labels() -> None:
    target = {
        "boxes": torch.tensor([[0.0, 0.0, 8.0, 8.0], [24.0, 24.0, 40.0, 40.0]]),
        "labels": torch.tensor([1, 2]),
        "masks": torch.zeros(2, SIDE, SIDE),
        "image_id": torch.tensor([9]),
    }
    shift = Augmentation([{"RandomAffine": {"degrees": 0, "translate": [0.0, 0.0], "scale": [3.0, 3.0]}}])
    _, found = shift(torch.zeros(1, SIDE, SIDE), target, 0)
    assert found["labels"].tolist() == [2]
    assert found["masks"].shape == (1, SIDE, SIDE)
    assert found["image_id"].tolist() == [9]
    assert found["boxes"][0].tolist() == pytest.approx([8, 8, 56, 56], abs=2)
    empty = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.long),
        "masks": torch.zeros(0, SIDE, SIDE),
    }
    for name in GEOMETRIC:
        _, nothing = one(name)(torch.zeros(1, SIDE, SIDE), empty, 0)
        assert {key: tuple(value.shape) for key, value in nothing.items()} == {
            "boxes": (0, 4),
            "labels": (0,),
            "masks": (0, SIDE, SIDE),
        }, name


@pytest.mark.parametrize(
    ("entries", "image", "target", "code", "said"),
    [
        ([{"RandomFlip": {}}], (1, 8, 8), (1, 8, 8), "R532", "no augmentation is called RandomFlip"),
        ([{"RandomRotation": {}}], (1, 8, 8), (1, 8, 8), "R532", "RandomRotation cannot be made"),
        ([{"RandomCrop": {"size": 4}}], (1, 8, 8), (1, 8, 8), "R532", r"from \(8, 8\) to \(4, 4\)"),
        ([{"ElasticTransform": {}}], (1, 8, 8), (1, 8, 8), "R532", "ElasticTransform cannot be applied"),
        ([{"RandomInvert": {"p": 1}}], (1, 8, 8, 8, 8), (1,), "R532", "has no augmentations"),
        ([{"RandomVerticalFlip": {"p": 1}}], (1, 8, 8), (1, 4, 4), "R534", "cannot be changed together"),
    ],
)
def test_transforms_that_do_not_fit_the_data_are_named(
    entries: list[dict[str, Any]], image: tuple[int, ...], target: tuple[int, ...], code: str, said: str
) -> None:
    with pytest.raises(RuntimeFinding, match=said) as caught:
        Augmentation(entries)(torch.rand(image), torch.rand(target), 0)
    assert caught.value.code == code


def test_images_outside_0_to_1_are_refused_by_color_jitter() -> None:
    scan = torch.randn(1, 16, 16) * 5
    with pytest.raises(RuntimeFinding, match="ColorJitter needs images between 0 and 1"):
        one("ColorJitter")(scan, scan > 0, 0)
    noisy, _ = Augmentation([{"GaussianNoise": {"sigma": 0.1, "clip": False}}])(scan, scan > 0, 0)
    assert (noisy - scan).abs().max() < 1
    assert torch.equal(one("RandomHorizontalFlip")(scan, scan > 0, 0)[0], scan.flip(-1))
