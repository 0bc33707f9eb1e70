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
ONE = "def test_one(): pass\n"
ONE_CRASH = "import os\ndef test_one(): os.abort()\n"


@pytest.mark.parametrize(
    ("workers", "files", "summary"),
    [
        pytest.param(2, [CALM, CRASH, CALM, CALM, CRASH, CALM], "2 failed, 20 passed", id="two-workers"),
        pytest.param(1, [ONE, ONE, ONE_CRASH], "1 failed, 2 passed", id="one-worker-that-gets-one-test-at-a-time"),
    ],
)
def test_crashed_worker_fails_one_test_and_the_others_run(tmp_path, workers, files, summary):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for number, content in enumerate(files):
        (tmp_path / f"test_{number}.py").write_text(content)
    options = ["-q", "-n", str(workers), "-p", "no:cacheprovider", f"--rootdir={tmp_path}"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert summary in run.stdout
    assert run.returncode == 1
