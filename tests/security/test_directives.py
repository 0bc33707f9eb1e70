"""Hostile text in every string of a spec and of cluster facts runs nothing and requests nothing of the scheduler.

The scripts are run under stand-ins for the commands of a cluster. `environment.setup` is the user's own shell code.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ratc import resources
from ratc.cli import main
from tests.effort import HANGS_S, examples
from tests.security.schema_strings import paths, placed

MARK = "MARK"
#: Each is made to break out of one kind of place: a line, each kind of quote, an unquoted word, a directive, a comment.
HOSTILE = (
    f"a\ntouch {MARK} #",
    f"$(touch {MARK})",
    f"`touch {MARK}`",
    f"'; touch {MARK}; '",
    f'"; touch {MARK}; "',
    f"a\\\ntouch {MARK}\n",
    f"$'\\'; touch {MARK}; '",
    "a\n#SBATCH --reservation=evil\n#BSUB -U evil\n",
    "a\u2028#BSUB -U evil",
    "a\r#SBATCH --reservation=evil",
    "a -U evil",
    "-U evil",
    'a" -U "evil',
    "a] rusage[mem=1",
    f"a; touch {MARK}",
    f"a && touch {MARK} || touch {MARK}",
    f"a | touch {MARK}",
    f"\x1b]0;{MARK}\x07",
    f"--help --wrap='touch {MARK}'",
    f"a,b,--export=ALL,X=$(touch {MARK})",
)
SHELL_OF_THE_USER = ("environment", "setup", 0)
SPEC: dict[str, Any] = {
    "experiment_name": "demo",
    "description": "as it should be",
    "data": {"data_dir": "data"},
    "training": {"batch_size": 2, "target_batch_size": 32, "epochs": 10},
    "resources": {
        "cluster": "ours",
        "nodes": 2,
        "num_gpus": 8,
        "walltime": "10:00:00",
        "account": "imaging",
        "job_name": "RAT on ISIC",
    },
    "environment": {"modules": ["cuda/12.4"], "variables": {"NAME": "x"}, "secrets": ["HOME"]},
}
CLUSTERS: dict[str, dict[str, Any]] = {
    scheduler: {
        "name": "ours",
        "scheduler": scheduler,
        "version": "23.02",
        "node_types": {
            "node": {"gpu": "h100", "gpu_type": "h100", "gpus_per_node": 4, "cpus": 32, "constraint": "big"}
        },
        plural: {"gpu": {"nodes": {"node": 4}, "default": True, "max_walltime": "1-00:00:00"}},
        "modules_init": "/dev/null",
        "interface": "ib0",
        "variables": {"NCCL_DEBUG": "WARN"},
    }
    for scheduler, plural in (("slurm", "partitions"), ("lsf", "queues"))
}
#: A study that Ray runs in a job has scripts of its own.
RAY = {"tuning": {"backend": "ray", "search_space": {"training.learning_rate": [1e-4, 1e-2]}, "trials": 2}}
TARGETS = ("slurm", "lsf", "local", "slurm-ray", "lsf-ray")
STUBS = {
    "scontrol": 'case "$1 $2" in "show hostnames") echo a; echo b;; *) echo "   Command=$PWD/out/job.sbatch";; esac',
    "srun": 'while [ "$1" != bash ] && [ $# -gt 0 ]; do shift; done; SLURM_NODEID=0 exec "$@"',
    "blaunch": 'while [ "$1" != env ] && [ $# -gt 0 ]; do shift; done; exec "$@"',
    "squeue": "echo RUNNING",
    "apptainer": "exit 0",
    "module": "exit 0",
    "conda": 'echo "$PWD"',
    "python3": "exit 0",
    "timeout": 'shift; exec "$@"',
}


def scheduler_of(target: str) -> str:
    return target.partition("-")[0]


def spec_for(target: str) -> dict[str, Any]:
    if target == "local":
        return {**SPEC, "resources": {"num_gpus": 0, "cpus": 4}}
    return {**SPEC, **RAY} if target.endswith("-ray") else SPEC


def write(folder: Path, spec: dict[str, Any], cluster: dict[str, Any]) -> None:
    (folder / "clusters").mkdir(exist_ok=True)
    (folder / "clusters/ours.yaml").write_text(yaml.safe_dump(cluster, allow_unicode=True, sort_keys=False))
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec, allow_unicode=True, sort_keys=False))


def compiled(folder: Path, target: str) -> bool:
    """Compile in the current folder; whether it was let through."""
    return main(["compile", "spec.yaml", "--target", scheduler_of(target), "-o", "out", "--no-predict"]) == 0


def options(script: str) -> list[str]:
    """The options of every directive of a script, wherever it stands, each with all that the scheduler reads."""
    found = []
    for line in re.split("[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]", script):
        if line.startswith("#SBATCH"):
            words = shlex.split(line.removeprefix("#SBATCH"), comments=True)
            assert len(words) == 1, line
            found.append(words[0].partition("=")[0])
        elif line.startswith("#BSUB"):
            option, *values = shlex.split(line.removeprefix("#BSUB"))
            found += [option, *(word for word in values if word.startswith("-"))]
            assert len(values) <= (3 if option == "-wt" else 1), line
            if option == "-R":
                assert re.fullmatch(r"((select|span|rusage)\[[^\[\]]*\] ?)+", values[0]), line
    return found


def run(folder: Path, target: str) -> None:
    """Run the script as its scheduler would; how it ends is nobody's matter here."""
    stubs = folder / "stubs"
    stubs.mkdir(exist_ok=True)
    for name, body in STUBS.items():
        (stubs / name).write_text(f"#!/bin/bash\n{body}\n")
        (stubs / name).chmod(stat.S_IRWXU)
    script = {"slurm": "job.sbatch", "lsf": "job.lsf", "local": "run.sh"}[scheduler_of(target)]
    environment = {
        "PATH": f"{stubs}:/usr/bin:/bin",
        "HOME": str(folder),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "a,b",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_SUBMIT_DIR": str(folder),
        "LSB_JOBID": "7",
        "LSB_MCPU_HOSTS": "a 32 b 32",
        "LS_SUBCWD": str(folder / "out"),
    }
    subprocess.run(
        ["bash", f"out/{script}"], cwd=folder, env=environment, capture_output=True, timeout=HANGS_S, check=False
    )


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The directives of the plan without anything hostile, by target."""
    found = {}
    for target in (one for one in TARGETS if one != "local"):
        folder = tmp_path_factory.mktemp(target)
        write(folder, spec_for(target), CLUSTERS[scheduler_of(target)])
        before = Path.cwd()
        os.chdir(folder)
        try:
            assert compiled(folder, target)
        finally:
            os.chdir(before)
        found[target] = options(
            (folder / "out" / ("job.sbatch" if scheduler_of(target) == "slurm" else "job.lsf")).read_text()
        )
        assert len(found[target]) > 8
    return found


def harmless(folder: Path, target: str, spec: dict[str, Any], cluster: dict[str, Any], wanted: list[str]) -> None:
    """Compile, and run what is let through: no mark is left, and every directive is the plan's."""
    write(folder, spec, cluster)
    before = Path.cwd()
    os.chdir(folder)
    try:
        if not compiled(folder, target):
            return
    finally:
        os.chdir(before)
    assert not list(folder.rglob(f"*{MARK}*")), "compiling has run it"
    for name in ("job.sbatch", "job.lsf"):
        if (folder / "out" / name).exists():
            found = options((folder / "out" / name).read_text())
            assert set(found) <= {*wanted, "--partition", "--account", "--qos", "--constraint", "-P", "-R", "-q"}
    made = set(folder.rglob("*"))
    run(folder, target)
    marks = [path for path in set(folder.rglob("*")) - made if path.name == MARK]
    assert not marks, "the script has run it"


