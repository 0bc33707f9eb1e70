"""The causes that are known, the surest first: each a function of the evidence, which gives a diagnostic or nothing.

Its place is the line of a log that shows it. Its helps name the line of the spec that would change it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from ratc.diagnostics import Diagnostic, Severity, Span
from ratc.program import is_used
from ratc.scheduler.dialect import End
from ratc.units import counted, duration, size_text, walltime_text
from ratc.why import tracebacks
from ratc.why.evidence import RANK, Evidence, Finding, place

#: Findings that follow from another one, which is the cause if it is there.
_FOLLOW = ("R514", "R561", "R567", "R528", "R566")
#: Keys of the spec that a finding of the runtime is about.
_KEYS = {
    "R502": ("resources.num_gpus", "resources.nodes"),
    "R503": ("entrypoint.args",),
    "R504": ("resources.gpu", "resources.num_gpus"),
    "R506": ("data.data_dir",),
    "R507": ("training.learning_rate", "training.precision"),
    "R509": (
        *("entrypoint.script", "entrypoint.module", "entrypoint.command"),
        *("model.name", "data.dataset", "training.loss", "training.optimizer"),
    ),
    "R510": ("output_dir",),
    "R511": ("training.batch_size",),
    "R513": ("data.num_workers", "resources.memory"),
    "R519": ("output_dir",),
    "R524": ("logging.backend", "environment.venv"),
    "R529": ("environment.venv",),
    "R533": ("data.on_bad_sample",),
    "R553": ("model.attention_memory",),
    "R560": ("environment.modules", "environment.venv", "environment.conda", "environment.setup"),
    "R562": ("output_dir",),
    "R566": ("checkpoint.every_steps", "resources.walltime"),
    "R621": ("resources.max_excluded_nodes",),
}

#: Words of an error, in a line that is none of Slurm's launcher, and not the script's line on the logs.
_ERROR = (
    r"^(?!srun: |slurmstepd)(?!.* (?:srun: |ratc: job )).*"
    r"(?:Error\b|Exception\b|(?i:\b(?:errors?|exceptions?|traceback|fail(?:ed|s|ure)?|kill(?:ed|ing)?|abort(?:ed|ing)?|fatal"
    r"|faults?|signal|dumped|panic|cannot|could not|can't|unable|refused|denied|not found|no such|invalid|illegal"
    r"|unrecognized|unknown|missing|usage|assert(?:ion)?|unreachable|timeout|timed out|terminated|nan|oom)\b))"
)
#: What STOPPED says if a rank has lost its launcher: on the first node, and on another one.
_WITHOUT_LAUNCHER = ("the launcher is gone", "another rank")
#: Seconds of an epoch that no run takes: a year. A file that somebody changed may hold any number.
_LONGEST_EPOCH_S = 365 * 86_400


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


def _no_failure(evidence: Evidence) -> Diagnostic | None:
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


def _run_finding(evidence: Evidence) -> Diagnostic | None:
    """A finding of the runtime's or of the script's own in the logs: the first that does not follow from another."""
    found = [finding for finding in evidence.findings if finding.code not in _FOLLOW]
    if not found:
        return None
    return _diagnostic(found[0], evidence)


def _following(evidence: Evidence) -> Diagnostic | None:
    """The same of a finding that mostly follows from another, if the other was not found."""
    found = sorted(evidence.findings, key=lambda finding: -_FOLLOW.index(finding.code))
    return _diagnostic(found[0], evidence) if found else None


def _diagnostic(finding: Finding, evidence: Evidence) -> Diagnostic:
    given = [evidence.at(path) for path in _KEYS.get(finding.code, ()) if _is_read(path, evidence)]
    places = [text for text in given if not text.startswith("`")] or given[:1]
    helps = (*finding.helps, *(f"it is about {text}" for text in places))
    return Diagnostic(finding.code, finding.message, finding.span, finding.notes, helps)


def _is_read(path: str, evidence: Evidence) -> bool:
    """Whether a key means something for the run: one of a program, or of ratc's own loop."""
    return is_used(path) if evidence.is_program else not path.startswith("entrypoint.")


