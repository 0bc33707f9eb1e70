"""The MNI152 volumes that are files inside the `nilearn` package."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from ratc_runtime.data.sample.folder import SampleDataError

VOLUMES = {
    "T1": "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
    "white matter": "mni_icbm152_wm_tal_nlin_sym_09a_converted.nii.gz",
    "grey matter": "mni_icbm152_gm_tal_nlin_sym_09a_converted.nii.gz",
}


def read(name: str) -> tuple[Any, Any]:
    """Return voxels (right, anterior, superior) of 1 mm, as stored, and the affine to world coordinates in mm.

    Raises SampleDataError if nilearn is not installed, or no longer has the file.
    """
    spec = importlib.util.find_spec("nilearn")
    if spec is None or not spec.submodule_search_locations:
        raise SampleDataError("the package nilearn is not installed; it is part of the runtime extra")
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / VOLUMES[name]
    if not path.is_file():
        raise SampleDataError(f"this version of nilearn has no {path.name}; install nilearn 0.14")
    # Read with nibabel alone: importing nilearn takes seconds, and its loaders rescale.
    import nibabel
    import numpy as np

    loaded: Any = nibabel.load(path)
    return np.asarray(loaded.dataobj), loaded.affine
