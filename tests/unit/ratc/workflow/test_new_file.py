"""New files: never overwritten without `--force`, and written whole or not at all."""

from pathlib import Path

from ratc.workflow import new_file


def test_existing_file_is_overwritten_only_with_force(tmp_path: Path) -> None:
    path = tmp_path / "below" / "a.yaml"
    assert new_file.write(str(path), "one", force=False) is None
    refused = new_file.write(str(path), "two", force=False, otherwise="name another file, or ")
    assert refused is not None
    assert (refused.code, refused.helps) == ("R403", ("name another file, or use `--force` to overwrite it",))
    assert path.read_text() == "one"
    assert new_file.there(str(path), force=True) is None
    assert new_file.write(str(path), "two", force=True) is None
    assert path.read_text() == "two"


def test_dangling_symlink_counts_as_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert new_file.there(str(tmp_path / "link"), force=False) is not None
    assert new_file.write(str(tmp_path / "link"), "x", force=False) is not None
    assert not (tmp_path / "gone").exists()


def test_file_in_place_of_a_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for force in (False, True):
        refused = new_file.write(str(tmp_path / "file" / "a.yaml"), "x", force)
        assert refused is not None
        assert refused.message.startswith("cannot write")