def _out_of_time(evidence: Evidence) -> Diagnostic | None:
    """Code: R601."""
    line = evidence.first(r"DUE TO TIME LIMIT|TERM_RUNLIMIT|job killed after reaching LSF run time limit|got USR2")
    record = evidence.record
    if not (record and record.end is End.TIME) and line is None:
        return None
    if record and record.state == "DEADLINE":
        return Diagnostic("R601", "the job could not end before its deadline", _span(line), (_kept(evidence),), ())
    limit = record.limit_s if record and record.limit_s else evidence.lock.get("job.walltime_seconds")
    limit = getattr(limit, "value", limit)
    within = f" of {duration(limit)}" if isinstance(limit, int) else ""
    notes, helps = _time_needed(evidence)
    if evidence.stopped:
        helps = ("submit it again to continue", *helps)
    return Diagnostic("R601", f"the job ran into its walltime{within}", _span(line), (_kept(evidence), *notes), helps)


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


def _out_of_host_memory(evidence: Evidence) -> Diagnostic | None:
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
    return Diagnostic("R602", "the job used more host memory than it had asked for", _span(line), notes, helps)


def _lost_a_node(evidence: Evidence) -> Diagnostic | None:
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
    return Diagnostic("R603", f"the job lost a node{hosts}", _span(line), (), helps)


def _stopped(evidence: Evidence) -> Diagnostic | None:
    """Code: R604."""
    record = evidence.record
    line = evidence.first(r"DUE TO PREEMPTION", r"CANCELLED AT|DUE TO JOB REQUEUE|got (?:TERM|INT)")
    if (record and record.end is End.PREEMPTED) or (line and "PREEMPTION" in line[1][0]):
        what = "the job was preempted"
    elif record and record.end is End.CANCELLED:
        what = f"the job was cancelled {record.reason}".rstrip()
    elif evidence.stopped:
        # The ranks that a killed launcher leaves behind ask the others to stop.
        if any(words in evidence.stopped for words in _WITHOUT_LAUNCHER) and (killed := _was_killed(evidence)):
            return replace(killed, notes=(*killed.notes, _kept(evidence)))
        what = f"the run was asked to stop, by {evidence.stopped.strip().splitlines()[0]}"
        line = evidence.first(r"saved, not finished|asking the run to save")
    else:
        return None
    return Diagnostic("R604", what, _span(line), (_kept(evidence),), ("submit it again to continue",))


def _kept(evidence: Evidence) -> str:
    if evidence.stopped:
        return "it saved before it ended"
    return f"its newest checkpoint is {evidence.checkpoint}" if evidence.checkpoint else "it has made no checkpoint"


def _held(evidence: Evidence) -> Diagnostic | None:
    """A process whose stacks faulthandler's timer has printed, since nothing in it could run any more. Code: R525."""
    found = evidence.first(rf"^{RANK}Timeout \((\d+:\d\d:\d\d)(?:\.\d+)?\)!$")
    if found is None:
        return None
    span, match = found
    after = span.source.text.split("\n")[span.line :]
    begins = [number for number, line in enumerate(after) if "(most recent call first)" in line]
    frames = re.findall(
        r'^.*  File "(.+)", line (\d+) in (.+)$', "\n".join(after[begins[-1] :] if begins else ()), re.M
    )
    innermost = next(
        (frame for frame in frames if not tracebacks.OF_OTHERS.search(frame[0])), frames[0] if frames else None
    )
    notes = ("{}:{}, in {}, keeps all other code from running".format(*innermost),) if innermost else ()
    helps = ("look at the stack in the log for code outside of Python that waits, and never lets Python go on",)
    return Diagnostic(
        "R525", f"no progress: a timer of the process printed its stacks after {match[1]}", span, notes, helps
    )