def strings() -> list[tuple[str, tuple[str | int, ...]]]:
    """(schema, path) of every string of both schemas."""
    return [
        (name, path)
        for name in ("experiment", "cluster")
        for path in paths(resources.schema(name))
        if path != SHELL_OF_THE_USER
    ]


def test_every_string_of_both_schemas_is_found():
    found = strings()
    assert ("experiment", ("resources", "account")) in found
    assert ("experiment", ("environment", "modules", 0)) in found
    assert ("experiment", ("environment", "variables", "any_key")) in found
    assert ("cluster", ("node_types", "any_key", "constraint")) in found
    assert len(found) > 50


def test_the_stand_ins_detect_commands_that_a_script_runs(tmp_path, monkeypatch):
    """What the user's own shell lines do is seen: otherwise the other tests could not fail."""
    monkeypatch.chdir(tmp_path)
    for target in TARGETS:
        folder = tmp_path / target
        folder.mkdir()
        spec = placed(spec_for(target), SHELL_OF_THE_USER, f"touch {MARK}")
        write(folder, spec, CLUSTERS.get(scheduler_of(target), CLUSTERS["slurm"]))
        monkeypatch.chdir(folder)
        assert compiled(folder, target)
        run(folder, target)
        assert list(folder.rglob(MARK)), target


@pytest.mark.slow
@pytest.mark.parametrize("place", strings(), ids=lambda place: f"{place[0]}:{'.'.join(map(str, place[1]))}")
@pytest.mark.parametrize("target", TARGETS)
def test_hostile_text_in_any_string_runs_nothing(place, target, wanted, tmp_path, capsys):
    for number, text in enumerate(HOSTILE):
        check(tmp_path / str(number), place, target, text, wanted)


@settings(max_examples=examples(500))
@given(
    st.sampled_from(strings()),
    st.sampled_from(TARGETS),
    st.lists(
        st.sampled_from(
            [
                *HOSTILE,
                "\n",
                "\r",
                "'",
                '"',
                "\\",
                "$",
                "`",
                "#",
                " ",
                ";",
                "a",
                "]",
                "%",
                f"touch {MARK}",
                "${",
                "}",
                "\t",
            ]
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_combined_hostile_texts_run_nothing(wanted, tmp_path_factory, place, target, parts):
    check(tmp_path_factory.mktemp("mixture"), place, target, "".join(parts), wanted)


def check(folder: Path, place: tuple[str, tuple[str | int, ...]], target: str, text: str, wanted: Any) -> None:
    folder.mkdir(exist_ok=True)
    spec, cluster = spec_for(target), CLUSTERS.get(scheduler_of(target), CLUSTERS["slurm"])
    if place[0] == "experiment":
        spec = placed(spec, place[1], text)
    else:
        cluster = placed(cluster, place[1], text)
    harmless(folder, target, spec, cluster, wanted.get(target, []))
