"""The checker of LSF scripts: it refuses known errors with the expected reason, and accepts a valid script."""

from pathlib import Path

import pytest

from tests.cluster.lsf.grammar import problems

HERE = Path(__file__).parent
WRONG = sorted((HERE / "wrong").glob("*.lsf"))


def test_a_valid_script_has_no_problems():
    assert problems((HERE / "right.lsf").read_text()) == []


def test_at_least_twenty_invalid_scripts_exist():
    assert len(WRONG) >= 20


@pytest.mark.parametrize("path", WRONG, ids=lambda path: path.stem)
def test_an_invalid_script_is_refused_for_the_expected_reason(path):
    text = path.read_text()
    expected = text.splitlines()[1].removeprefix("# Wrong: ")
    found = problems(text)
    assert len(found) == 1, found
    assert expected in found[0]