def _no_module(evidence: Evidence) -> Diagnostic | None:
    """Code: R605."""
    found = evidence.first_cause(
        r"ModuleNotFoundError: No module named '([^']+)'",
        r"ImportError: (lib\S+): cannot open shared object file",
        r"(?:^|: )(?:line \d+: )?([\w./-]+): (?:command not found|No such file or directory)$",
        r"^\S*python[\d.]*: No module named ([\w.]+)",
        r"^\S*python[\d.]*: can't open file '([^'\n]+)'",
        r"The following module\(s\) are unknown: \"([^\"\n]+)\"",
        r"Unable to locate a modulefile for '([^'\n]+)'",
        r"version `(\w+_[\d.]+)' not found",
    )
    if found is None:
        return None
    span, match = found
    given = _environments(evidence)
    where = (
        f"install it in the environment of {given[0]}"
        if given
        else "name an environment that has it: `environment.venv`"
    )
    if "module(s)" in match[0] or "modulefile" in match[0]:
        where = f"name a module that `module avail` lists there, in {evidence.at('environment.modules')}"
    elif "open file" in match[0]:
        where = f"name a file that the node sees, in {evidence.at('entrypoint.script')}"
    return Diagnostic("R605", f"`{match[1]}` does not exist on the node", span, (), (where,))


def _environments(evidence: Evidence) -> list[str]:
    """The places in the spec that choose the environment."""
    keys = ("environment.venv", "environment.conda", "environment.container", "environment.modules")
    return [text for text in map(evidence.at, keys) if not text.startswith("`")]


def _no_cuda(evidence: Evidence) -> Diagnostic | None:
    """PyTorch cannot use the GPU that the lock wants. Code: R616."""
    if "hardware.device" in evidence.lock and evidence.lock["hardware.device"].value != "cuda":
        return None
    found = _cuda_warning(evidence) or evidence.first_cause(
        r"The NVIDIA driver on your system is too old|CUDA driver version is insufficient",
        r"no kernel image is available for execution on the device",
        r"Torch not compiled with CUDA enabled",
        r"No CUDA GPUs are available|Found no NVIDIA driver on your system|no CUDA-capable device is detected",
        r"forward compatibility was attempted on non supported HW",
    )
    if found is None:
        return None
    given = _environments(evidence) or ["`environment.venv`"]
    helps = (
        f"take a PyTorch whose CUDA fits the node's driver and its GPU, in {given[0]}",
        "`nvidia-smi` on the node shows the driver; `python -c 'import torch; print(torch.version.cuda, "
        "torch.cuda.get_arch_list())'` what PyTorch is built for",
    )
    return Diagnostic("R616", f"PyTorch cannot use the node's GPU: {found[1][0]}", found[0], (), helps)


def _cuda_warning(evidence: Evidence) -> tuple[Span, re.Match[str]] | None:
    """Torch's warning that it finds no GPU, unless the program trained after it."""
    found = evidence.first(r"(?<=CUDA initialization: )[^(\n]*[^(\n .]")
    if found is None:
        return None
    after = "\n".join(found[0].source.text.split("\n")[found[0].line :])
    return None if re.search(r"(?i)\b(?:epochs?|steps?|iter\w*|loss)\b|\d/\d", after) else found


def _out_of_gpu_memory(evidence: Evidence) -> Diagnostic | None:
    """Code: R606."""
    found = evidence.first_cause(
        r"(?:torch\.(?:cuda\.)?)?OutOfMemoryError: .*|CUDA out of memory\..*|CUDA error: (?i:out of memory).*"
    )
    if found is None:
        return None
    size = evidence.lock["training.micro_batch_size"].value if "training.micro_batch_size" in evidence.lock else None
    notes = (f"it ran with a micro-batch of {size}",) if size else ()
    smaller = f"`{size // 2}`" if isinstance(size, int) and size > 1 else "a smaller one"
    helps = [
        f"try {smaller} in {evidence.at('training.batch_size')}: the global batch stays the same, with more "
        f"accumulation"
    ]
    # Of a program nothing is predicted unless its spec describes the step.
    if not evidence.is_program or "memory.margin" in evidence.lock:
        helps.append("`ratc fit SPEC` shows what fits on each card")
    return Diagnostic("R606", "a GPU ran out of memory", found[0], notes, tuple(helps))


