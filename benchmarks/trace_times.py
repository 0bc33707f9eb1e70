"""How long a prediction of memory takes, cold and from kept traces, as ratios to floors of the same run: `make bench`.

Each is a whole process, `ratc explain SPEC training.batch_size`, without a GPU; they take turns with their floors, so
that a machine's moods meet all of them. Cold is with an empty cache, against a process that only imports torch, which a
trace cannot do without; cached is against a bare Python.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
    "python -c pass": [sys.executable, "-c", "pass"],
}
GPT = """experiment_name: gpt
model: {name: "gpt:Gpt"}
training: {target_batch_size: 64, loss: "gpt_loss:mean"}
data: {data_dir: data, image_size: 32}
"""
LOSS = "def mean():\n    return lambda output, target: output\n"
CARD = ["--facts", "a100.yaml"]
FACTS = "gpus_per_node: 1\ngpu: a100-80\ncpus: 16\n"


class Took(NamedTuple):
    """Seconds by the clock, and of processors: the second hardly feels what else the machine does."""

    wall: float
    cpu: float


def specs(folder: Path) -> dict[str, str]:
    """Write the specs; by what each is called. All leave the micro-batch open, on one A100 of 80 GB."""
    brain = (ROOT / "specs/brain/config.yaml").read_text()
    brain = re.sub(r"(?m)^  batch_size:.*\n", "", brain[: brain.index("\nresources:")] + "\n")
    document = (ROOT / "tests/cases/product-document-cpu/spec.yaml").read_text()
    (folder / "brain.yaml").write_text(brain)
    (folder / "document.yaml").write_text(document)
    (folder / "gpt.yaml").write_text(GPT)
    (folder / "compiled.yaml").write_text(GPT.replace('"gpt_loss:mean"', '"gpt_loss:mean", compile: true'))
    (folder / "gpt_loss.py").write_text(LOSS)
    (folder / "a100.yaml").write_text(FACTS)
    shutil.copy(ROOT / "benchmarks/memory/gpt.py", folder)
    return {
        "RAT, specs/brain": "brain.yaml",
        "RAT, full size": "document.yaml",
        "GPT-2-small": "gpt.yaml",
        "GPT-2-small, compiled": "compiled.yaml",
    }


def seconds(command: list[str], folder: Path) -> tuple[Took, str]:
    """How long a process and its children take, and what it said on standard error. Raises CalledProcessError where it
    fails.
    """
    environment = {**os.environ, "RATC_CACHE": str(folder / "cache"), "RATC_TRUST": "1"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder, env=environment)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Took(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime), done.stderr


def measure(folder: Path, cold_runs: int, cached_runs: int) -> tuple[dict[str, list[Took]], dict[str, int]]:
    """Seconds of each run by what was run, and how many traces each spec's prediction needs."""
    found: dict[str, list[Took]] = {}
    traces: dict[str, int] = {}
    named = specs(folder)
    commands = {
        name: [sys.executable, "-m", "ratc", "explain", spec, "training.batch_size", *CARD]
        for name, spec in named.items()
    }
    torch, bare = FLOORS
    seconds(FLOORS[torch], folder)  # the first import reads the disk
    for _ in range(cold_runs):
        found.setdefault(torch, []).append(seconds(FLOORS[torch], folder)[0])
        for name, command in commands.items():
            shutil.rmtree(folder / "cache", ignore_errors=True)
            took, said = seconds(command, folder)
            found.setdefault(f"{name}, cold", []).append(took)
            traces[name] = said.count("tracing ")
            (folder / name.replace("/", "-")).mkdir(exist_ok=True)
            shutil.copytree(folder / "cache", folder / name.replace("/", "-") / "cache", dirs_exist_ok=True)
    for name in named:
        shutil.copytree(folder / name.replace("/", "-") / "cache", folder / "cache", dirs_exist_ok=True)
    for turn in range(cached_runs + 1):
        for label, command in ((bare, FLOORS[bare]), *((f"{name}, cached", line) for name, line in commands.items())):
            took, said = seconds(command, folder)
            assert "tracing " not in said, f"{label} traced again"
            if turn:
                found.setdefault(label, []).append(took)
    return found, traces


def table(found: dict[str, list[Took]], traces: dict[str, int]) -> str:
    """Markdown: the median of each, its spread, and its ratio to its floor."""
    rows = [
        "| prediction | traces | median s | min to max | x its floor | CPU s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    torch, bare = FLOORS
    for label, values in found.items():
        floor = statistics.median(
            one.wall for one in found[bare if label == bare or label.endswith("cached") else torch]
        )
        middle, cpu = (statistics.median(part) for part in zip(*values, strict=True))
        count = traces.get(label.removesuffix(", cold"), "") if label.endswith("cold") else ""
        spread = f"{min(values).wall:.2f} to {max(values).wall:.2f}"
        name = f"`{label}`" if label in FLOORS else label
        rows.append(f"| {name} | {count} | {middle:.2f} | {spread} | {middle / floor:.1f} | {cpu:.2f} |")
    return "\n".join(rows)


def main() -> int:
    """Print the table and what it was measured with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cold", type=int, default=3, help="counted runs with an empty cache")
    parser.add_argument("--cached", type=int, default=11, help="counted runs with a full one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(table(*measure(Path(scratch), args.cold, args.cached)))
    runs = f"{args.cold} cold and {args.cached} cached runs of each"
    print(f"\nPython {sys.version.split()[0]}, {os.cpu_count()} cores; {runs}, in turn.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
