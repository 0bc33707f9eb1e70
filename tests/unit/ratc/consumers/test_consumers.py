"""What bash says of a spec's lines of shell."""

import pytest

from ratc.consumers import read_shell
from ratc.plan import Value


@pytest.mark.parametrize(
    "lines",
    [
        ["echo 'a"],
        ['echo "a', "b"],
        ["echo $(ls"],
        ["if true; then", "ulimit -n 4096"],
        ["fi"],
        ["a=(1"],
        ["cat <<EOF", "a"],
        ["export A=1 \\"],
        ["export A=1 \\", ""],
    ],
)
def test_r407_for_lines_that_would_swallow_those_of_the_script(lines):
    found = read_shell(Value(lines, "spec"))
    assert [item.code for item in found] == ["R407"]
    assert found[0].notes[0]


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["", " "],
        ["echo 'a", "b'"],
        ["if true; then", "ulimit -n 4096", "fi"],
        ["cat <<EOF", "a", "EOF"],
        ["echo 'a\\\\' \\\\"],
        ["# no more \\"],
        ["export A=1 \\", "B=2"],
    ],
)
def test_whole_commands_are_read(lines):
    assert read_shell(Value(lines, "spec")) == ()
