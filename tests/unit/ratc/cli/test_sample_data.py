"""`ratc sample-data`: the names of its data sets."""

from __future__ import annotations

import pytest

from ratc.cli import main, sample_data


def test_the_names_are_those_of_the_runtime():
    found = pytest.importorskip("ratc_runtime.data.sample")
    assert sample_data.NAMES == found.NAMES


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_a_name_that_is_none_is_refused_by_the_command_itself(options, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(main(["sample-data", "brains", str(tmp_path / "data"), *options]))
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "brain3d" in said
    assert "ratc_runtime" not in said
    assert not (tmp_path / "data").exists()
