"""The environment of compiled scripts: variables, modules and Python environments that reach the launcher."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.effort import HANGS_S
from tests.helpers import jobs
from tests.helpers.jobs import spec
from tests.helpers.script_jobs import CLUSTERS, HOSTS, ONE, TWO, Job, make

# ---------------------------------------------------------------------- what reaches the launcher

LEFT_OVER = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "PET_NPROC_PER_NODE": "7",
    "PET_MASTER_ADDR": "elsewhere",
    "TORCHELASTIC_RUN_ID": "none",
    "MASTER_ADDR": "elsewhere",
    "MASTER_PORT": "1",
    "RANK": "3",
    "LOCAL_RANK": "three",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "",
    "OMPI_COMM_WORLD_RANK": "3",
    "PMI_SIZE": "8",
    "NVIDIA_TF32_OVERRIDE": "1",
    "DS_ACCELERATOR": "cuda",
    "TORCH_COMPILE_DISABLE": "1",
    "PYTHON_EXEC": "/elsewhere/python",
}


@pytest.mark.parametrize("target", ["local", "slurm", "lsf"])
@pytest.mark.parametrize("how", ["shell", "setup"])
def test_variables_that_override_the_lock_do_not_reach_the_launcher(target: str, how: str, tmp_path: Path) -> None:
    setup = [f"export {name}='{value}'" for name, value in LEFT_OVER.items()] if how == "setup" else []
    job = make(tmp_path / "project", target, environment__setup=setup, **ONE)
    done = job.run(**(LEFT_OVER if how == "shell" else {}), MINE="kept", ACCELERATED="kept")
    given = job.environment()
    assert not LEFT_OVER.keys() & given.keys()
    assert given["MINE"] == given["ACCELERATED"] == "kept"
    said = done.stdout + done.stderr
    assert "not for this run, the lock decides: ACCELERATE_GRADIENT_ACCUMULATION_STEPS" in said
    assert "PMI_SIZE" not in said  # of every process below MPI


@pytest.mark.parametrize("name", [*LEFT_OVER, "RAT_DATA_DIR", "RAT_OUTPUT_DIR", "CUDA_VISIBLE_DEVICES"])
def test_variables_that_override_the_lock_are_refused_in_spec_and_facts(name: str, tmp_path: Path) -> None:
    facts = yaml.safe_load(CLUSTERS["slurm"].read_text())
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump({**facts, "variables": {name: 1, "NCCL_DEBUG": "INFO"}}))
    asked = {"cluster": str(tmp_path / "ours.yaml"), "num_gpus": 0, "cpus": 1, "walltime": "00:10:00"}
    for code, changes in (
        ("R228", {"environment": {"variables": {name: 1, "MINE": 2}}}),
        ("R353", {"resources": asked}),
    ):
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump({**spec(**ONE), **changes}))
        said = jobs.ratc(tmp_path, "compile", "spec.yaml", "--target", "slurm", "-o", "job").stderr
        assert re.findall(r"error\[(R\d+)\]", said) == [code], said
        assert f"variable `{name}` overrides" in said


@pytest.mark.parametrize("target", ["local", "slurm", "lsf"])
def test_scripts_set_pythonsafepath_for_the_launcher(target: str, tmp_path: Path) -> None:
    job = make(tmp_path / "project", target, **ONE)
    job.run()
    assert job.environment()["PYTHONSAFEPATH"] == "1"  # Python 3.11 leaves the current folder out of its path


@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_launcher_sets_only_its_own_variables(launcher: str, tmp_path: Path) -> None:
    job = make(tmp_path / "project", "slurm", HOSTS, launcher=launcher, **TWO)
    job.run(**LEFT_OVER)
    given = job.environment()
    assert {name for name in given if name.startswith("PET_")} <= {"PET_RDZV_ID", "PET_SIGNALS_TO_HANDLE"}
    assert given["PET_SIGNALS_TO_HANDLE"] == "SIGINT"


def test_setup_cannot_change_the_output_folder(tmp_path: Path) -> None:
    job = make(tmp_path / "project", "slurm", environment__setup=["export RAT_OUTPUT_DIR=/elsewhere"], **ONE)
    job.run()
    assert job.environment()["RAT_OUTPUT_DIR"] == str(job.output)


@pytest.mark.parametrize("target", ["local", "slurm", "lsf"])
def test_setup_cannot_unset_pythonsafepath(target: str, tmp_path: Path) -> None:
    job = make(tmp_path / "project", target, environment__setup=["unset PYTHONSAFEPATH"], **ONE)
    job.run()
    assert job.environment()["PYTHONSAFEPATH"] == "1"


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="PYTHONSAFEPATH is of Python 3.11")
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_files_beside_the_spec_do_not_shadow_launcher_modules(launcher: str, tmp_path: Path) -> None:
    """`json.py` and others lie beside the spec; the data set of its own in `mine.py` is found all the same."""
    changes = {"training__batch_size": 4, "training__epochs": 1, "resources__cpus": 2, "resources__num_gpus": 0}
    folder = jobs.write_project(tmp_path / "project", spec(launcher=launcher, **changes))
    jobs.compiled(folder, "local")
    for name in ("json", "accelerate", "yaml", "argparse", "importlib", "random"):
        (folder / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    environment = {**os.environ, **jobs.for_jobs(), "RAT_OUTPUT_DIR": str(folder / "outputs/demo")}
    done = subprocess.run(
        [str(folder / "job/run.sh")], env=environment, capture_output=True, text=True, timeout=HANGS_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((folder / "outputs/demo/results.json").read_text())["status"] == "finished"


# ---------------------------------------------------------------------- the environment

NAMED = {"conda": "train", "venv": "env"}
#: A hook as conda's packages have them: its last line fails.
HOOK = '[ -n "${NEVER_SET:-}" ] && echo x\n'
CONDA = """\
#!/bin/sh
[ "$1 $2" = "info --base" ] && echo "$HOME/conda"
"""
CONDA_SH = """\
conda() {
  [ -d "$HOME/conda/envs/$2" ] || { echo "EnvironmentNameNotFound: $2" >&2; return 1; }
  export CONDA_DEFAULT_ENV=$2 CONDA_PREFIX=$HOME/conda/envs/$2
  . "$CONDA_PREFIX/hook.sh"
}
"""


def with_conda(job: Job, hook: str = HOOK) -> None:
    (job.folder / "conda/etc/profile.d").mkdir(parents=True)
    (job.folder / "conda/etc/profile.d/conda.sh").write_text(CONDA_SH)
    (job.folder / "conda/envs/train").mkdir(parents=True)
    (job.folder / "conda/envs/train/hook.sh").write_text(hook)
    job.stub("conda", CONDA)


def with_venv(job: Job, hook: str = HOOK) -> None:
    (job.folder / "env/bin").mkdir(parents=True)
    (job.folder / "env/pyvenv.cfg").write_text("")
    (job.folder / "env/bin/activate").write_text(f'export VIRTUAL_ENV="{job.folder}/env"\n{hook}')


@pytest.mark.parametrize("target", ["local", "slurm", "lsf"])
@pytest.mark.parametrize("kind", ["conda", "venv"])
def test_environment_is_used_although_its_activation_hook_returns_failure(
    target: str, kind: str, tmp_path: Path
) -> None:
    job = make(tmp_path / "project", target, **{f"environment__{kind}": NAMED[kind]}, **ONE)
    {"conda": with_conda, "venv": with_venv}[kind](job)
    done = job.run()
    assert "R560" not in done.stderr
    assert "CONDA_PREFIX" in job.environment() or "VIRTUAL_ENV" in job.environment()


@pytest.mark.parametrize(
    ("kind", "hook", "said"),
    [
        ("conda", None, "conda activate train left no environment active"),
        ("conda", "exit 3\n", "conda activate train ended with status 3"),
        ("conda", "set -e\nfalse\n", "conda activate train ended with status 1"),
        ("venv", None, "there is no env/bin/activate"),
        ("venv", "export VIRTUAL_ENV=/usr\n", "env/bin/activate activates /usr"),
        ("venv", "exit 0\n", "sourcing env/bin/activate ended with status 0"),
    ],
)
@pytest.mark.parametrize("target", ["local", "slurm", "lsf"])
def test_environment_that_is_not_activated_is_an_error(
    target: str, kind: str, hook: str | None, said: str, tmp_path: Path
) -> None:
    job = make(tmp_path / "project", target, **{f"environment__{kind}": NAMED[kind]}, **ONE)
    if hook is not None:
        {"conda": with_conda, "venv": with_venv}[kind](job, hook)
    elif kind == "conda":
        with_conda(job)
        (job.folder / "conda/envs/train").rename(job.folder / "conda/envs/another")
    done = job.run()
    assert done.returncode != 0
    assert "error[R560]: the environment is not set up: " in done.stderr
    assert said in done.stderr
    assert not (job.notes / "calls").exists()


@pytest.mark.parametrize("target", ["local", "slurm", "lsf"])
def test_setup_line_that_ends_the_script_is_an_error(target: str, tmp_path: Path) -> None:
    job = make(tmp_path / "project", target, environment__setup=["exit 0"], **ONE)
    done = job.run()
    assert done.returncode != 0
    assert "error[R560]: the environment is not set up: a line of environment.setup ended with status 0" in done.stderr
    assert not (job.notes / "calls").exists()


#: The head of a program for a processor that no machine of today has (`e_machine` 2, a 32-bit SPARC).
OTHER_PROCESSOR = b"\x7fELF\x01\x02\x01" + bytes(9) + b"\x00\x02\x00\x02" + bytes(200)


@pytest.mark.parametrize("starts", [True, False])
def test_python_for_another_processor_is_an_error_with_the_node_and_its_processor(starts: bool, tmp_path: Path) -> None:
    facts = yaml.safe_load(CLUSTERS["slurm"].read_text())
    node = {**facts["node_types"]["node"], "gpu": "gh200"}  # with an aarch64 processor, by the catalogue
    facts["node_types"] = {"node": node}
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump(facts))
    job = make(tmp_path / "project", "slurm", cluster=tmp_path / "ours.yaml", **ONE)
    if not starts:
        (job.bin / "python3").write_bytes(OTHER_PROCESSOR)
    done = job.run()
    assert (job.notes / "calls").exists() == starts
    refused = (
        f"python3 does not start on {os.uname().nodename}, whose processor is {os.uname().machine}; the lock is for"
    )
    assert (f"{refused} aarch64" in done.stderr) != starts, done.stderr


@pytest.mark.parametrize(("loads", "works"), [("LOADEDMODULES=cuda/12.4", True), (":", False)])
def test_failed_module_load_is_an_error_unless_the_module_is_loaded(loads: str, works: bool, tmp_path: Path) -> None:
    job = make(tmp_path / "project", "slurm", environment__modules=["cuda"], **ONE)
    done = job.run(**{"BASH_FUNC_module%%": f"() {{ {loads}; [ -n '' ]; }}", "LOADEDMODULES": "site/1"})
    assert "modules from the submission, loaded before those of the spec: site/1" in done.stdout
    assert (job.notes / "calls").exists() == works
    assert ("error[R560]: the environment is not set up: module load cuda failed" in done.stderr) != works


@pytest.mark.parametrize("line", ["export FROM_SETUP=1 \\", "if true; then export FROM_SETUP=1; fi \\"])
def test_a_backslash_at_the_end_of_setup_joins_no_line_of_the_script(line: str, tmp_path: Path) -> None:
    job = make(tmp_path / "project", "slurm", environment__setup=["true", line], **ONE)
    assert "syntax error" not in job.run().stderr
    assert (job.notes / "calls").exists()


def test_failing_setup_line_is_reported_with_its_status(tmp_path: Path) -> None:
    job = make(tmp_path / "project", "slurm", environment__setup=["false", "true"], **ONE)
    assert "a line of environment.setup ended with status 1" in job.run().stderr


@pytest.mark.parametrize("target", ["local", "slurm", "lsf"])
@pytest.mark.parametrize("how", ["venv", "setup"])
def test_working_folder_stays_the_spec_folder_after_cd_in_setup_or_venv(target: str, how: str, tmp_path: Path) -> None:
    asked = {"environment__venv": "env"} if how == "venv" else {"environment__setup": ["cd /"]}
    job = make(tmp_path / "project", target, **asked, **ONE)
    with_venv(job, "cd /\n")
    job.run()
    assert job.environment()["PWD"] == str(job.folder)
