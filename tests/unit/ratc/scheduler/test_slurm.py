"""Slurm's records of jobs, as sacct and scontrol print them."""

from __future__ import annotations

import pytest

from ratc.scheduler.dialect import AccountingRecord, Answer, End
from ratc.scheduler.slurm import Slurm

GIB = 1 << 30
#: A job that was requeued once, then ran out of time; its steps alone say what memory was used.
REQUEUED = """\
12|NODE_FAIL|0:0|n[1-2]|61|10||8G|None|/home/me/project 1|a
12.batch|CANCELLED||n1|61||2097152K|||
12|TIMEOUT|0:0|n[3-4]|602|10||8G|None|/home/me/project 1|a
12.batch|CANCELLED|0:15|n3|603||1024K|||
12.0|FAILED|1:0|n[3-4]|600||3145728K|||
"""
SHOW = """\
JobId=15 ArrayJobId=14 ArrayTaskId=2 JobName=demo JobState=FAILED RunTime=9-00:00:00
   UserId=me(1000) GroupId=me(1000) MCS_label=N/A
   JobState={state} Reason={reason} Dependency=(null)
   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode={code}
   RunTime=00:00:26 TimeLimit=1-00:10:00 TimeMin=N/A
   NodeList={nodes}
   MinCPUsNode=1 MinMemoryNode=2G MinTmpDiskNode=0
   WorkDir=/home/me/project 1
   StdOut=/home/me/project 1/demo-14_2.out
"""


def test_each_start_of_a_requeued_job_is_a_record_with_its_memory() -> None:
    before, last = Slurm().records(Answer("sacct", 0, REQUEUED))
    place = "/home/me/project 1|a"
    assert before == AccountingRecord("12", "NODE_FAIL", End.NODE, "", 1, "n[1-2]", 61, 600, 2 * GIB, 8 * GIB, place)
    assert last == AccountingRecord("12", "TIMEOUT", End.TIME, "", 1, "n[3-4]", 602, 600, 3 * GIB, 8 * GIB, place)


@pytest.mark.parametrize(
    ("state", "end"),
    [
        ("COMPLETED", End.WELL),
        ("CANCELLED by 1000", End.CANCELLED),
        ("OUT_OF_MEMORY", End.MEMORY),
        ("PREEMPTED", End.PREEMPTED),
        ("PENDING", End.WAITING),
        ("RESV_DEL_HOLD", End.WAITING),
        ("RESIZING", End.RUNNING),
        ("", End.UNKNOWN),
        ("WIBBLE", End.UNKNOWN),
    ],
)
def test_job_state_gives_the_kind_of_end(state: str, end: End) -> None:
    [record] = Slurm().records(Answer("sacct", 0, f"12_3|{state}|0:9|None assigned|||||None|/home/me\n"))
    assert (record.task, record.end, record.hosts) == ("12_3", end, "")
    assert record.reason == ("by 1000" if "by" in state else "")


def test_scontrol_output_becomes_a_record() -> None:
    text = SHOW.format(state="FAILED", reason="NonZeroExitCode", code="1:0", nodes="n1")
    [record] = Slurm().records(Answer("scontrol", 0, text))
    folder = "/home/me/project 1"
    assert record == AccountingRecord(
        *("14_2", "FAILED", End.FAILED, "NonZeroExitCode", 1, "n1", 26, 87_000, None, 2 * GIB),
        *(folder, f"{folder}/demo-14_2.out"),
    )
    waits = SHOW.format(state="PENDING", reason="AssocGrpCpuLimit", code="0:0", nodes="(null)")
    [record] = Slurm().records(Answer("scontrol", 0, waits))
    assert (record.end, record.reason, record.status, record.hosts) == (End.WAITING, "AssocGrpCpuLimit", None, "")


@pytest.mark.parametrize("out", ["", "nothing to read", "12|TIMEOUT", "|||||||||", "JobId=1"])
def test_unusable_answer_gives_no_record(out: str) -> None:
    assert Slurm().records(Answer("sacct", 1, REQUEUED)) == ()
    assert all(not record.task for record in Slurm().records(Answer("sacct", 0, out)))
    assert Slurm().records(Answer("scontrol", 0, out)) == ()