def _no_place(evidence: Evidence) -> Diagnostic | None:
    """Code: R607."""
    found = evidence.first_cause(
        r"^mkdir: cannot create directory [\u2018']([^\u2019'\n]*)[\u2019']: (?!File exists)",
        r"No space left on device(?:: '([^']*)')?",
        r"Disk quota exceeded(?:: '([^']*)')?",
        r"Read-only file system(?:: '([^']*)')?",
        r"Permission denied(?:: '([^']*)')?",
        r"insufficient shared memory|Bus error",
    )
    if found is None:
        return None
    span, match = found
    of = f" at `{match[1]}`" if match.lastindex else ""
    words = match[0].split(":")[0].lower()
    if words == "mkdir":
        words = "the folder cannot be made"
    help = f"free some space, or name another folder in {evidence.at('output_dir')}"
    if "shared" in words or "bus" in words:
        help = f"the loader processes share memory: ask for more in /dev/shm, or {evidence.at('data.num_workers')}"
    return Diagnostic("R607", f"a file could not be written or read{of}: {words}", span, (), (help,))


def _no_network(evidence: Evidence) -> Diagnostic | None:
    """Code: R608."""
    found = evidence.first(
        r"ncclUnhandledCudaError|ncclSystemError|ncclRemoteError|NCCL error.*",
        r"Watchdog caught collective operation timeout.*|DistBackendError\b.*",
        r"(?:DistNetworkError|DistStoreError|RendezvousConnectionError)\b.*",
        r"Connection (?:reset by peer|closed by peer|refused|timed out)|No route to host",
    )
    if found is None:
        return None
    helps = (
        "look for the first failure on another node: a process that ended closes its connections",
        "if there is none, the nodes cannot reach each other: set `interface` in the cluster's facts "
        "(`NCCL_SOCKET_IFNAME`)",
    )
    return Diagnostic("R608", f"the processes lost each other: {found[1][0]}", found[0], (), helps)


def _own_error(evidence: Evidence) -> Diagnostic | None:
    """An exception that nobody caught, with the innermost line that is of no installed package. Code: R609."""
    if not evidence.raised:
        return None
    span = evidence.raised[0].span
    # A program whose launcher is killed is interrupted.
    if evidence.raised[0].is_late and (line := evidence.first(r"node\.sh: line \d+: +\d+ Killed\b")) is not None:
        return _killed(evidence, line[0])
    message = span.source.line(span.line)[span.column - 1 :]
    # Of a loader process: torch raises an exception that says so, and below it often one that does not.
    pids = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", message)
    any_of = "|".join(re.findall(r"\d+", pids[1])) if pids else ""
    worker = pids and evidence.first(rf"DataLoader worker \(pid (?:{any_of})\) is killed by signal: Killed")
    if worker:
        return _killed(evidence, worker[0])
    lines = span.source.text.split("\n")[: span.line]
    for number in range(len(lines), max(0, len(lines) - 400), -1):
        frame = tracebacks.FRAME.match(lines[number - 1])
        if frame and not tracebacks.OF_OTHERS.search(frame["file"]):
            where = f", in {frame['name']}" if frame["name"] else ""
            return Diagnostic("R609", message, span, (f"raised below {frame['file']}:{frame['line']}{where}",))
    return Diagnostic("R609", message, span)


def _refused_arguments(evidence: Evidence) -> Diagnostic | None:
    """A program ended because it does not take its arguments, in the words of argparse, click and transformers. Code:
    R610.
    """
    found = evidence.first_cause(
        r"^(?:\[\w+\d+\]:[ \t]?)?(?:\S+ ){0,4}?(?:\S+: )?error: ((?i:unrecognized arguments|the following arguments are"
        r" required|one of the arguments|argument \S+:|ambiguous option).*)",
        r"ValueError: (Some specified arguments are not used by the HfArgumentParser.*)",
        r"^Error: ((?:No such option|Missing option|Missing argument|Invalid value for|Got unexpected extra arg).*)",
    )
    if found is None:
        return None
    helps = (f"it is about {evidence.at('entrypoint.args')}",) if evidence.is_program else ()
    return Diagnostic("R610", f"the program does not take its arguments: {found[1][1]}", found[0], (), helps)


