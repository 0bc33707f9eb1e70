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
        ["true && \\"],
        ["shopt -s extglob; echo !(keep)"],
        ["# extglob is off", "echo !(keep)"],
        ["if true; then", "shopt -s extglob", "echo !(keep)", "fi"],
        ["shopt -u extglob", "echo !(keep)"],
        ["shopt -s extglob", "shopt -u extglob", "echo !(keep)"],
        ["shopt -s extglob", "echo 'a"],
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
        ["echo a # C:\\"],
        ["shopt -s extglob", "rm -f !(keep)"],
        ["shopt -s nullglob extglob globstar", "rm -f !(keep)", "shopt -u extglob", "echo a"],
        ["if true; then", "shopt -s extglob", "fi", "echo a"],
        ["shopt -s extglob  # patterns", "echo !(keep)"],
        ["shopt -s extglob && true", "echo !(keep)"],
        ["shopt -qs extglob 2>/dev/null || true;", "echo !(keep)"],
        ['if [ -n "$BASH_VERSION" ]; then', "shopt -s extglob", "fi", "for a in b; do", "echo !(keep)", "done"],
        ["on() { shopt -s extglob; }", "on", "echo !(keep)"],
        ["export A=1 \\"],
        ["export A=1 \\", "B=2"],
    ],
)
def test_whole_commands_are_read(lines):
    assert read_shell(Value(lines, "spec")) == ()


def test_the_words_of_bash_do_not_depend_on_the_environment(monkeypatch, tmp_path):
    (tmp_path / "rc").write_text("echo read >&2\n")
    for name, value in (("LC_ALL", "xx_XX.UTF-8"), ("SHELLOPTS", "verbose"), ("BASH_ENV", str(tmp_path / "rc"))):
        monkeypatch.setenv(name, value)
    assert read_shell(Value(["ulimit -n 4096", "echo ö"], "spec")) == ()


def test_without_bash_nothing_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    [found] = read_shell(Value(["echo 'a"], "spec"))
    assert (found.code, found.severity.value) == ("R407", "warning")
