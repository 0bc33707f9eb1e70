"""Hausdorff distances between the surfaces of prediction and truth, if a spec asks for them.

Per sample and foreground class: the largest distance from a surface pixel of the one to the nearest surface pixel of
the other, either way (Hausdorff), and the same with the 95th percentile of each way (Huttenlocher et al. 1993 for the
ranked distance; the larger of both ways, as MedPy and MONAI have it), which one stray pixel does not decide.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ratc_runtime.distributed.world import World


def distances(predicted: Any, true: Any, spacing: float) -> tuple[float, float] | None:
    """Return the 95th percentile and the maximum between two masks (bool arrays of one shape), in units of `spacing`.

    None if exactly one of them is empty, so that there is no distance; zeros if both are.
    """
    # Imported here: scipy takes half a second, and few runs ask for distances.
    from scipy import ndimage

    if not predicted.any() or not true.any():
        return (0.0, 0.0) if predicted.any() == true.any() else None
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (predicted, true)]
    ways = []
    for one, other in (surfaces, surfaces[::-1]):
        ways.append(ndimage.distance_transform_edt(~other, sampling=spacing)[one])
    return float(max(np.percentile(way, 95) for way in ways)), float(max(way.max() for way in ways))


class Hausdorff:
    """Mean distances over the samples and foreground classes of a split with a defined distance.

    A sample without a class counts only if the class is predicted. If only one side has it, there is no distance: these
    are counted in `hausdorff_undefined`.
    """

    def __init__(self, classes: int, spacing: float, ignore_index: int | None = None) -> None:
        self.classes, self.spacing, self.ignore_index = classes, spacing, ignore_index
        self._totals = torch.zeros(4, dtype=torch.float64)  # 95th percentile, maximum, defined, undefined

    def add(self, predicted: torch.Tensor, true: torch.Tensor) -> None:
        """Measure class numbers (B, ...)."""
        for one, other in zip(predicted.cpu().numpy(), true.cpu().numpy(), strict=True):
            counted = np.ones_like(other, dtype=bool) if self.ignore_index is None else other != self.ignore_index
            for number in range(1, self.classes):
                masks = (one == number) & counted, (other == number) & counted
                if not masks[0].any() and not masks[1].any():
                    continue
                found = distances(*masks, self.spacing)
                self._totals += torch.tensor([*found, 1.0, 0.0] if found else [0.0, 0.0, 0.0, 1.0], dtype=torch.float64)

    def scores(self, world: World) -> dict[str, float]:
        """Return `hausdorff95`, `hausdorff` (NaN if nothing was defined) and `hausdorff_undefined`, a number."""
        ranked, largest, defined, undefined = world.sum(self._totals).tolist()
        return {
            "hausdorff95": ranked / defined if defined else math.nan,
            "hausdorff": largest / defined if defined else math.nan,
            "hausdorff_undefined": undefined,
        }
