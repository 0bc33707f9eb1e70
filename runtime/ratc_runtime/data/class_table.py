"""Images in a table: a CSV file with the columns `path` and `label`, and `split` if the paths do not say it."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ratc_runtime.config.yaml_file import open_regular
from ratc_runtime.data.folders import SKIP_HELP, SPLITS
from ratc_runtime.data.labelled import Labelled, numbered
from ratc_runtime.data.near import is_possible, listed, nearest, shown
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.output.sizes import counted

FILE = "labels.csv"
FORM = "the first line is `path,label,split`; each further line is an image, such as `images/a.png,cat,train`"
#: Bytes of the largest table that is read: 20 million rows.
MOST_BYTES = 2**30


class Row(NamedTuple):
    """One image: its path below the data folder, its class, its split, and the line of the file."""

    path: str
    label: str
    split: str
    line: int


class ClassTable(Labelled):
    """The images of one split, listed in a CSV file in the data folder.

    Without a column `split`, the first folder of each path is the split: `train/a.png`. Other columns are not read. The
    classes of all splits are numbered together (`labelled.numbered`). Raises R506 naming the line of a row that cannot
    be used, or an image that is not there (with `skip_missing`, these are left out and listed in `missing`); R539 and
    R591 for other classes than the lock's.
    """

    def __init__(
        self,
        data_dir: Path,
        split: str,
        image_size: tuple[int, int],
        channels: int = 3,
        scales: tuple[float, ...] = (1.0,),
        skip_missing: bool = False,
        num_classes: int = 2,
        classes: Any = None,
        file: str = FILE,
    ) -> None:
        data_dir = Path(data_dir)
        if not isinstance(file, str) or not _is_below(file):
            raise RuntimeFinding("R506", f"data.args.file is {file!r:.80}, which is not a path below the data folder")
        self._table = data_dir / file
        rows = read(self._table)
        numbers, class_names = numbered(str(self._table), {row.label for row in rows}, num_classes, classes)
        own = [row for row in rows if row.split == split]
        if not own:
            raise RuntimeFinding("R506", f"{self._table} has no image of split {split}", help=FORM)
        self.missing: list[str] = []
        there: list[Row] = []
        known: dict[Path, set[str]] = {}
        for row in own:
            path = data_dir / row.path
            # One listing of a folder instead of a stat per name: data sets lie on network file systems.
            if path.parent not in known:
                known[path.parent] = set(listed(path.parent))
            if path.name in known[path.parent] or path.is_file():
                there.append(row)
            elif skip_missing:
                self.missing.append(row.path)
            else:
                raise _missing(self._table, row, path, known[path.parent])
        super().__init__(
            "csv",
            image_size,
            channels,
            scales,
            [data_dir / row.path for row in there],
            [numbers[row.label] for row in there],
            [row.path for row in there],
            class_names,
        )

    def files(self, index: int) -> tuple[Path, ...]:
        """Return the files that one sample is made from: image and table."""
        return (*super().files(index), self._table)


def read(path: Path) -> list[Row]:
    """Return the rows of a table; raise R506 naming the line of one that cannot be used."""
    table = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    found: dict[str, Row] = {}
    try:
        header = [cell.strip() for cell in next(table, [])]
        columns = _columns(path, header)
        for cells in table:
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise _wrong(
                    path, table.line_num, f"has {counted(len(cells), 'cell')}, the first line has {len(header)}"
                )
            row = _row(path, table.line_num, [cells[column].strip() if column >= 0 else "" for column in columns])
            if row.path in found:
                raise _wrong(path, row.line, f"lists {shown(row.path)}, as line {found[row.path].line} does")
            found[row.path] = row
    except csv.Error as error:
        raise _wrong(path, table.line_num, f"is not CSV: {error}") from None
    if not found:
        raise RuntimeFinding("R506", f"{path} lists no image", help=FORM)
    return list(found.values())


def _text(path: Path) -> str:
    try:
        with open_regular(path) as file:
            raw = file.read(MOST_BYTES + 1)
    except (OSError, ValueError, MemoryError) as error:
        note = getattr(error, "strerror", None) or str(error) or "it does not fit into memory"
        helps = f"{FORM}; `data.args: {{file: NAME}}` names another file of the data folder"
        raise RuntimeFinding("R506", f"{path} cannot be read", note, helps) from None
    if len(raw) > MOST_BYTES:
        raise RuntimeFinding("R506", f"{path} is too large to be read", f"more than {MOST_BYTES:,} bytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RuntimeFinding("R506", f"{path} is not UTF-8 text", str(error), "save it as CSV in UTF-8") from None


def _columns(path: Path, header: list[str]) -> tuple[int, int, int]:
    """Return where path, label and split stand; -1 if there is no split."""
    absent = [name for name in ("path", "label") if name not in header]
    if absent:
        separated = len(header) == 1 and re.search(r"[;\t|]", header[0])
        note = f"it has {', '.join(shown(name) for name in header[:10]) or 'nothing'}"
        helps = "separate the columns by commas" if separated else FORM
        raise RuntimeFinding("R506", f"{path} has no column `{absent[0]}` in its first line", note, helps)
    twice = next((name for name in ("path", "label", "split") if header.count(name) > 1), None)
    if twice is not None:
        raise RuntimeFinding("R506", f"{path} has the column `{twice}` twice in its first line")
    return header.index("path"), header.index("label"), header.index("split") if "split" in header else -1


def _row(path: Path, line: int, cells: list[str]) -> Row:
    name, label, split = cells
    if not _is_below(name):
        raise _wrong(path, line, f"has the path {shown(name)!r}, which is not a path below the data folder")
    name = str(PurePosixPath(name))
    if not label:
        raise _wrong(path, line, "has no label")
    if not split:
        split = PurePosixPath(name).parts[0]
        if split not in SPLITS:
            raise _wrong(
                path,
                line,
                f"says no split: {shown(name)} begins with none of train/, val/ and test/, and `split` is empty",
            )
    if split not in SPLITS:
        raise _wrong(path, line, f"has the split {shown(split)}, expected train, val or test")
    return Row(name, label, split, line)


def _is_below(name: str) -> bool:
    return bool(name) and not name.startswith("/") and ".." not in re.split(r"[/\\]", name) and is_possible(name)


def _wrong(path: Path, line: int, words: str) -> RuntimeFinding:
    return RuntimeFinding("R506", f"{path}:{line} {words}", help=FORM)


def _missing(table: Path, row: Row, path: Path, names: set[str]) -> RuntimeFinding:
    """Return R506 for an image that is not there, with the file that is nearly called so, if there is one."""
    near = nearest(path.name, names)
    note, helps = "", SKIP_HELP
    if near is not None:
        note = f"{shown(str(path.parent / near[0]))} is there, {near[1]}"
        helps = "write the path as the file is called, or rename the file, and do the same for every such name"
    elif "\\" in row.path:
        helps = "write `/` instead of `\\` in every path"
    return RuntimeFinding("R506", f"{table}:{row.line} names {shown(row.path)}, which does not exist", note, helps)
