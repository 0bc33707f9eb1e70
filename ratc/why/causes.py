"""The causes that are known, the surest first: each a function of the evidence, which gives a diagnostic or nothing.

Its place is the line of a log that shows it. Its helps name the line of the spec that would change it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ratc.diagnostics import Diagnostic
from ratc.units import duration
from ratc.why import endings, findings, printed
from ratc.why.evidence import ERROR, Evidence, last_line, span_of


def the_cause(evidence: Evidence) -> Diagnostic:
    """The first cause that the evidence shows; R611 if it shows none."""
    found = next((cause for look in CAUSES if (cause := look(evidence)) is not None), None)
    return _with_account(found or _unknown(evidence), evidence)


def _with_account(cause: Diagnostic, evidence: Evidence) -> Diagnostic:
    """The cause with the scheduler's word on it as a note."""
    record = evidence.record
    if record is None:
        return cause
    parts = [f"job {record.task} is {record.state}" + (f" ({record.reason})" if record.reason else "")]
    if record.status is not None:
        parts.append(f"exit status {record.status}")
    if record.ran_s is not None:
        limit = f" of {duration(record.limit_s)}" if record.limit_s else ""
        parts.append(f"after {duration(record.ran_s)}{limit}")
    if record.hosts:
        parts.append(f"on {record.hosts}")
    if len(evidence.records) > 1:
        parts.append(f"start {len(evidence.records)}")
    return replace(cause, notes=(*cause.notes, f"the scheduler reports: {', '.join(parts)}"))


def _unknown(evidence: Evidence) -> Diagnostic:
    """Code: R611."""
    looked = [log.name for log in evidence.logs]
    notes = (f"read: {', '.join(looked)}",) if looked else ("no log was found",)
    helps = (
        "give the file with the output: `--log FILE`" if not looked else "read the end of the log",
        "run it again with `--debug`, which inspects each step",
    )
    place = span_of(evidence.first(ERROR)) or last_line(evidence)
    return Diagnostic("R611", "no known cause was found", place, notes, helps)


#: In the order in which they are looked for: what the run says itself, then what the scheduler did to it, then what
#: others have printed, which may follow from any of these.
CAUSES: Sequence[Callable[[Evidence], Diagnostic | None]] = (
    endings.no_failure,
    findings.run_finding,
    endings.out_of_time,
    endings.out_of_host_memory,
    endings.lost_a_node,
    endings.stopped,
    printed.out_of_gpu_memory,
    printed.refused_arguments,
    printed.no_cuda,
    printed.no_module,
    printed.no_place,
    printed.own_error,
    printed.held,
    endings.was_killed,  # the others then lose the connection to it
    printed.no_network,
    printed.refused,
    endings.was_silent,
    findings.following,
)
