"""Ranks, hosts and jobs from the variables of each launcher and scheduler, in one table."""

import os
import shutil
import subprocess
import sys

import pytest
from ratc_runtime.distributed.launch_environment import (
    LaunchEnvironment,
    detect,
    expand,
    record,
    set_torchrun_variables,
)

SLURM = {"SLURM_JOB_ID": "71", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
STEP = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NODELIST": "n[1-2]"}
TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}
JSRUN = {"JSM_NAMESPACE_RANK": "1", "JSM_NAMESPACE_LOCAL_RANK": "0", "JSM_NAMESPACE_SIZE": "2"}
LSF = {"LSB_JOBID": "9", "LSB_JOBINDEX": "0", "LSB_MCPU_HOSTS": "h2 8 h1 8"}
HOSTS = ("n1", "n2")
TABLE = {
    "nothing": ({}, LaunchEnvironment(None, None, 0, 0, 1, (), None, 0)),
    "torchrun": (TORCHRUN, LaunchEnvironment("torchrun", None, 5, 1, 8, (), None, 0)),
    "a batch script is no task": (SLURM, LaunchEnvironment(None, "slurm", 0, 0, 1, HOSTS, "71", 0)),
    "srun": ({**SLURM, **STEP, "SLURM_PROCID": "3"}, LaunchEnvironment("srun", "slurm", 3, 0, 4, HOSTS, "71", 0)),
    "torchrun under srun": (
        {**SLURM, **STEP, **TORCHRUN},
        LaunchEnvironment("torchrun", "slurm", 5, 1, 8, HOSTS, "71", 0),
    ),
    "an array task, started again": (
        {**SLURM, "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "4", "SLURM_RESTART_COUNT": "2"},
        LaunchEnvironment(None, "slurm", 0, 0, 1, HOSTS, "70_4", 2),
    ),
    "lsf": ({**LSF, **TORCHRUN}, LaunchEnvironment("torchrun", "lsf", 5, 1, 8, ("h2", "h1"), "9", 0)),
    "lsf array": ({**LSF, "LSB_JOBINDEX": "3"}, LaunchEnvironment(None, "lsf", 0, 0, 1, ("h2", "h1"), "9[3]", 0)),
    "jsrun": ({**LSF, **JSRUN}, LaunchEnvironment("jsrun", "lsf", 1, 0, 2, ("h2", "h1"), "9", 0)),
}


@pytest.mark.parametrize("name", TABLE)
def test_each_launcher_gives_its_ranks_hosts_and_job(name):
    environment, expected = TABLE[name]
    assert detect(environment) == expected


def test_a_host_file_overrides_the_list_and_hosts_are_unique(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("b\nb\na\na\nb\n")
    assert detect({**LSF, "LSB_DJOB_HOSTFILE": str(hosts)}).hosts == ("b", "a")


@pytest.mark.parametrize(
    "environment",
    [{"RANK": "0"}, {**TORCHRUN, "RANK": "x"}, {**TORCHRUN, "RANK": "8"}, {**SLURM, "SLURM_STEP_ID": "0"}],
)
def test_incomplete_variables_of_a_launcher_are_an_error(environment):
    with pytest.raises(ValueError, match=r"missing|whole numbers|not a rank"):
        detect(environment)


@pytest.mark.parametrize(
    ("hostlist", "hosts"),
    [
        ("n1", ["n1"]),
        ("n[1-3,07],gpu", ["n1", "n2", "n3", "n07", "gpu"]),
        ("a[08-11]", ["a08", "a09", "a10", "a11"]),
        ("r[1-2]n[1-2]-ib", ["r1n1-ib", "r1n2-ib", "r2n1-ib", "r2n2-ib"]),
    ],
)
def test_host_lists_expand_as_scontrol_does(hostlist, hosts):
    assert expand(hostlist) == hosts
    if shutil.which("scontrol"):  # the judge, where there is one
        said = subprocess.run(["scontrol", "show", "hostnames", hostlist], capture_output=True, text=True)
        assert said.stderr or said.stdout.split() == hosts  # some versions know one bracket a name only


@pytest.mark.parametrize("hostlist", ["n[1-", "n[a-b]"])
def test_a_broken_host_list_is_an_error(hostlist):
    with pytest.raises(ValueError, match="host"):
        expand(hostlist)


def test_a_bare_srun_gets_the_variables_of_torchrun():
    environment = {**SLURM, **STEP, "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}
    set_torchrun_variables(environment)
    given = {name: environment[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    assert given == {
        "RANK": "3",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "4",
        "MASTER_ADDR": "n1",
        "MASTER_PORT": "10071",
    }
    assert detect(environment).rank == 3
    assert record(environment) == {"scheduler": "slurm", "id": "71", "restarts": 0, "hosts": ["n1", "n2"]}


@pytest.mark.parametrize("environment", [{}, SLURM, {**SLURM, **STEP, **TORCHRUN}, {**LSF}])
def test_a_single_process_or_set_variables_stay_unchanged(environment):
    before = dict(environment)
    set_torchrun_variables(environment)
    assert environment == before


def test_the_first_host_of_jsrun_is_the_master():
    environment = {**LSF, **JSRUN}
    set_torchrun_variables(environment)
    assert environment["MASTER_ADDR"] == "h1"
    assert record({}) is None


def test_detection_agrees_with_a_real_torchrun():
    code = "import os; from ratc_runtime.distributed.launch_environment import detect; print(detect(os.environ))"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    done = subprocess.run([*command, sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert {f"rank={rank}, local_rank={rank}, world_size=2" in done.stdout for rank in (0, 1)} == {True}, done.stderr
