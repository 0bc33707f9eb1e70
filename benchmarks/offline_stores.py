"""What the trackers' own stores keep of a run that is killed: `python benchmarks/offline_stores.py`.

A process logs points as fast as it can, and is killed with its children by SIGKILL as soon as the last call has
returned. Counted are the points that can be read afterwards, and what a call cost the process that trains.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "runtime"), str(ROOT)]

#: What each process runs before the points, and for a point `step`.
WAYS = {
    "the journal, written at each point": (
        "from ratc_runtime.tracking.journal import Journal; journal = Journal(folder / 'j')",
        "journal.append([{'kind': 'metrics', 'step': step, 'time': 0, 'values': {'loss': 1.0}}])",
    ),
    "MLflow, SQLite": (
        "import mlflow; mlflow.set_tracking_uri(f'sqlite:///{folder}/m.db'); mlflow.start_run()",
        "mlflow.log_metric('loss', 1.0, step)",
    ),
    "MLflow, SQLite, asynchronous": (
        "import mlflow; mlflow.set_tracking_uri(f'sqlite:///{folder}/m.db'); mlflow.start_run()",
        "mlflow.log_metric('loss', 1.0, step, synchronous=False)",
    ),
    "Weights & Biases, offline": (
        "import wandb; run = wandb.init(project='p', mode='offline', dir=str(folder))",
        "run.log({'loss': 1.0}, step=step)",
    ),
}
CODE = """
import os, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
{prepare}
begun = time.perf_counter()
for step in range(1, int(sys.argv[2]) + 1):
    {log}
print("done", (time.perf_counter() - begun) / int(sys.argv[2]), flush=True)
time.sleep(60)
"""


def points(folder: Path) -> int:
    """How many points lie in a folder, in whatever store."""
    if (folder / "j.jsonl").exists():
        return len((folder / "j.jsonl").read_text().splitlines())
    if (folder / "m.db").exists():
        import sqlite3

        return int(sqlite3.connect(folder / "m.db").execute("select count(*) from metrics").fetchone()[0])
    from tests.unit.ratc_runtime.tracking.test_wandb import wandb_curve

    return sum(len(wandb_curve(file, "loss")) for file in folder.glob("wandb/offline-run-*/run-*.wandb"))


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=200)
    options = parser.parse_args()
    quiet = {"WANDB_SILENT": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}
    environment = {**os.environ, **quiet, "PYTHONPATH": str(ROOT / "runtime")}
    print("| store | kept after a kill | a call, ms |\n| --- | --- | --- |")
    for name, (prepare, log) in WAYS.items():
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
            command = [sys.executable, "-c", CODE.format(prepare=prepare, log=log), place, str(options.points)]
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=place,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
            assert process.stdout is not None
            seconds = next(float(line.split()[1]) for line in process.stdout if line.startswith("done "))
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            print(f"| {name} | {points(Path(place))} of {options.points} | {1000 * seconds:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
