"""Points of a sweep that `ratc compile` checks, resolves and writes in a second: `make bench`.

Whole processes on a Slurm target, each compiling into an empty folder. The floor is what it takes to write as many
files of that size in the same way (beside their place, renamed, the disk asked to keep them) with nothing worked out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SPEC = """experiment_name: sweep
data: {{data_dir: data}}
training: {{batch_size: 8}}
resources: {{cluster: ./cluster.yaml, num_gpus: 0, walltime: "10:00"}}
sweep:
  grid: {{seed: [{seeds}], training.learning_rate: [1.0e-4, 2.0e-4, 3.0e-4, 4.0e-4, 5.0e-4]}}
  max_parallel: 50
"""
CLUSTER = """name: bench
scheduler: slurm
node_types:
  cpu: {gpus_per_node: 0, cpus: 32, memory: 128GB}
partitions:
  batch: {nodes: {cpu: 10}, default: true, max_walltime: "2-00:00:00"}
"""


def compile_points(many: int, folder: Path) -> float:
    """Seconds of one compilation of that many points (a multiple of five)."""
    (folder / "cluster.yaml").write_text(CLUSTER)
    (folder / "spec.yaml").write_text(SPEC.format(seeds=", ".join(map(str, range(many // 5)))))
    start = time.perf_counter()
    command = [sys.executable, "-m", "ratc", "compile", "spec.yaml", "--target", "slurm"]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    seconds = time.perf_counter() - start
    written = list(folder.glob("compiled/sweep/slurm/points/*/lock.yaml"))
    assert len(written) == many, f"{len(written)} locks instead of {many}"
    return seconds


def floor(many: int, folder: Path) -> float:
    """Seconds that writing the same files takes by itself."""
    text = b"x" * 300
    start = time.perf_counter()
    for index in range(many):
        place = folder / f"{index}"
        place.mkdir()
        with open(place / ".lock.yaml.new", "wb") as file:
            file.write(text)
        os.replace(place / ".lock.yaml.new", place / "lock.yaml")
    os.sync()
    return time.perf_counter() - start


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("points", type=int, nargs="*", default=[500, 2_000, 10_000], help="multiples of five")
    print(f"{'points':>7} {'seconds':>8} {'points/s':>9} {'x floor':>8}")
    for many in parser.parse_args().points:
        with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as bare:
            least = floor(many, Path(bare))
            seconds = compile_points(many, Path(made))
        print(f"{many:>7} {seconds:>8.2f} {many / seconds:>9.0f} {seconds / least:>8.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
