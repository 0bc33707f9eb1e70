"""The checker of LSF scripts refuses what is known to be wrong, for the reason expected, and takes a right script."""

from pathlib import Path

import pytest

from tests.cluster.lsf.grammar import problems

HERE = Path(__file__).parent
WRONG = sorted((HERE / "wrong").glob("*.lsf"))


def test_a_right_script_has_no_problems():
    assert problems((HERE / "right.lsf").read_text()) == []


def test_there_are_wrong_scripts():
    assert len(WRONG) >= 20


@pytest.mark.parametrize("path", WRONG, ids=lambda path: path.stem)
def test_a_wrong_script_is_refused_for_its_reason(path):
    text = path.read_text()
    expected = text.splitlines()[1].removeprefix("# Wrong: ")
    found = problems(text)
    assert len(found) == 1, found
    assert expected in found[0]
