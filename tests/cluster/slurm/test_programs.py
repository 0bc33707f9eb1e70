"""Users' programs on a real Slurm: on two nodes, stopped and requeued, under each launcher."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.slurm.cluster import Slurm
from tests.cluster.slurm.test_jobs import CLUSTER, log
from tests.helpers import jobs
from tests.helpers.jobs import as_soon_as, for_jobs, needs, results
from tests.helpers.walkthrough import run, steps
from tests.places import ROOT

pytestmark = pytest.mark.slow

#: Every rank adds its own number; what rank 0 finds is written.
ADDS = """import os
import ratc_runtime
import torch
plan = ratc_runtime.plan()
torch.distributed.init_process_group("gloo")
found = torch.tensor([float(os.environ["RANK"])])
torch.distributed.all_reduce(found)
plan.verify(world_size=torch.distributed.get_world_size())
plan.finished(sum=found.item(), hosts=os.uname().nodename)
torch.distributed.barrier()
"""
SPEC = f"""experiment_name: demo
entrypoint: {{script: train.py, args: ARGS}}
training: {{epochs: EPOCHS, learning_rate: 3e-3, target_batch_size: 16, batch_size: 8}}
resources: {{cluster: {CLUSTER}, nodes: 2, num_gpus: 0, cpus: 2, memory: 4GB, walltime: "00:20:00"}}
"""


#: The examples by name: the package that they need, a word that they say once they have learnt something, their
#: arguments, options of ratc, and the steps of an epoch.
EXAMPLES = {
    "text": ("transformers", "'loss'", "[--text, text.txt]", (), 10),
    "figures": ("accelerate", "epoch 2:", "[--pictures, 960]", ("--set", "launcher=accelerate"), 60),
    "waves": ("lightning", "after step", "[--series, 640]", ("--set", "launcher=srun"), 40),
}


def submitted(slurm: Slurm, folder: Path, *options: str, args: str = "[]", epochs: int = 1) -> str:
    """Compile the spec for the test cluster and submit what came out; returns the job's number."""
    (folder / "spec.yaml").write_text(SPEC.replace("EPOCHS", str(epochs)).replace("ARGS", args))
    done = jobs.ratc(folder, "compile", "spec.yaml", "--target", "slurm", "-o", "job", *options)
    assert done.returncode == 0, done.stderr
    return slurm.submit("job/job.sbatch", folder=folder, **for_jobs())


@pytest.mark.slow(every=True)
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate", "srun"])
def test_a_program_on_two_nodes_forms_one_process_group_under_each_launcher(
    slurm: Slurm, tmp_path: Path, launcher: str
) -> None:
    (tmp_path / "train.py").write_text(ADDS)
    job = submitted(slurm, tmp_path, "--set", f"launcher={launcher}")
    assert slurm.wait_for_end(job)["JobState"] == "COMPLETED", log(tmp_path)
    assert results(tmp_path)["sum"] == 1.0
    assert len(list((tmp_path / "outputs/demo/logs").glob(f"{job}.0-node*.log"))) == 2


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_that_is_stopped_is_requeued_and_finishes(slurm: Slurm, tmp_path: Path, example: str) -> None:
    package, word, args, options, steps = EXAMPLES[example]
    needs(package)
    for path in (ROOT / "specs" / example).glob("*.*"):
        shutil.copy(path, tmp_path)
    job = submitted(slurm, tmp_path, *options, args=args, epochs=30)

    def trains(folder: Path) -> bool:
        return word in "".join(path.read_text() for path in folder.glob("demo-*.out"))

    as_soon_as(trains, {tmp_path: lambda: slurm.signal(job, "USR2", batch=True)})
    facts = slurm.wait_for_end(job)
    said = log(tmp_path)
    assert facts["JobState"] == "COMPLETED", said
    assert facts["Restarts"] == "1", said
    assert "requeued, restart 1 of at most 20" in said
    assert "going on " in said
    assert said.count("ratc: finished") == 1
    found: dict[str, Any] = results(tmp_path)
    assert found["steps"] == 30 * steps
    assert found["world_size"] == 2
    learnt = {"text": ("train_loss", 3.5), "figures": None, "waves": ("error", 0.03)}[example]
    assert found["accuracy"] > 0.9 if learnt is None else found["metrics"][learnt[0]] < learnt[1]


def test_a_program_that_fails_on_one_node_fails_the_job(slurm: Slurm, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import os, sys\nsys.exit(int(os.environ['SLURM_NODEID']))\n")
    job = submitted(slurm, tmp_path)
    facts = slurm.wait_for_end(job)
    assert facts["JobState"] == "FAILED", log(tmp_path)
    assert not (tmp_path / "outputs/demo/DONE").exists()


def test_the_commands_of_the_guide_for_a_trainer_and_a_cluster_run(slurm: Slurm, tmp_path: Path) -> None:
    """Every command of the page, in one shell, on a login node."""
    needs("transformers")
    home = tmp_path / "home"
    home.mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"HOME": str(home), "PATH": path, **for_jobs(), "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}"}
    folder = tmp_path / "text"
    folder.mkdir()
    done = run(steps((ROOT / "docs/guides/trainer-on-slurm.md").read_text()), folder, environment)
    assert len(done) == 7
    for step, status, said in done:
        assert status == 0, f"{step.text}{said}"
    said = "".join(said for _, _, said in done)
    assert "gradient_accumulation_steps: 2  # 32 / (8 x 2)" in said
    assert "ended with status 0" in said
    assert "training.gradient_accumulation_steps" in done[-1][2]
    found = json.loads((folder / "outputs/text/results.json").read_text())
    assert (found["status"], found["world_size"], found["gradient_accumulation_steps"]) == ("finished", 2, 2)
