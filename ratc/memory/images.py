"""The size of a sample: a picture's sides, or those of a volume's patch."""

from __future__ import annotations

from ratc.plan import Values


def dims(settings: Values) -> int:
    """Return 2 for images and 3 for volumes: RAT's `spatial_dims`; for other models the number of sides, else by the
    data set.
    """
    if settings["model.name"].value == "rat":
        return settings.get_as(int, "model.spatial_dims")
    size = settings["data.image_size"].value
    if isinstance(size, list):
        return len(size)
    return 3 if settings["data.dataset"].value == "volumes" else 2


def sides(settings: Values) -> list[int]:
    """Return `data.image_size` as one number of pixels (voxels) for each side, outermost first."""
    size = settings["data.image_size"].value
    return list(size) if isinstance(size, list) else [size] * dims(settings)
