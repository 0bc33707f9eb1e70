"""A folder of sample data: all of it or nothing, and recognised when it is there already."""

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
    """The sample data cannot be written; the message says why and what to do."""


@dataclass(frozen=True)
class SampleData:
    """One data set: what it is in a line, what its marker holds, its files by split and how they are made."""

    summary: str
    #: What these very data are made from; another content is another data set.
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
        """Tell whether `folder` already holds exactly this sample data."""
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
        """Write the data into `folder`; return False if they were already there.

        All or nothing: the files are made in a folder beside and renamed. Raises SampleDataError if the folder
        holds something else or cannot be written.
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
    """Write JSON, the same bytes for the same content."""
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
