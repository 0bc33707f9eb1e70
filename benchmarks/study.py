"""What a study costs beside its trials: `ratc tune` without and with Ray, against running the trials' scripts by hand.

The same trials of the brain images, one after the other, in turns; every time is a whole one, compilation and outcome
with it. By hand the scripts are compiled already. The machine must be quiet: a trial takes every core it has.
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
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STUDY = """
tuning:
  backend: BACKEND
  search_space: {learning_rate: {range: [1e-3, 1e-2], scale: log}}
  trials: TRIALS
  max_parallel: 1
"""


def run(words: list[str], folder: Path) -> float:
    """The time of a process, which must end well."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}", "RATC_PYTHON": sys.executable}
    began = time.perf_counter()
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return time.perf_counter() - began


def spec(folder: Path, backend: str, trials: int) -> Path:
    """The study of the brain images with so many trials."""
    text = (ROOT / "specs/brain_tuning/config.yaml").read_text().split("tuning:")[0]
    path = folder / f"{backend}.yaml"
    path.write_text(
        text.replace("experiment_name: brain_tuning", f"experiment_name: {backend}")
        + STUDY.replace("BACKEND", backend).replace("TRIALS", str(trials))
    )
    return path


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "study"
        folder.mkdir()
        made = [sys.executable, "-m", "ratc_runtime.data.sample", "--", "brain", str(Path(scratch) / "brain/data")]
        run(made, folder)
        specs = {backend: spec(folder, backend, arguments.trials) for backend in ("array", "ray")}
        times: dict[str, list[float]] = {"by hand": [], "array": [], "ray": []}
        for _ in range(arguments.rounds):
            for backend, path in specs.items():
                shutil.rmtree(folder / "outputs", ignore_errors=True)
                times[backend].append(run([sys.executable, "-m", "ratc", "tune", str(path)], folder))
                scripts = sorted((folder / f"outputs/{backend}/study/trials").glob("*/run.sh"))
            for output in (folder / "outputs/ray").iterdir():
                if output.name != "study":
                    shutil.rmtree(output)
            times["by hand"].append(sum(run([str(script)], folder) for script in scripts))
    print(f"{arguments.trials} trials, one at a time; {arguments.rounds} rounds, medians\n")
    print("| | a trial | beside the script | x by hand |\n| --- | --- | --- | --- |")
    hand = statistics.median(times["by hand"]) / arguments.trials
    for name, found in times.items():
        each = statistics.median(found) / arguments.trials
        print(f"| {name} | {each:.2f} s | {each - hand:+.2f} s | {each / hand:.2f} |")


if __name__ == "__main__":
    main()
