"""The sample data `digits`: handwritten digits in a folder for each class.

They are the 1797 of the test set of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI Machine
Learning Repository, 1998; CC BY 4.0), a file inside the package scikit-learn: 8 x 8 pixels of 0 to 16.
"""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path
from typing import Any

from ratc_runtime.data.sample.folder import SampleData, SampleDataError

SOURCE = "scikit-learn: Optical Recognition of Handwritten Digits, UCI, test set"
SIDE, LEVELS = 8, 16
LABELS = "labels.csv"
#: First and one past the last row of each split. They are blocks, not a random draw: rows of one writer are near one
#: another. The nearest training image has the right digit for 94.5 % of the test split, and for 98.0 to 98.8 % of three
#: random draws of as many (2026-11-28).
SPLITS = {"train": (0, 1200), "val": (1200, 1450), "test": (1450, 1797)}


def make(folder: Path) -> None:
    """Write `SPLIT/DIGIT/NUMBER.png`, 8-bit grey, NUMBER the row in the source; and `labels.csv`, which lists them."""
    import numpy as np
    from PIL import Image

    table, rows = _read(), ["path,label"]
    for split, (first, end) in SPLITS.items():
        for digit in range(10):
            (folder / split / str(digit)).mkdir(parents=True)
        for number in range(first, end):
            *values, digit = table[number].tolist()
            pixels = np.array(values).reshape(SIDE, SIDE) * 255 // LEVELS
            name = f"{split}/{digit}/{number:04d}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name, optimize=False)
            rows.append(f"{name},{digit}")
    (folder / LABELS).write_text("\n".join(rows) + "\n", encoding="ascii")


def _read() -> Any:
    """Return the table (1797, 65), int: pixels row by row, and the digit.

    Raises SampleDataError if scikit-learn is not installed, or no longer has the file.
    """
    import numpy as np

    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise SampleDataError("the package scikit-learn is not installed; it comes with nilearn, in the runtime extra")
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise SampleDataError(f"this version of scikit-learn has no {path.name}; install scikit-learn 1.9")
    # Without importing scikit-learn, which takes a second.
    with gzip.open(path, "rt", encoding="ascii") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float64).astype(np.int64)
    if table.shape != (SPLITS["test"][1], SIDE * SIDE + 1) or table.min() < 0 or table[:, :-1].max() > LEVELS:
        raise SampleDataError(f"{path} holds other data than these digits; install scikit-learn 1.9")
    return table


SAMPLE = SampleData(
    summary="1797 handwritten digits of 8 x 8 pixels, in a folder for each class",
    marker={"sample_data": "digits", "source": SOURCE, "splits": {name: list(ends) for name, ends in SPLITS.items()}},
    counts={split: end - first for split, (first, end) in SPLITS.items()},
    files=(LABELS,),
    make=make,
    table=LABELS,
)
