"""LSF's accounts of jobs, in the forms that the pages of bjobs and bacct document."""

from __future__ import annotations

import pytest

from ratc.scheduler.dialect import Account, Answer, End
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
    ("line", "account"),
    [
        (
            "123|0|EXIT|140|TERM_RUNLIMIT: job killed after reaching LSF run time limit|n1:n2|3600 second(s)|60.0|"
            "1.5 Gbytes|2 Gbytes|/home/a|b",
            Account(
                *("123", "EXIT", End.TIME, "TERM_RUNLIMIT: job killed after reaching LSF run time limit", 140, "n1 n2"),
                *(3600, 3600, 3 << 29, 2 << 30, "/home/a|b"),
            ),
        ),
        ("123|2|DONE|-|-|n1|5 second(s)|-|-|-|/w", Account("123[2]", "DONE", End.WELL, "", 0, "n1", 5, place="/w")),
        ("123|0|PEND|-|-|-|0 second(s)|-|-|-|-", Account("123", "PEND", End.WAITING, "", None, "", 0)),
        ("123|0|EXIT|1|-|n1|0 second(s)|-|-|-|-", Account("123", "EXIT", End.FAILED, "", 1, "n1", 0)),
    ],
)
def test_a_line_of_bjobs(line: str, account: Account) -> None:
    assert Lsf().accounts(Answer("bjobs", 0, line + "\n")) == (account,)


def test_bacct_knows_what_bjobs_has_forgotten() -> None:
    [account] = Lsf().accounts(Answer("bacct", 0, BACCT))
    assert (account.task, account.end, account.place) == ("123", End.TIME, "/home/my project")
    assert account.reason == "TERM_RUNLIMIT: job killed after reaching LSF run time limit."


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
def test_termination_reasons_come_down_to_a_few_ends(reason: str, end: End) -> None:
    text = BACCT.partition("Wed Nov 25 11")[0] + f"Wed: Completed <exit>{'; ' + reason if reason else ''}\n"
    assert [account.end for account in Lsf().accounts(Answer("bacct", 0, text))] == [end]


@pytest.mark.parametrize("out", ["", "Job <123> is not found", "1|2|3", "No matching jobs found"])
def test_no_answer_gives_no_account(out: str) -> None:
    for command in ("bjobs", "bacct"):
        assert Lsf().accounts(Answer(command, 0, out)) == ()
        assert Lsf().accounts(Answer(command, 255, BACCT)) == ()
