"""Decoded volumes as memory maps in the machine's temporary folder, so that reading a patch costs only its own bytes.

A compressed volume can only be read from its beginning, which takes too long for every patch. So the first process that
needs a volume decodes it, reoriented and scaled, into a file that the others map. The files' names depend on everything
that they are made from. They may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ratc_runtime.data.folders import SKIP_HELP, class_numbers
from ratc_runtime.data.masks import foreground
from ratc_runtime.errors import RuntimeFinding, warn
from ratc_runtime.output.atomic import replacing
from ratc_runtime.output.sizes import counted

#: Version of the files' layout. Files of other versions are not read.
VERSION = 2
#: Percentiles that intensities are clipped to if no window is given. Chosen, not measured.
CLIP = (0.5, 99.5)
#: The largest number for voxels that are not finite: a float32 holds it, and differences of it.
MOST_FILLED = 1e30
#: Bytes per voxel while decoding: as float32, and as stored in the file.
_VOXEL_BYTES = 5
#: Affines of an image and its mask may differ by this much, in the affine's own units (mm).
TOLERANCE = 1e-2


@dataclass(frozen=True)
class Recipe:
    """The parameters of decoding a file."""

    channels: int
    num_classes: int
    ignore_index: int | None
    window: tuple[float, float] | None
    #: Least value of the foreground in a mask of one class; None: it must hold two values.
    threshold: float | None = None
    #: The number for image voxels that are NaN or infinite, in the file's units; None: there must be none.
    fill_nan: float | None = None


@dataclass(frozen=True)
class Volume:
    """An image and its mask; `shape` is (D, H, W), superior, anterior, right."""

    name: str
    image: Path
    mask: Path
    shape: tuple[int, int, int]


def checked_fill(value: Any) -> float | None:
    """Return `fill_nan` of a data set's arguments. Raises R509 if it is not a finite number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= MOST_FILLED:
        raise RuntimeFinding("R509", f"fill_nan is {value!r:.40}, expected a number in the units of the files")
    return float(value)


def look_at(name: str, image: Path, mask: Path, recipe: Recipe) -> Volume:
    """Read the headers of a volume and its mask.

    Raises R506 if one cannot be read, R537 if their voxels do not match, or the channels are not the lock's.
    """
    (shape, affine), (other, other_affine) = _header(image), _header(mask)
    _check_channels(image, shape, recipe.channels)
    if (*other, 1)[:4] != (*shape[:3], 1):
        raise RuntimeFinding(
            "R537",
            f"{image} has {_spelled(shape[:3])} voxels, its mask {_spelled(other)}",
            str(mask),
            "resample the mask to the image's grid, with nearest neighbours",
            everywhere=False,
        )
    if not np.allclose(affine, other_affine, atol=TOLERANCE):
        raise RuntimeFinding(
            "R537",
            f"{image} and its mask lie in different places",
            f"affine of the image {_numbers(affine)}, of the mask {_numbers(other_affine)}",
            "resample the mask to the image's grid, or correct the affine that is wrong",
            everywhere=False,
        )
    turned = [shape[int(axis)] for axis in _order(affine)]
    return Volume(name, image, mask, (turned[0], turned[1], turned[2]))


def _check_channels(path: Path, shape: tuple[int, ...], channels: int) -> None:
    if len(shape) not in (3, 4) or (*shape, 1)[3] != channels:
        raise RuntimeFinding(
            "R537",
            f"{path} has the shape {_spelled(shape)}, which is not a volume of {counted(channels, 'channel')}",
            "a volume is (X, Y, Z), with several channels (X, Y, Z, C)",
            "set data.channels to the number of channels of the files",
            everywhere=False,
        )


