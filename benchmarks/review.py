"""How long reviewing takes: `ratc diff` of two specs whose traces are kept, and `ratc check` of many compiled specs.

Whole processes, each in turn with its floor: a bare Python for diff, and for check the time that Git takes to tell the
state of the same tree. The goals: diff under 300 ms, check of 200 specs under 10 s on two cores.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Specs of so many global batches, each of which takes a decision of its own.
SPECS, KINDS, RUNS = 200, 4, 5
GPU = """experiment_name: moles-{number}
seed: {number}
model: {{name: rat, feature_dims: 64, num_blocks: 2, num_heads: 4}}
training: {{epochs: 50, target_batch_size: {batch}}}
data: {{data_dir: data, image_size: 128}}
resources: {{nodes: 1, num_gpus: 4}}
"""
FACTS = "gpus_per_node: 4\ngpu: a100-80\ncpus: 64\nmemory: 512GB\n"
#: All of them in one process.
COMPILE = """
import glob
from ratc import emit
from ratc.workflow import compile as compiling, inputs
from ratc.workflow.request import CompileRequest
for spec in sorted(glob.glob("specs/*.yaml")):
    request = CompileRequest(spec, facts="facts.yaml")
    loaded = inputs.load(request)
    folder = f"specs/compiled/{loaded.settings['experiment_name'].value}/local"
    made, found = compiling.make(request, loaded, folder)
    emit.write(folder, made.artifacts, lambda: [])
"""


def seconds(words: list[str], folder: Path, expected: int) -> float:
    """The time of one process, which must end with that status."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RATC_CACHE": str(folder / "cache"), "NO_COLOR": "1"}
    start = time.perf_counter()
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    took = time.perf_counter() - start
    if done.returncode != expected:
        sys.exit(f"{' '.join(words)} ended with {done.returncode}: {done.stderr}")
    return took


def row(name: str, words: list[str], floor: list[str], folder: Path, expected: int, goal: float) -> str:
    """Medians of both, taken in turns, as a line of the table."""
    pairs = [(seconds(words, folder, expected), seconds(floor, folder, 0)) for _ in range(RUNS)]
    own, least = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    peer = " ".join(Path(word).name for word in floor)
    return f"| {name} | {own * 1000:.0f} ms | {own / least:.1f} x `{peer}` | {goal * 1000:.0f} ms |"


def main() -> None:
    """Print the table."""
    ratc = [sys.executable, "-m", "ratc"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "facts.yaml").write_text(FACTS)
        (folder / "a.yaml").write_text(GPU.format(number=1, batch=64))
        (folder / "b.yaml").write_text(GPU.format(number=1, batch=64).replace("epochs: 50", "epochs: 80"))
        (folder / "specs").mkdir()
        for number in range(SPECS):
            (folder / "specs" / f"s{number}.yaml").write_text(
                GPU.format(number=number, batch=32 * (1 + number % KINDS))
            )
        seconds([sys.executable, "-c", COMPILE], folder, 0)
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
        for words in (["init", "-q", "."], ["add", "specs"], ["commit", "-q", "-m", "all"]):
            seconds([*git, *words], folder, 0)
        explained = [*ratc, "explain", "a.yaml", "training.batch_size", "--facts", "facts.yaml"]
        if "predicted" not in subprocess.run(explained, cwd=folder, capture_output=True, text=True, check=True).stdout:
            sys.exit("no memory is predicted here, so the time of a prediction cannot be measured")
        diff = [*ratc, "diff", "a.yaml", "b.yaml", "--facts", "facts.yaml"]
        print("| command | median | ratio | goal |\n| --- | --- | --- | --- |")
        print(row("`ratc diff`, two specs, predicted", diff, [sys.executable, "-c", "pass"], folder, 1, 0.3))
        check = [*ratc, "check", "specs"]
        print(row(f"`ratc check`, {SPECS} specs", check, ["git", "status", "--porcelain"], folder, 0, 10))


if __name__ == "__main__":
    main()
