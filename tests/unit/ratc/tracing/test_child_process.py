"""The limits of a tracing process: CPU time, idle time and wall time."""

import sys
import time

import pytest

from ratc.tracing import child_process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

PROGRAMS = {
    "spins": "while True: pass",
    # The processor time of two children together, one of which has ended.
    "forks": "import os, time\n"
    "def spin(s):\n    end = time.process_time() + s\n    while time.process_time() < end: pass\n"
    "for s in (0.6, 60):\n    child = os.fork()\n    if not child:\n        spin(s)\n        os._exit(0)\n"
    "    if s < 60: os.waitpid(child, 0)\n"
    "time.sleep(600)",
    "sleeps": "import time\ntime.sleep(600)",
    "reads": "import sys, pathlib\npathlib.Path(sys.argv[1]).write_text(sys.stdin.read())",
    # Never used more of the processor than the limit, though it took longer than that by the clock.
    "slow": "import sys, time\ntime.sleep(2.5)\nopen(sys.argv[1], 'w').write('done')",
}


@pytest.fixture(params=["cold", "warm"])
def run_child(tmp_path, monkeypatch, request):
    """Run a program under limits, in an interpreter of its own or in one with torch; the message and the help of what
    it met, and the seconds that it took.
    """
    for name, text in PROGRAMS.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run(name, **limits):
        start = time.monotonic()
        work = child_process.Work(name, "tracing", "R315", warm=request.param == "warm")
        output = str(tmp_path / "out")
        found = child_process.run(
            work, {"asked": 1}, str(tmp_path), str(tmp_path), output, lambda _: None, child_process.Limits(**limits)
        )
        return found, time.monotonic() - start

    return run


@pytest.mark.parametrize("name", ["spins", "forks"])
def test_cpu_time_limit_counts_all_child_processes(run_child, name):
    found, _ = run_child(name, cpu_s=1, idle_s=300, wall_s=300)
    assert (found.code, found.message) == ("R315", "tracing the model took more than 1 s of processor time")
    assert found.helps == (child_process.WITHOUT,)


def test_idle_process_is_killed_at_the_idle_limit(run_child):
    found, took = run_child("sleeps", cpu_s=60, idle_s=1.5, wall_s=300)
    assert found.message.startswith("tracing the model has done nothing for 1.5 s")
    assert took < 60


def test_process_is_killed_at_the_wall_time_limit(run_child):
    found, _ = run_child("spins", wall_s=1)
    assert found.message == "tracing the model did not end within 1 s"


def test_slow_process_within_its_cpu_limit_completes(run_child, tmp_path):
    assert run_child("slow", cpu_s=2, idle_s=60, wall_s=300)[0] is None
    assert (tmp_path / "out").read_text() == "done"


def test_child_process_receives_the_whole_request(run_child, tmp_path):
    assert run_child("reads")[0] is None
    assert (tmp_path / "out").read_text() == '{"asked": 1}'


def test_missing_fork_server_falls_back_to_a_new_interpreter(tmp_path, monkeypatch):
    def gone(*_):
        raise BrokenPipeError

    (tmp_path / "reads.py").write_text(PROGRAMS["reads"])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(child_process.warm, "start", gone)
    work = child_process.Work("reads", "tracing", "R315", warm=True)
    place, output = str(tmp_path), str(tmp_path / "out")
    assert child_process.run(work, {"asked": 1}, place, place, output, lambda _: None, child_process.Limits()) is None
    assert (tmp_path / "out").read_text() == '{"asked": 1}'
