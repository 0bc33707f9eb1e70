"""Nodes are tested before training, on a real Slurm: unhealthy ones are named and excluded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.slurm.cluster import Slurm
from tests.cluster.slurm.test_jobs import CLUSTER, TWO, assert_finished, log
from tests.helpers import jobs
from tests.helpers.jobs import for_jobs, results, spec, write_project

pytestmark = pytest.mark.slow

CHECKED = {"resources__health_check": "always", **TWO}
#: Python imports this at its start. On one node it spoils the test of the matrix product.
SPOILT = """\
import os

if os.environ.get("SLURMD_NODENAME") == {node!r}:
    from ratc_runtime.health import measure

    real = measure.matrix_product

    def matrix_product(device, dtype):
        {what}
        rate, problems = real(device, dtype)
        return rate / 100, problems

    measure.matrix_product = matrix_product
"""
HANGS = "import time; time.sleep(600)"


def start(slurm: Slurm, folder: Path, node: str, *options: str, what: str = "pass", **changes: Any) -> str:
    """Submit a job of two nodes, one of which is bad."""
    write_project(folder, spec(resources__cluster=CLUSTER, **{**CHECKED, **changes}))
    jobs.compiled(folder, "slurm")
    (folder / "spoilt").mkdir()
    (folder / "spoilt/sitecustomize.py").write_text(SPOILT.format(node=node, what=what))
    variables = for_jobs()
    variables["PYTHONPATH"] = f"{folder / 'spoilt'}:{variables['PYTHONPATH']}"
    return slurm.submit("job/job.sbatch", *options, folder=folder, **variables)


def checks(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "outputs/demo/health.jsonl").read_text().splitlines()]


def test_an_unhealthy_node_is_excluded_and_the_job_finishes_on_others(slurm: Slurm, tmp_path: Path) -> None:
    slow, hangs = tmp_path / "slow", tmp_path / "hangs"
    found = {
        # A list that the job was submitted with stays.
        slow: start(slurm, slow, "ratc-n2", "--exclude=ratc-n4"),
        hangs: start(slurm, hangs, "ratc-n1", what=HANGS),
    }
    for (folder, job), bad, left_out in zip(
        found.items(), ("ratc-n2", "ratc-n1"), ("ratc-n4,ratc-n2", "ratc-n1"), strict=True
    ):
        facts = slurm.wait_for_end(job)
        assert (facts["JobState"], facts["Restarts"], facts["ExcNodeList"]) == ("COMPLETED", "1", left_out), log(folder)
        assert f"1 node of 2 not healthy: {bad}" in log(folder)
        assert_finished(folder)
        assert bad not in results(folder)["job"]["hosts"]
        first, last = checks(folder)
        assert (first["excluded"], first["passed"], last["excluded"], last["passed"]) == ([bad], False, [], True)
        assert bad in first["nodes"]
        assert bad not in last["nodes"]
        told = results(folder)["health"]
        assert (told["checks"], told["excluded"]) == (2, {bad: 1})
    assert "matrix product" in str(checks(slow)[0]["bad"])
    assert "a test hangs" in str(checks(hangs)[0]["bad"])


def test_a_job_that_may_exclude_no_more_nodes_fails(slurm: Slurm, tmp_path: Path) -> None:
    ended = start(slurm, tmp_path / "ended", "ratc-n2", resources__max_excluded_nodes=0)
    assert slurm.wait_for_end(ended)["JobState"] == "FAILED"
    assert "error[R621]: 1 node of this job is not healthy, and 0 more may be left out" in log(tmp_path / "ended")
    assert slurm.facts(ended)["ExcNodeList"] == "(null)"
    assert jobs.ratc(tmp_path / "ended", "why", ended).stdout.startswith("error[R621]: ")
    (check,) = checks(tmp_path / "ended")
    assert (list(check["bad"]), check["excluded"]) == (["ratc-n2"], [])
