"""LSF's records of jobs, in the forms that the pages of bjobs and bacct document."""

from __future__ import annotations

import pytest

from ratc.scheduler.dialect import AccountingRecord, Answer, End
from ratc.scheduler.lsf import Lsf

BACCT = """\
Accounting information about jobs that are:
  - submitted by all users.
------------------------------------------------------------------------------

Job <123>, Job Name <demo>, User <me>, Project <default>, Status <EXIT>, Queue <normal>, Command <#!/bin/bash>
Wed Nov 25 10:00:00: Submitted from host <login>, CWD </home/my pro
                     ject>, Output File <demo-123.out>;
Wed Nov 25 10:00:05: Dispatched 1 Task(s) on Host(s) <n1>;
Wed Nov 25 11:00:05: Completed <exit>; TERM_RUNLIMIT: job killed after reachi
                     ng LSF run time limit.
"""


@pytest.mark.parametrize(
    ("line", "record"),
    [
        (
            "123|0|EXIT|140|TERM_RUNLIMIT: job killed after reaching LSF run time limit|n1:n2|3600 second(s)|60.0|"
            "1.5 Gbytes|2 Gbytes|/home/a|b",
            AccountingRecord(
                *("123", "EXIT", End.TIME, "TERM_RUNLIMIT: job killed after reaching LSF run time limit", 140, "n1 n2"),
                *(3600, 3600, 3 << 29, 2 << 30, "/home/a|b"),
            ),
        ),
        (
            "123|2|DONE|-|-|n1|5 second(s)|-|-|-|/w",
            AccountingRecord("123[2]", "DONE", End.WELL, "", 0, "n1", 5, place="/w"),
        ),
        ("123|0|PEND|-|-|-|0 second(s)|-|-|-|-", AccountingRecord("123", "PEND", End.WAITING, "", None, "", 0)),
        ("123|0|FWD_PEND|-|-|-|0 second(s)|-|-|-|-", AccountingRecord("123", "FWD_PEND", End.WAITING, "", None, "", 0)),
        ("123|0|EXIT|1|-|n1|0 second(s)|-|-|-|-", AccountingRecord("123", "EXIT", End.FAILED, "", 1, "n1", 0)),
    ],
)
def test_bjobs_line_becomes_a_record(line: str, record: AccountingRecord) -> None:
    assert Lsf().records(Answer("bjobs", 0, line + "\n")) == (record,)


def test_bacct_output_becomes_a_record() -> None:
    [record] = Lsf().records(Answer("bacct", 0, BACCT))
    assert (record.task, record.end, record.place) == ("123", End.TIME, "/home/my project")
    assert record.reason == "TERM_RUNLIMIT: job killed after reaching LSF run time limit."


@pytest.mark.parametrize(
    ("reason", "end"),
    [
        ("TERM_MEMLIMIT: job killed after reaching LSF memory usage limit", End.MEMORY),
        ("TERM_OWNER: job killed by owner", End.CANCELLED),
        ("TERM_PREEMPT: job killed after preemption", End.PREEMPTED),
        ("TERM_ZOMBIE: job exited while LSF is not available", End.NODE),
        ("", End.FAILED),
    ],
)
def test_termination_reason_gives_the_kind_of_end(reason: str, end: End) -> None:
    text = BACCT.partition("Wed Nov 25 11")[0] + f"Wed: Completed <exit>{'; ' + reason if reason else ''}\n"
    assert [record.end for record in Lsf().records(Answer("bacct", 0, text))] == [end]


@pytest.mark.parametrize("out", ["", "Job <123> is not found", "1|2|3", "No matching jobs found"])
def test_unusable_answer_gives_no_record(out: str) -> None:
    for command in ("bjobs", "bacct"):
        assert Lsf().records(Answer(command, 0, out)) == ()
        assert Lsf().records(Answer(command, 255, BACCT)) == ()