def _refused(evidence: Evidence) -> Diagnostic | None:
    """Return a finding if a script of ratc's, or the scheduler, ended the job before it trained. Code: R610."""
    found = evidence.first(
        r"ratc: (the files of this job are not .*|started again .*|no port is free .*|the job has .* nodes, .*|"
        r"points\.tsv has no point .*|no temporary folder .*)",
        r"is named under secrets in the spec and must be set",
        r"(?:slurmstepd|srun|slurmd|blaunch): error: (?!.*(?:Terminating|tasks? \d+: Exited|STEP))(.*)",
    )
    if found is None:
        return None
    span, match = found
    text = match[1] if match.lastindex else span.source.line(span.line).split(": ", 1)[-1]
    return Diagnostic("R610", f"the job ended before it trained: {text}", span)


def _was_killed(evidence: Evidence) -> Diagnostic | None:
    """A process that the system killed, by a launcher's or the shell's word. Code: R615."""
    line = evidence.first_cause(
        r"was ended by signal 9\b|exitcode +: -9\b|Signal 9 \(SIGKILL\) received|died with <Signals\.SIGKILL",
        r"^\S.*: line \d+: +\d+ Killed\b|^Killed$",
    )
    return _killed(evidence, line[0]) if line is not None else None


def _was_silent(evidence: Evidence) -> Diagnostic | None:
    """The same by the exit status, or since a failed run says nothing of an error. ratc's own loop prints every error,
    so its silence counts; that of another program does not. Code: R615.
    """
    record = evidence.record
    if record is None or record.end is not End.FAILED:
        return None
    if record.status == 128 + 9:
        return _killed(evidence, _end(evidence))
    has_log = any(log.text.strip() for log in evidence.logs)
    if not (has_log and not evidence.is_program and record.status in (None, 1)) or evidence.first(_ERROR) is not None:
        return None
    notes = ("a process that the system kills (signal 9) cannot write one, and its launcher ends with status 1",)
    told = _killed(evidence, _end(evidence))
    return replace(told, message="the run ended without a message of an error", notes=notes)


def _killed(evidence: Evidence, span: Span | None) -> Diagnostic:
    helps = (
        "a node whose memory is full kills the process that has most of it: ask for more in "
        f"{evidence.at('resources.memory')}, or start fewer loader processes in {evidence.at('data.num_workers')}",
        "the node's own log (`dmesg`) says what it killed",
    )
    return Diagnostic("R615", "a process was killed (signal 9)", span, (), helps)


def _unknown(evidence: Evidence) -> Diagnostic:
    """Code: R611."""
    looked = [log.name for log in evidence.logs]
    notes = (f"read: {', '.join(looked)}",) if looked else ("no log was found",)
    helps = (
        "give the file with the output: `--log FILE`" if not looked else "read the end of the log",
        "run it again with `--debug`, which inspects each step",
    )
    place = _span(evidence.first(_ERROR)) or _end(evidence)
    return Diagnostic("R611", "no known cause was found", place, notes, helps)


def _end(evidence: Evidence) -> Span | None:
    """The last line of the first log that has one."""
    for log in evidence.logs:
        lines = log.text.rstrip("\n").split("\n")
        if lines[-1].strip():
            return place(log, len(lines), 0, len(lines[-1]))
    return None


def _span(found: tuple[Span, re.Match[str]] | None) -> Span | None:
    return found[0] if found else None


#: In the order in which they are looked for: what the run says itself, then what the scheduler did to it, then what
#: others have printed, which may follow from any of these.
CAUSES: Sequence[Callable[[Evidence], Diagnostic | None]] = (
    _no_failure,
    _run_finding,
    _out_of_time,
    _out_of_host_memory,
    _lost_a_node,
    _stopped,
    _out_of_gpu_memory,
    _refused_arguments,
    _no_cuda,
    _no_module,
    _no_place,
    _own_error,
    _held,
    _was_killed,  # the others then lose the connection to it
    _no_network,
    _refused,
    _was_silent,
    _following,
)
