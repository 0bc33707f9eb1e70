"""A folder of sample data, written completely or not at all, and recognised if it already exists."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Written last: its presence says that the folder is complete.
MARKER = "sample-data.json"


class SampleDataError(Exception):
    """The sample data cannot be written. The message has the reason and the remedy."""


@dataclass(frozen=True)
class SampleData:
    """One data set: its summary in a line, the content of its marker, its files by split, and their function."""

    summary: str
    #: The source of the data; another content is another data set.
    marker: Mapping[str, Any]
    #: Samples in each split.
    counts: Mapping[str, int]
    #: Paths below the folder, beside the marker.
    files: tuple[str, ...]
    #: Writes `files` into an empty folder.
    make: Callable[[Path], None]
    #: One of `files`, CSV, whose column `path` names further ones; None if there are none.
    table: str | None = None

    def is_complete(self, folder: Path) -> bool:
        """Return whether `folder` already holds exactly this sample data."""
        try:
            if json.loads((folder / MARKER).read_bytes()) != self.marker:
                return False
            return all((folder / name).is_file() for name in self.files) and self._has_listed(folder)
        except (OSError, ValueError, KeyError, csv.Error):
            return False

    def _has_listed(self, folder: Path) -> bool:
        if self.table is None:
            return True
        with (folder / self.table).open(encoding="utf-8", newline="") as file:
            listed = [row["path"] for row in csv.DictReader(file)]
        return len(listed) == sum(self.counts.values()) and all((folder / name).is_file() for name in listed)

    def write(self, folder: Path) -> bool:
        """Write the data into `folder`; return False if they already exist.

        The files are made in a temporary folder, which is renamed. Raises SampleDataError if `folder` holds something
        else or cannot be written.
        """
        if self.is_complete(folder):
            return False
        try:
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise SampleDataError(f"{folder} is not empty and not this sample data; name another folder")
            folder.parent.mkdir(parents=True, exist_ok=True)
            work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        except OSError as error:
            raise SampleDataError(f"cannot write {folder}: {error.strerror or error}") from None
        try:
            self.make(work)
            write_json(work / MARKER, self.marker)
            work.chmod(0o755)
            os.replace(work, folder)
        except OSError as error:
            raise SampleDataError(f"cannot write {folder}: {error.strerror or error}") from None
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return True


def write_json(path: Path, content: Any) -> None:
    """Write JSON, with equal bytes for equal content."""
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
