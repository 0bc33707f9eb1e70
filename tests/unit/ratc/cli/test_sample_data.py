"""`ratc sample-data`: the names of its data sets."""

from __future__ import annotations

import pytest

from ratc.cli import main, sample_data


def test_compiler_and_runtime_have_the_same_data_set_names():
    found = pytest.importorskip("ratc_runtime.data.sample")
    assert sample_data.NAMES == found.NAMES


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_unknown_data_set_is_refused_before_the_runtime_starts(options, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        raise SystemExit(main(["sample-data", "brains", str(tmp_path / "data"), *options]))
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "brain3d" in said
    assert "ratc_runtime" not in said
    assert not (tmp_path / "data").exists()
