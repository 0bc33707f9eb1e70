"""The sample data `shapes`: circles, squares and triangles over gradients and noise, in the COCO layout.

Everything is drawn with integers from a seeded generator, so the bytes are the same on every machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ratc_runtime.data.sample.folder import SampleData, write_json

SIDE = 48
COUNTS = {"train": 1000, "val": 100, "test": 200}
NAMES = ("circle", "square", "triangle")
MOST = 4  # shapes in an image; some images have none
TRIES = 40  # to place them, apart from each other
SMALLEST, LARGEST = 9, 20  # pixels
SOURCE = "drawn: circles, squares and triangles over gradients and noise"
SEED = 20261125


def make(folder: Path) -> None:
    """Write the images and the annotations of all splits into an empty folder."""
    import numpy as np
    from PIL import Image

    # The one generator of NumPy whose numbers never change.
    random = np.random.RandomState(SEED)
    (folder / "annotations").mkdir()
    for split, count in COUNTS.items():
        (folder / "images" / split).mkdir(parents=True)
        content: dict[str, Any] = {
            "info": {"description": SOURCE},
            "images": [],
            "annotations": [],
            "categories": [{"id": number + 1, "name": name} for number, name in enumerate(NAMES)],
        }
        for number in range(count):
            name = _name(number)
            picture, objects = _draw(random)
            Image.fromarray(picture).save(folder / "images" / split / name, optimize=False)
            content["images"].append({"id": number + 1, "file_name": name, "width": SIDE, "height": SIDE})
            for one in objects:
                identity = len(content["annotations"]) + 1
                content["annotations"].append({"id": identity, "image_id": number + 1, "iscrowd": 0, **one})
        write_json(folder / _annotations(split), content)


def _draw(random: Any) -> tuple[Any, list[dict[str, Any]]]:
    """Return an image (H, W, 3) uint8, and its objects in COCO's format."""
    import numpy as np

    rows, columns = np.mgrid[:SIDE, :SIDE]
    corner, across, down = (random.randint(20, 160, 3), random.randint(-80, 81, 3), random.randint(-80, 81, 3))
    picture = corner + (columns[..., None] * across + rows[..., None] * down) // SIDE
    objects: list[dict[str, Any]] = []
    taken = np.zeros((SIDE, SIDE), bool)
    wanted = random.randint(0, MOST + 1)
    for _ in range(TRIES):
        if len(objects) == wanted:
            break
        kind, size = random.randint(len(NAMES)), random.randint(SMALLEST, LARGEST + 1)
        left, top = random.randint(0, SIDE - size + 1, 2)
        polygon = _polygon(NAMES[kind], int(left), int(top), int(size))
        colour = random.randint(0, 256, 3)
        inside = _inside(polygon, rows, columns)
        # Shapes do not overlap, and contrast with their background.
        if (taken & inside).any() or abs(int((picture[inside] - colour).mean())) < 40:
            continue
        taken |= inside
        picture[inside] = colour
        where = np.argwhere(inside)
        (y0, x0), (y1, x1) = where.min(0).tolist(), where.max(0).tolist()
        objects.append(
            {
                "category_id": kind + 1,
                "bbox": [x0, y0, x1 - x0 + 1, y1 - y0 + 1],
                "area": int(inside.sum()),
                "segmentation": [[coordinate for point in polygon for coordinate in point]],
            }
        )
    noisy = picture + random.randint(-12, 13, picture.shape)
    return noisy.clip(0, 255).astype(np.uint8), objects


def _polygon(name: str, left: int, top: int, size: int) -> list[tuple[int, int]]:
    """Return the corners (x, y), clockwise as seen, of a shape in a square of the given side."""
    right, bottom, middle = left + size, top + size, left + size // 2
    if name == "square":
        return [(left, top), (right, top), (right, bottom), (left, bottom)]
    if name == "triangle":
        return [(middle, top), (right, bottom), (left, bottom)]
    # An eighth of the circle by Pythagoras in whole numbers, the rest by symmetry: no rounding of sines.
    from math import isqrt

    radius = size // 2
    across = [(x, isqrt(radius * radius - x * x)) for x in range(-radius, radius + 1, 2)]
    if across[-1][0] != radius:
        across.append((radius, 0))
    upper = [(middle + x, top + radius - y) for x, y in across]
    lower = [(middle + x, top + radius + y) for x, y in reversed(across[1:-1])]
    return upper + lower


def _inside(polygon: list[tuple[int, int]], rows: Any, columns: Any) -> Any:
    """Return the pixels whose centres lie in a convex polygon. Half pixels keep all numbers whole."""
    import numpy as np

    inside = np.ones(rows.shape, bool)
    for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        inside &= (x1 - x0) * (2 * rows + 1 - 2 * y0) - (y1 - y0) * (2 * columns + 1 - 2 * x0) >= 0
    return inside


def _name(number: int) -> str:
    return f"{number:04d}.png"


def _annotations(split: str) -> str:
    return f"annotations/instances_{split}.json"


SAMPLE = SampleData(
    summary="drawn circles, squares and triangles with their boxes, in the COCO layout",
    marker={"sample_data": "shapes", "source": SOURCE, "seed": SEED, "side": SIDE, "counts": COUNTS},
    counts=COUNTS,
    files=(
        *(_annotations(split) for split in COUNTS),
        *(f"images/{split}/{_name(number)}" for split, count in COUNTS.items() for number in range(count)),
    ),
    make=make,
)