class VolumeStore:
    """Maps the volumes of a data set. The maps stay in the process that opened them."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._open: dict[str, tuple[Any, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"recipe": self.recipe, "_open": {}}

    def read(self, volume: Volume) -> tuple[Any, Any]:
        """Return a volume (C, D, H, W), float32 in [0, 1], and its mask (D, H, W), uint8.

        Raises R506 if a file is corrupt, R536 if the mask holds a value that is not a class, R570 if it is not a mask
        of one class.
        """
        found = self._open.get(volume.name)
        if found is None:
            folder = folder_of_maps()
            if folder is None:
                # Nowhere to put them: only the last one is kept, as memory is short where disks are.
                self._open.clear()
                found = decode(volume, self.recipe)
            else:
                found = self._mapped(volume, folder)
            self._open[volume.name] = found
        return found

    def _mapped(self, volume: Volume, folder: Path) -> tuple[Any, Any]:
        key = self._key(volume)
        paths = [folder / f"{key}.image.npy", folder / f"{key}.mask.npy"]
        with _alone(folder / f"{key}.lock"):
            try:
                image, mask = (np.load(path, mmap_mode="r") for path in paths)
                return image, mask
            except (OSError, ValueError):  # not there yet, or cut off when a disk was full
                arrays = decode(volume, self.recipe)
            try:
                for path, array in zip(paths, arrays, strict=True):
                    _save(path, array)
                image, mask = (np.load(path, mmap_mode="r") for path in paths)
                return image, mask
            except OSError as error:
                warn(f"{volume.name} is kept in memory: {folder} cannot be written: {error.strerror or error}")
                return arrays

    def _key(self, volume: Volume) -> str:
        stats = [(str(path.resolve()), os.stat(path)) for path in (volume.image, volume.mask)]
        parts = [VERSION, self.recipe, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def folder_of_maps() -> Path | None:
    """Return this user's folder of maps below TMPDIR; None if it cannot be made or belongs to another user."""
    folder = Path(tempfile.gettempdir()) / f"ratc-volumes-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        # Any user may make a folder of that name in /tmp: files of another user are not read.
        return folder if folder.stat().st_uid == os.getuid() and not folder.is_symlink() else None
    except OSError:
        return None


def decode(volume: Volume, recipe: Recipe) -> tuple[Any, Any]:
    """Read, reorient and scale a volume and its mask; see `VolumeStore.read`."""
    image, affine = decode_image(volume.image, recipe)
    order = _order(affine)
    labels, affine = _voxels(volume.mask)
    mask = _reoriented(labels.reshape(labels.shape[:3]), affine, order)
    if recipe.num_classes == 1:
        return image, np.ascontiguousarray(foreground(mask, volume.mask, recipe.threshold)).astype(np.uint8)
    return image, np.ascontiguousarray(class_numbers(mask, volume.mask, recipe.num_classes, recipe.ignore_index))


def decode_image(path: Path, recipe: Recipe) -> tuple[Any, Any]:
    """Read, reorient and scale a volume: (C, D, H, W), float32 in [0, 1], and the affine of its file.

    Raises R506 if it is corrupt, has voxels that are not finite and the recipe no number for them, or a channel has
    no finite number; R537 if its channels are not the recipe's.
    """
    shape, _ = _header(path)
    _check_channels(path, shape, recipe.channels)
    voxels, affine = _voxels(path)
    channels = voxels if voxels.ndim == 4 else voxels[..., None]
    turned = np.moveaxis(_reoriented(channels, affine, _order(affine)), -1, 0)
    with np.errstate(over="ignore"):  # a number that float32 does not hold becomes infinite, and is refused as such
        turned = np.asarray(turned, dtype=np.float32)
    finite = np.isfinite(turned)
    if not finite.any(axis=tuple(range(1, turned.ndim))).all():
        raise _corrupt(path, ValueError("a channel holds no finite number"))
    if recipe.fill_nan is None and not finite.all():
        raise _not_finite(path, finite)
    return np.stack([_scaled(channel, recipe) for channel in turned]), affine


def to_file_orientation(labels: Any, affine: Any) -> Any:
    """Return (D, H, W), superior, anterior, right, as the voxels (X, Y, Z) of a file with that affine."""
    from nibabel.orientations import io_orientation

    flips = io_orientation(affine)[:, 1]
    own = labels.transpose(np.argsort(_order(affine)))
    return np.ascontiguousarray(own[tuple(slice(None, None, -1 if flip < 0 else 1) for flip in flips)])


