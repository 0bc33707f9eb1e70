"""Causes by the way in which a job ended: its time, its memory, its nodes, signals, or nothing at all."""

from __future__ import annotations

from dataclasses import replace

from ratc.diagnostics import Diagnostic, Severity, Span
from ratc.scheduler.dialect import End
from ratc.units import counted, duration, size_text, walltime_text
from ratc.why.evidence import ERROR, Evidence, last_line, span_of

#: What STOPPED says if a rank has lost its launcher: on the first node, and on another one.
_WITHOUT_LAUNCHER = ("the launcher is gone", "another rank")

#: Seconds of an epoch that no run takes: a year. A file that somebody changed may hold any number.
_LONGEST_EPOCH_S = 365 * 86_400


def no_failure(evidence: Evidence) -> Diagnostic | None:
    """Code: R600."""
    record = evidence.record
    if evidence.is_done or (evidence.results.get("status") == "finished" and record is None):
        return _note(f"the run has finished: `{evidence.output}/results.json` has its scores")
    if record is None:
        return None
    if record.end is End.WELL and not evidence.stopped and not evidence.findings:
        return _note(f"job {record.task} ended without an error")
    if record.end is End.WAITING:
        reason = f", for the reason {record.reason}" if record.reason else ""
        return _note(f"job {record.task} waits in the queue{reason}")
    if record.end is End.RUNNING:
        return _note(f"job {record.task} is running")
    return None


def _note(message: str) -> Diagnostic:
    return Diagnostic("R600", message, severity=Severity.NOTE)


def out_of_time(evidence: Evidence) -> Diagnostic | None:
    """Code: R601."""
    line = evidence.first(r"DUE TO TIME LIMIT|TERM_RUNLIMIT|job killed after reaching LSF run time limit|got USR2")
    record = evidence.record
    if not (record and record.end is End.TIME) and line is None:
        return None
    if record and record.state == "DEADLINE":
        return Diagnostic("R601", "the job could not end before its deadline", span_of(line), (_kept(evidence),), ())
    limit = record.limit_s if record and record.limit_s else evidence.lock.get("job.walltime_seconds")
    limit = getattr(limit, "value", limit)
    within = f" of {duration(limit)}" if isinstance(limit, int) else ""
    notes, helps = _time_needed(evidence)
    if evidence.stopped:
        helps = ("submit it again to continue", *helps)
    return Diagnostic("R601", f"the job ran into its walltime{within}", span_of(line), (_kept(evidence), *notes), helps)


