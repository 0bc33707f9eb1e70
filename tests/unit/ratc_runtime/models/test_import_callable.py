"""Callables that a lock names, called with arguments of its own."""

import pytest
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models.import_callable import build, call

# Each is also the name of a parameter somewhere between the lock and the callable.
NAMES = ("name", "role", "target", "own", "config_class", "model_class", "self")


@pytest.mark.parametrize("name", NAMES)
def test_an_own_argument_may_have_any_name(name):
    assert call("loss", "own:loss", lambda **given: given, {name: 1}) == {name: 1}


def test_an_argument_that_ratc_passes_cannot_be_given(tmp_path, monkeypatch):
    (tmp_path / "given_twice.py").write_text("def cells(data_dir, split):\n    return [split]\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeFinding, match="dataset given_twice:cells cannot have an argument `split` of its own"):
        build("dataset", "given_twice:cells", {"split": "all"}, data_dir="data", split="train")