def _not_finite(path: Path, finite: Any) -> RuntimeFinding:
    count = int(finite.size - np.count_nonzero(finite))
    return RuntimeFinding(
        "R506",
        f"{path} holds NaN or infinity",
        f"{count} of {finite.size} voxels are not finite",
        "repair the file; or give the number that stands for such voxels, in the file's units:"
        " data.args: {fill_nan: -1000} for the air of a CT, 0 outside of a brain without its skull",
        everywhere=False,
    )


def _scaled(values: Any, recipe: Recipe) -> Any:
    finite = np.isfinite(values)
    known = values
    if not finite.all():
        known = values[finite]
        values = np.where(finite, values, np.float32(recipe.fill_nan or 0.0))
    low, high = recipe.window or np.percentile(known, CLIP)
    if high <= low:  # one grey everywhere: nothing to tell apart
        return np.zeros_like(values)
    return np.clip((values - np.float32(low)) / np.float32(high - low), 0.0, 1.0, dtype=np.float32)


def _load(path: Path) -> Any:
    import nibabel

    return nibabel.load(path)


def _header(path: Path) -> tuple[tuple[int, ...], Any]:
    try:
        loaded = _load(path)
        shape, affine = tuple(int(side) for side in loaded.shape), np.asarray(loaded.affine, dtype=float)
    except Exception as error:  # nibabel raises ImageFileError, OSError, zlib.error, struct.error, ValueError...
        raise _corrupt(path, error) from None
    if not np.isfinite(affine).all() or np.linalg.det(affine[:3, :3]) == 0 or min(shape, default=0) < 1:
        raise _corrupt(path, ValueError(f"shape {_spelled(shape)}, affine {_numbers(affine)}"))
    return shape, affine


def _voxels(path: Path) -> tuple[Any, Any]:
    try:
        loaded = _load(path)
        needed = math.prod(loaded.shape) * _VOXEL_BYTES
        if needed > _memory_bytes():  # a small compressed file may say and hold anything
            raise ValueError(
                f"its {_spelled(loaded.shape)} voxels take {needed / 2**30:.0f} GiB, more than the machine has"
            )
        voxels = np.asanyarray(loaded.dataobj)
        if voxels.dtype.kind not in "uif":
            raise ValueError(f"voxels of type {voxels.dtype}")
    except Exception as error:  # see above
        raise _corrupt(path, error) from None
    return voxels, np.asarray(loaded.affine, dtype=float)


def _memory_bytes() -> int:
    """Return the memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _corrupt(path: Path, error: Exception) -> RuntimeFinding:
    return RuntimeFinding(
        "R506", f"{path} cannot be decoded", f"{type(error).__name__}: {error}", SKIP_HELP, everywhere=False
    )


def _order(affine: Any) -> list[int]:
    """Return the axes of the file that become superior, anterior and right."""
    from nibabel.orientations import io_orientation

    toward = io_orientation(affine)[:, 0].tolist()  # of each axis of the file the world's axis nearest to it
    return [toward.index(axis) for axis in (2, 1, 0)]


def _reoriented(voxels: Any, affine: Any, order: list[int]) -> Any:
    from nibabel.orientations import io_orientation

    flips = io_orientation(affine)[:, 1]
    forward = voxels[tuple(slice(None, None, -1 if flip < 0 else 1) for flip in flips)]
    return forward.transpose(*order, *range(3, voxels.ndim))


def _save(path: Path, array: Any) -> None:
    with replacing(path, shared=True) as work, work.open("wb") as file:
        np.save(file, array)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time decode a volume. If files cannot be locked, several do the same work."""
    try:
        file = path.open("w")
    except OSError:
        yield
        return
    with file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _spelled(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _numbers(affine: Any) -> str:
    return " ".join(f"{value:g}" for value in np.ravel(affine)[:12])
