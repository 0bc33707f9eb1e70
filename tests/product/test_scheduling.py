"""How the tests are spread over workers, when one of them dies."""

import subprocess
import sys

import pytest

from tests.places import ROOT

CONFTEST = """
from tests.scheduling import Scheduling

def pytest_xdist_make_scheduler(config, log):
    return Scheduling(config, log)
"""
CALM = "import pytest, time\n@pytest.mark.parametrize('n', range(4))\ndef test_calm(n): time.sleep(0.1)\n"
CRASH = "import os\ndef test_first(): pass\ndef test_crash(): os.abort()\ndef test_last(): pass\n"


@pytest.mark.slow
def test_crashed_worker_fails_one_test_and_the_others_run(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for number in range(6):
        (tmp_path / f"test_{number}.py").write_text(CRASH if number in (1, 4) else CALM)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "2",
        "-p",
        "no:cacheprovider",
        f"--rootdir={tmp_path}",
        tmp_path,
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "2 failed, 20 passed" in run.stdout
    assert run.returncode == 1
