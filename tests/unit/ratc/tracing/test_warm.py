"""Jobs of the fork server: isolated as in an own interpreter, and killed with the process that requested them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ratc.tracing import warm
from tests.places import ROOT

SAYS = """import json, os, sys
import other
print(json.dumps([sys.argv, os.getcwd(), os.environ["RATC_WHO"], sorted(os.environ), other.name, sys.stdin.read()]))
print("parent", os.getppid(), "torch" in sys.modules, os.getsid(0) == os.getpid(), file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""
ASKER = """import sys
from ratc.tracing.child_process import warm
job = warm.start({"file": sys.argv[1]}, [], sys.argv[2], {}, {}, ("/dev/null",) * 3)
print(job.pid, flush=True)
job.wait()
"""


def alive(number: int) -> bool:
    state = Path(f"/proc/{number}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
def test_forked_jobs_have_their_own_arguments_environment_and_status(tmp_path):
    (tmp_path / "says.py").write_text(SAYS)
    parents = set()
    for name, status in (("one", 0), ("two", 3)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "other.py").write_text(f"name = {name!r}")
        (folder / "in").write_text("asked")
        streams = tuple(str(folder / file) for file in ("in", "out", "errors"))
        environment = {"RATC_WHO": name, "PYTHONPATH": f"{folder}{os.pathsep}{tmp_path}", "PATH": os.environ["PATH"]}
        job = warm.start({"module": "says"}, [str(status)], str(tmp_path), environment, {}, streams)
        assert job.wait(300) == status
        arguments, place, who, names, imported, read = json.loads((folder / "out").read_text())
        assert arguments[1:] == [str(status)]
        assert (place, who, imported, read) == (str(tmp_path), name, name, "asked")
        assert set(names) <= {"RATC_WHO", "PYTHONPATH", "PATH", "LC_CTYPE"}
        said = (folder / "errors").read_text().split()
        assert said[2:] == ["True", "True"]
        parents.add(said[1])
    assert len(parents) == 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_job_is_killed_with_the_process_that_requested_it(tmp_path):
    (tmp_path / "sleeps.py").write_text("import time\ntime.sleep(600)")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ASKER, str(tmp_path / "sleeps.py"), str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as asker:
        job = int(asker.stdout.readline())
        assert alive(job)
        asker.send_signal(signal.SIGKILL)
        asker.wait()
    for _ in range(300):
        if not alive(job):
            return
        time.sleep(0.1)
    os.kill(job, signal.SIGKILL)
    pytest.fail("the job outlived who asked for it")
