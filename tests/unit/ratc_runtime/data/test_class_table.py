"""Images in a table: its rows, its splits, and invalid entries."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from ratc_runtime.data.class_table import SPLITS, ClassTable, Row, read
from ratc_runtime.data.sources import open_split
from ratc_runtime.errors import RuntimeFinding

from tests.unit.ratc_runtime.tasks.classification.test_classification import lock_of


def table(folder: Path, text: str, *images: str, name: str = "labels.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (6, 4), 90).save(folder / image)
    path = folder / name
    path.write_bytes(text.encode("utf-8"))
    return path


def test_rows_are_read_by_column_name_and_classes_numbered_over_splits(tmp_path: Path) -> None:
    # As a spreadsheet saves it: a byte order mark, carriage returns, quotes, an empty line, columns of its own.
    rows = (
        "\ufeffnote,label,path,split",
        'x,oak,"a, b.png",train',
        "",
        ",ash,c.png,val",
        '"2\nlines",oak,./d//e.png,train',
    )
    text = "".join(f"{row}\r\n" for row in rows)
    table(tmp_path, text, "a, b.png", "c.png", "d/e.png")
    train = ClassTable(tmp_path, "train", (4, 4), 1, num_classes=2)
    assert (train.names, train.class_names) == (["a, b.png", "d/e.png"], ["ash", "oak"])
    assert [int(train.target(index)) for index in range(2)] == [1, 1]
    assert int(ClassTable(tmp_path, "val", (4, 4), 1, num_classes=2)[0]["target"]) == 0
    assert train.files(0) == (tmp_path / "a, b.png", tmp_path / "labels.csv")
    with pytest.raises(RuntimeFinding, match="no image of split test"):
        ClassTable(tmp_path, "test", (4, 4), 1, num_classes=2)


def test_splits_come_from_folders_if_the_table_has_no_split(tmp_path: Path) -> None:
    table(tmp_path, "path,label\ntrain/a.png,1\nval/a.png,0\n", "train/a.png", "val/a.png")
    found = ClassTable(tmp_path, "val", (4, 4), 1, num_classes=2)
    assert (found.names, int(found.target(0)), hasattr(found, "class_names")) == (["val/a.png"], 0, False)
    table(tmp_path, "path,label,split\ntrain/a.png,1,val\nval/a.png,0,\n")
    assert ClassTable(tmp_path, "val", (4, 4), 1, num_classes=2).names == ["train/a.png", "val/a.png"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no column `path`"),
        ("path,label,split\n", "lists no image"),
        ("path;label;split\na.png;1;val\n", "has no column `path`"),
        ("file,label\n", "has no column `path`"),
        ("path,label,path\n", "the column `path` twice"),
        ("path,label,split\na.png,1\n", "labels.csv:2 has 2 cells"),
        ("path,label,split\na.png,,val\n", "labels.csv:2 has no label"),
        ("path,label,split\n,1,val\n", "labels.csv:2 has the path"),
        ("path,label,split\n/a.png,1,val\n", "not a path below the data folder"),
        ("path,label,split\nx/../../a.png,1,val\n", "not a path below the data folder"),
        ("path,label,split\na.png,1,validation\n", "the split validation"),
        ("path,label\na.png,1\n", "says no split"),
        ("path,label,split\na.png,1,val\n./a.png,0,train\n", "labels.csv:3 lists a.png, as line 2 does"),
        ('path,label,split\n"a.png,1,val\n', "is not CSV"),
        ("path,label,split\n" + "a" * 300_000 + ",1,val\n", "is not CSV"),
        ("path,label,split\nA.png,1,val\n", "labels.csv:2 names A.png, which does not exist"),
    ],
)
def test_an_invalid_table_is_refused_with_the_line(tmp_path: Path, text: str, says: str) -> None:
    table(tmp_path, text, "a.png")
    with pytest.raises(RuntimeFinding) as raised:
        ClassTable(tmp_path, "val", (4, 4), 1, num_classes=2)
    assert raised.value.code == "R506"
    assert says in raised.value.message


def test_missing_files_and_pipes_are_not_read_as_tables(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFinding, match="cannot be read"):
        read(tmp_path / "labels.csv")
    os.mkfifo(tmp_path / "labels.csv")
    with pytest.raises(RuntimeFinding, match="cannot be read"):
        read(tmp_path / "labels.csv")
    (tmp_path / "other.csv").write_bytes(b"path,label\nb\xff.png,1\n")
    with pytest.raises(RuntimeFinding, match="not UTF-8"):
        read(tmp_path / "other.csv")
    for name in ("../labels.csv", "/etc/passwd", "", 3):
        with pytest.raises(RuntimeFinding, match="not a path below the data folder"):
            ClassTable(tmp_path, "val", (4, 4), 1, file=name)  # type: ignore[arg-type]


def test_a_missing_file_gives_a_suggestion_or_is_skipped(tmp_path: Path) -> None:
    text = "path,label,split\na.png,0,val\nB.png,1,val\nx/c.png,1,val\n"
    table(tmp_path, text, "a.png", "b.png", name="other.csv")
    with pytest.raises(RuntimeFinding) as raised:
        ClassTable(tmp_path, "val", (4, 4), 1, num_classes=2, file="other.csv")
    assert "b.png is there, with other capital letters" in raised.value.note
    found = ClassTable(tmp_path, "val", (4, 4), 1, skip_missing=True, num_classes=2, file="other.csv")
    assert (found.names, found.missing) == (["a.png"], ["B.png", "x/c.png"])


def test_data_args_of_the_lock_set_file_and_classes(tmp_path: Path) -> None:
    table(tmp_path, "path,label,split\na.png,oak,val\n", "a.png", name="mine.csv")
    arguments = {"file": "mine.csv", "classes": ["elm", "ash", "oak"]}
    found = open_split(lock_of(data__dataset="csv", data__args=arguments), tmp_path, "val")
    assert (found.class_names, int(found.target(0))) == (["elm", "ash", "oak"], 2)


@given(
    st.lists(
        st.tuples(
            st.text("ab ,\"';é=\n", min_size=1, max_size=8).map(str.strip).filter(bool),
            st.text("xy ,\"'\n", min_size=1, max_size=5).map(str.strip).filter(bool),
            st.sampled_from(SPLITS),
        ),
        min_size=1,
        max_size=8,
        unique_by=lambda row: row[0],
    )
)
def test_a_table_of_the_csv_module_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["path", "label", "split"])
    writer.writerows(rows)
    path = table(tmp_path_factory.mktemp("table"), text.getvalue())
    assert [found[:3] for found in read(path)] == [tuple(row) for row in rows]
