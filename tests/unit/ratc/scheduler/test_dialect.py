"""Answers of schedulers without job states."""

from __future__ import annotations

from ratc.scheduler import DIALECTS
from ratc.scheduler.dialect import Answer, Task
from tests.helpers.fake_schedulers import SHOW


def test_answers_without_job_states_give_no_tasks() -> None:
    for dialect in DIALECTS.values():
        assert dialect.tasks(Answer("x", None)) is None
        assert dialect.tasks(Answer("x", 0, "nothing to read here")) is None
        assert dialect.cluster(Answer("x", 0, "nothing to read here")) is None
    evil = SHOW.format("RUNNING", "0:0").replace("JobName=demo", "JobName=demo JobState=FAILED ExitCode=9:9")
    assert DIALECTS["slurm"].tasks(Answer("x", 0, evil)) == (Task("5", "RUNNING"),)
