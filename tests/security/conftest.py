"""Fixtures of tests that call a command."""

import pytest

from ratc.cli import main


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch):
    """Work in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def ratc(capsys):
    """Runs a command in this process; returns status, stdout and stderr. No bad input may look like a bug of ratc."""

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert "internal error" not in err
        assert "Span(" not in err, "an object of the program is printed"
        return status, out, err

    return run


@pytest.fixture
def refused(ratc):
    """Runs a command that must fail with a code and with no data on stdout, soon; returns what it says."""

    def run(code: str, *arguments: str) -> str:
        status, out, err = ratc(*arguments)
        assert (status, out) == (1, "")
        assert f"[{code}]" in err
        return err

    return run
