"""How long `ratc validate`, `ratc compile` and preflight take, as ratios to a bare Python and to hydra: `make bench`.

Each command is a whole process; the commands take turns, so that a machine's moods meet all of them. `hydra --cfg job`
composes a configuration of the same keys from the same spec and prints it, which is its part of the same work.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

SPEC = Path(__file__).parent.parent / "specs" / "brain" / "config.yaml"
HYDRA = """import hydra

@hydra.main(version_base=None, config_path=".", config_name="config")
def main(cfg):
    pass

main()
"""


def commands(folder: Path) -> dict[str, list[str]]:
    """The commands to time. The spec's artifacts are there already, as they are in a repository."""
    spec = folder / "config.yaml"
    shutil.copy(SPEC, spec)
    ratc = [sys.executable, "-m", "ratc"]
    subprocess.run([*ratc, "sample-data", "brain", folder / "data"], check=True, capture_output=True)
    subprocess.run([*ratc, "compile", spec], check=True, capture_output=True)
    lock = folder / "compiled" / "brain" / "local" / "lock.yaml"
    timed = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "ratc validate": [*ratc, "validate", str(spec)],
        "ratc compile --check": [*ratc, "compile", str(spec), "--check"],
        "ratc compile (unchanged)": [*ratc, "compile", str(spec)],
        "ratc compile -o (new files)": [*ratc, "compile", str(spec), "-o", str(folder / "new")],
        "preflight": [sys.executable, "-m", "ratc_runtime.preflight", str(lock), f"--data-dir={folder / 'data'}"],
    }
    if find_spec("hydra"):
        (folder / "hydra_main.py").write_text(HYDRA)
        timed["hydra --cfg job"] = [sys.executable, str(folder / "hydra_main.py"), "--cfg", "job"]
    return timed


def measure(timed: dict[str, list[str]], runs: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of each run, by command; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for turn in range(runs + 1):
        for name, command in timed.items():
            shutil.rmtree(folder / "new", ignore_errors=True)
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, cwd=folder)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def table(seconds: dict[str, list[float]]) -> str:
    """Markdown: the median of each, and its ratio to the two peers."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    bare, hydra = medians["python -c pass"], medians.get("hydra --cfg job")
    rows = ["| command | median ms | min to max | x bare python | x hydra |", "| --- | --- | --- | --- | --- |"]
    for name, values in seconds.items():
        peer = f"{medians[name] / hydra:.2f}" if hydra else "not installed"
        spread = f"{min(values) * 1000:.0f} to {max(values) * 1000:.0f}"
        rows.append(f"| `{name}` | {medians[name] * 1000:.0f} | {spread} | {medians[name] / bare:.1f} | {peer} |")
    return "\n".join(rows)


def main() -> int:
    """Print the table and what it was measured with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="counted runs of each command")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        print(table(measure(commands(folder), runs, folder)))
    peer = f", hydra-core {version('hydra-core')}" if find_spec("hydra") else ""
    print(f"\nPython {sys.version.split()[0]}, {os.cpu_count()} cores{peer}; {runs} runs of each, in turn.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