def _time_needed(evidence: Evidence) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Notes and helps on the walltime that all epochs need, from those that were done."""
    where = evidence.at("resources.walltime")
    seconds = (epoch.get("seconds") for epoch in evidence.epochs)
    took = [one for one in seconds if isinstance(one, (int, float)) and 0 < one < _LONGEST_EPOCH_S]
    wanted = evidence.lock["training.epochs"].value if "training.epochs" in evidence.lock else None
    ways = "or shorten an epoch, or let the job be requeued with `checkpoint.requeue: auto`"
    if not took or not isinstance(wanted, int):
        note = "no epoch was finished: the time of an epoch is not known" if not took else ""
        return (note,) if note else (), (f"ask for more time in {where}, {ways}",)
    one = sum(took) / len(took)
    # A tenth more, for what is not in an epoch: the start, the last checkpoint, a slower node.
    needed = int(wanted * one * 1.1) + 120
    done, whole = f"{len(took)} of {counted(wanted, 'epoch')}", duration(int(wanted * one))
    note = f"{done} were done, {one:.1f} s each: all of them take {whole}"
    rounded = walltime_text(-(-needed // 60) * 60)
    return (note,), (f"`{rounded}` in {where} leaves room for a tenth more, {ways}",)


def out_of_host_memory(evidence: Evidence) -> Diagnostic | None:
    """Code: R602."""
    line = evidence.first(
        r"oom[-_]kill(?!_disable)|(?<!CUDA error: )Out Of Memory|OOM Killer",
        r"Exceeded (?:job|step) memory limit|TERM_MEMLIMIT",
    )
    record = evidence.record
    if not (record and record.end is End.MEMORY) and line is None:
        return None
    where = evidence.at("resources.memory")
    notes: tuple[str, ...] = ()
    asked = record.asked_memory if record else None
    if record and record.memory:
        of = f" of {size_text(asked)}" if asked else ""
        notes = (
            f"a process was measured with {size_text(record.memory)}{of}; a peak between two measurements may "
            f"be higher",
        )
    much = f"`{-(-int(asked * 1.5) // 2**30)}GB`" if asked else "more"
    helps = (
        f"ask for {much} in {where}",
        f"or start fewer loader processes in {evidence.at('data.num_workers')}: each holds its own copy of the samples",
    )
    return Diagnostic("R602", "the job used more host memory than it had asked for", span_of(line), notes, helps)


def lost_a_node(evidence: Evidence) -> Diagnostic | None:
    """Code: R603."""
    line = evidence.first(r"DUE TO NODE FAILURE|Node failure on|TERM_ZOMBIE|due to node failure")
    record = evidence.record
    if not (record and record.end is End.NODE) and line is None:
        return None
    hosts = f" of {record.hosts}" if record and record.hosts else ""
    helps = (
        "submit the job again: it continues from its last checkpoint",
        f"with `auto` in {evidence.at('checkpoint.requeue')} the scheduler requeues it by itself",
    )
    return Diagnostic("R603", f"the job lost a node{hosts}", span_of(line), (), helps)


def stopped(evidence: Evidence) -> Diagnostic | None:
    """Code: R604."""
    record = evidence.record
    line = evidence.first(r"DUE TO PREEMPTION", r"CANCELLED AT|DUE TO JOB REQUEUE|got (?:TERM|INT)")
    if (record and record.end is End.PREEMPTED) or (line and "PREEMPTION" in line[1][0]):
        what = "the job was preempted"
    elif record and record.end is End.CANCELLED:
        what = f"the job was cancelled {record.reason}".rstrip()
    elif evidence.stopped:
        # The ranks that a killed launcher leaves behind ask the others to stop.
        if any(words in evidence.stopped for words in _WITHOUT_LAUNCHER) and (killed := was_killed(evidence)):
            return replace(killed, notes=(*killed.notes, _kept(evidence)))
        what = f"the run was asked to stop, by {evidence.stopped.strip().splitlines()[0]}"
        line = evidence.first(r"saved, not finished|asking the run to save")
    else:
        return None
    return Diagnostic("R604", what, span_of(line), (_kept(evidence),), ("submit it again to continue",))


def _kept(evidence: Evidence) -> str:
    if evidence.stopped:
        return "it saved before it ended"
    return f"its newest checkpoint is {evidence.checkpoint}" if evidence.checkpoint else "it has made no checkpoint"


def was_killed(evidence: Evidence) -> Diagnostic | None:
    """A process that the system killed, by a launcher's or the shell's word. Code: R615."""
    line = evidence.first_cause(
        r"was ended by signal 9\b|exitcode +: -9\b|Signal 9 \(SIGKILL\) received|died with <Signals\.SIGKILL",
        r"^\S.*: line \d+: +\d+ Killed\b|^Killed$",
    )
    return killed(evidence, line[0]) if line is not None else None


def was_silent(evidence: Evidence) -> Diagnostic | None:
    """The same by the exit status, or since a failed run says nothing of an error. ratc's own loop prints every error,
    so its silence counts; that of another program does not. Code: R615.
    """
    record = evidence.record
    if record is None or record.end is not End.FAILED:
        return None
    if record.status == 128 + 9:
        return killed(evidence, last_line(evidence))
    has_log = any(log.text.strip() for log in evidence.logs)
    if not (has_log and not evidence.is_program and record.status in (None, 1)) or evidence.first(ERROR) is not None:
        return None
    notes = ("a process that the system kills (signal 9) cannot write one, and its launcher ends with status 1",)
    told = killed(evidence, last_line(evidence))
    return replace(told, message="the run ended without a message of an error", notes=notes)


def killed(evidence: Evidence, span: Span | None) -> Diagnostic:
    helps = (
        "a node whose memory is full kills the process that has most of it: ask for more in "
        f"{evidence.at('resources.memory')}, or start fewer loader processes in {evidence.at('data.num_workers')}",
        "the node's own log (`dmesg`) says what it killed",
    )
    return Diagnostic("R615", "a process was killed (signal 9)", span, (), helps)
