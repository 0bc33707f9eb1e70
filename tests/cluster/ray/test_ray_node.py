"""Ray in a job of one node: it is not reachable from other machines."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.effort import HANGS_S
from tests.helpers.lockfile import environment
from tests.places import ROOT

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

#: Prints the addresses on which the processes of this Ray listen, and what it computes. Another test may have started
#: a Ray, too. A process belongs to this one if it is in its session, has its port in its command, or has such a parent.
LOOK = """
import os, ray, sys
from pathlib import Path

ray.init(address=sys.argv[1], logging_level=50)
port = sys.argv[1].rpartition(":")[2]
parents, known = {}, {1: False}
for place in Path("/proc").glob("[0-9]*"):
    try:
        pid = int(place.name)
        parents[pid] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        if os.getsid(pid) == os.getsid(0) or port in (place / "cmdline").read_text():
            known[pid] = True
    except OSError:
        continue

def is_mine(pid):
    if pid not in known:
        known[pid] = pid in parents and is_mine(parents[pid])
    return known[pid]

mine = set()
for pid in filter(is_mine, parents):
    try:
        mine |= {os.readlink(link) for link in Path("/proc", str(pid), "fd").iterdir()}
    except OSError:
        continue
for table in ("tcp", "tcp6"):
    for line in Path("/proc/net", table).read_text().splitlines()[1:]:
        words = line.split()
        if words[3] == "0A" and f"socket:[{words[9]}]" in mine:
            print("LISTENS", words[1].partition(":")[0])
print("COMPUTED", ray.get(ray.remote(lambda: 6 * 7).remote()))
"""
#: 127.0.0.1 as the kernel spells it, and the same as an address of IPv6.
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}


def test_ray_on_one_node_listens_on_loopback_only(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["--rank", "0", "--head", "127.0.0.1", "--port", str(port), "--cpus", "1", "--gpus", "0"]
    words += ["--over", str(tmp_path / "over"), "--sockets", "/tmp/ratc-test", "--log", str(tmp_path / "ray.log")]
    done = subprocess.run(
        [sys.executable, "-m", "ratc.cli.ray_node", *words, "--", sys.executable, "-c", LOOK, f"127.0.0.1:{port}"],
        env={**environment(), "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}"},
        capture_output=True,
        text=True,
        timeout=HANGS_S,
        check=False,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr + (tmp_path / "ray.log").read_text()
    assert "COMPUTED 42" in done.stdout
    listening = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("LISTENS")]
    assert len(listening) >= 3
    assert set(listening) <= LOOPBACK
