"""The examples with a user's own script train for real: stopped by the stop file, continued, and finished."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.effort import HANGS_S
from tests.helpers.jobs import as_soon_as, for_jobs, needs, ratc
from tests.helpers.lockfile import results
from tests.places import ROOT

pytestmark = pytest.mark.slow


def copied(folder: Path, example: str, epochs: int) -> Path:
    """An example in a folder of its own, with so many epochs; returns its output folder."""
    shutil.copytree(ROOT / "specs" / example, folder, ignore=shutil.ignore_patterns("compiled", "outputs", "data"))
    spec = yaml.safe_load((folder / "config.yaml").read_text())
    spec["training"]["epochs"] = epochs
    (folder / "config.yaml").write_text(yaml.safe_dump(spec))
    return folder / "outputs" / example


def started(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words,
        cwd=folder,
        env={**os.environ, **for_jobs(), "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}", "PYTHONUNBUFFERED": "1"},
        stdout=(folder / "log").open("a"),
        stderr=subprocess.STDOUT,
        text=True,
    )


def stop_once_it_trains(run: subprocess.Popen[str], folder: Path, output: Path, word: str) -> None:
    """Leave the stop file as soon as something was learnt; the run ends by itself, unfinished."""

    def trains(folder: Path) -> bool:
        said = (folder / "log").read_text()
        assert run.poll() is None, said
        return word in said

    as_soon_as(trains, {folder: (output / "STOP").touch})
    assert run.wait(HANGS_S) == 0, (folder / "log").read_text()
    assert (output / "STOPPED").exists()
    assert not (output / "results.json").exists()


#: The word that an example says once it has learnt something, its package, the epochs that take some seconds, the
#: steps of one, and whether it has learnt what it should.
EXAMPLES = {
    "text": ("'loss'", "transformers", 20, 10, lambda found: found["metrics"]["train_loss"] < 3.5),
    "figures": ("epoch 1:", "accelerate", 8, 30, lambda found: found["accuracy"] > 0.8),
    "waves": ("after step", "lightning", 40, 20, lambda found: found["metrics"]["error"] < 0.03),
}


def on_two_processes(folder: Path) -> list[str]:
    """Compile, and give the lock two processes on this machine, as it has for two cards; returns what starts them."""
    done = ratc(folder, "compile", "config.yaml", "-o", "out")
    assert done.returncode == 0, done.stderr
    lock = yaml.safe_load((folder / "out/lock.yaml").read_text())
    lock["parallel"] |= {"processes_per_node": 2, "world_size": 2}
    lock["training"]["gradient_accumulation_steps"] //= 2
    (folder / "out/lock.yaml").write_text(yaml.safe_dump(lock))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "{}"]
    return [
        *(sys.executable, "-m", "ratc_runtime.program", "--lock", "out/lock.yaml", "--"),
        *(sys.executable, *launcher),
    ]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_continues_after_a_stop(example: str, processes: int, tmp_path: Path) -> None:
    """On one process with `ratc train`."""
    word, package, epochs, steps, has_learnt = EXAMPLES[example]
    needs(package)
    folder = tmp_path / example
    output = copied(folder, example, epochs)
    alone = [sys.executable, "-m", "ratc", "train", "config.yaml"]
    words = alone if processes == 1 else on_two_processes(folder)
    stop_once_it_trains(started(folder, *words), folder, output, word)
    run = started(folder, *words)
    assert run.wait(HANGS_S) == 0, (folder / "log").read_text()
    assert "going on " in (folder / "log").read_text()
    found = results(output)
    assert (found["status"], found["steps"], found["world_size"]) == ("finished", steps * epochs, processes)
    assert has_learnt(found)
    assert found["memory"]["device"] == "cpu"
    assert found["memory"]["peak_rss_bytes"] > 10 << 20


def test_a_stopped_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path) -> None:
    """With Accelerate: the same order of samples, the same weights but for rounding."""
    needs("accelerate")
    import torch
    from safetensors.torch import load_file

    weights = []
    for name in ("stopped", "undisturbed"):
        folder = tmp_path / name
        output = copied(folder, "figures", epochs=4)
        words = [sys.executable, "-m", "ratc", "train", "config.yaml"]
        if name == "stopped":
            stop_once_it_trains(started(folder, *words), folder, output, "epoch 1:")
        assert started(folder, *words).wait(HANGS_S) == 0, (folder / "log").read_text()
        last = max(output.glob("checkpoints/*/step-*"), key=lambda path: int(path.name.removeprefix("step-")))
        weights.append(load_file(last / "model.safetensors"))
    assert all(torch.allclose(weights[0][key], weights[1][key], atol=1e-5) for key in weights[1])


#: Added to the script of `specs/waves`: each batch is written down, and the run is killed in a step that is named.
WRITTEN_DOWN = """
        loss = nn.functional.mse_loss(self.net(waves), following)
        if str(self.global_step) == os.environ.get("KILL_AT"):
            os.kill(os.getpid(), 9)
        samples = [round(first, 9) for first in waves[:, 0].tolist()]
        with open(f"batches-{self.global_rank}", "a") as file:
            print(self.global_step, self.current_epoch, samples, loss.item().hex(), file=file)
        return loss
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_lightning_continues_inside_an_epoch_bit_for_bit(
    processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the third epoch, with loader processes: the same batches and losses as without the kill."""
    needs("lightning")
    folder = tmp_path / "waves"
    output = copied(folder, "waves", epochs=4)
    script = folder / "train.py"
    text = script.read_text().replace("PlanCallback(plan)]", "PlanCallback(plan, save_every_n_steps=3)]")
    text = text.replace("nn.Linear(LENGTH, 48), ", "nn.Linear(LENGTH, 48), nn.Dropout(0.2), ")
    text = text.replace('plan["num_workers"]', "1").replace("import argparse", "import argparse\nimport os")
    text = text.replace("\n        return nn.functional.mse_loss(self.net(waves), following)\n", WRITTEN_DOWN, 1)
    script.write_text(text)
    words = on_two_processes(folder) if processes == 2 else [sys.executable, "-m", "ratc", "train", "config.yaml"]

    def batches() -> list[list[str]]:
        """The lines of each rank since the last call."""
        found = [path.read_text().splitlines() for path in sorted(folder.glob("batches-*"))]
        for path in folder.glob("batches-*"):
            path.unlink()
        return found

    def run(status: bool, **variables: str) -> list[list[str]]:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert (started(folder, *words).wait(HANGS_S) == 0) == status, (folder / "log").read_text()
        return batches()

    whole = run(True)
    assert len(whole) == processes
    for rank in whole:
        assert len(rank) == 4 * 20 * 4 // processes
    for epoch in range(4):
        samples = [line.split("[")[1].split("]")[0] for rank in whole for line in rank if line.split()[1] == str(epoch)]
        assert len({sample for line in samples for sample in line.split(", ")}) == 640
    shutil.rmtree(output)
    killed = run(False, KILL_AT="47")
    continued = run(True, KILL_AT="-1")
    saved = 45  # the last third step
    for rank in range(processes):
        kept = [line for line in killed[rank] if int(line.split()[0]) < saved]
        assert kept + continued[rank] == whole[rank]
