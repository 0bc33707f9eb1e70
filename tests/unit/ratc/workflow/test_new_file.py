"""A file of the user's own is not written over by accident, and is there whole or not at all."""

from pathlib import Path

from ratc.workflow import new_file


def test_what_is_there_stays_unless_it_may_go(tmp_path: Path) -> None:
    path = tmp_path / "below" / "a.yaml"
    assert new_file.write(str(path), "one", force=False) is None
    refused = new_file.write(str(path), "two", force=False, otherwise="name another file, or ")
    assert refused is not None
    assert (refused.code, refused.helps) == ("R403", ("name another file, or use `--force` to overwrite it",))
    assert path.read_text() == "one"
    assert new_file.there(str(path), force=True) is None
    assert new_file.write(str(path), "two", force=True) is None
    assert path.read_text() == "two"


def test_a_link_that_leads_nowhere_is_there_too(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert new_file.there(str(tmp_path / "link"), force=False) is not None
    assert new_file.write(str(tmp_path / "link"), "x", force=False) is not None
    assert not (tmp_path / "gone").exists()


def test_a_file_in_place_of_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for force in (False, True):
        refused = new_file.write(str(tmp_path / "file" / "a.yaml"), "x", force)
        assert refused is not None
        assert refused.message.startswith("cannot write")
