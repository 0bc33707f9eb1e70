"""The end of a process of training."""

import os
import signal
import subprocess
import sys

CODE = """from ratc_runtime import train
from ratc_runtime.errors import RuntimeFinding
print("ready", flush=True)
train.report_error(ValueError(), RuntimeFinding("R613", "no split"), None)
"""


def test_a_rank_that_prints_no_finding_ends_after_rank_0_at_the_launcher_s_signal():
    environment = {**os.environ, "RANK": "1", "WORLD_SIZE": "2"}
    process = subprocess.Popen(
        [sys.executable, "-c", CODE], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        process.wait(1)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM, errors
    assert "R613" not in errors
