"""Causes in what others have printed: torch, Python, the launcher, a program, the scheduler."""

from __future__ import annotations

import re

from ratc.diagnostics import Diagnostic, Span
from ratc.why import tracebacks
from ratc.why.endings import killed
from ratc.why.evidence import RANK, Evidence


def held(evidence: Evidence) -> Diagnostic | None:
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


def no_module(evidence: Evidence) -> Diagnostic | None:
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


def no_cuda(evidence: Evidence) -> Diagnostic | None:
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


def out_of_gpu_memory(evidence: Evidence) -> Diagnostic | None:
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


def no_place(evidence: Evidence) -> Diagnostic | None:
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


def no_network(evidence: Evidence) -> Diagnostic | None:
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


def own_error(evidence: Evidence) -> Diagnostic | None:
    """An exception that nobody caught, with the innermost line that is of no installed package. Code: R609."""
    if not evidence.raised:
        return None
    span = evidence.raised[0].span
    # A program whose launcher is killed is interrupted.
    if evidence.raised[0].is_late and (line := evidence.first(r"node\.sh: line \d+: +\d+ Killed\b")) is not None:
        return killed(evidence, line[0])
    message = span.source.line(span.line)[span.column - 1 :]
    # Of a loader process: torch raises an exception that says so, and below it often one that does not.
    pids = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", message)
    any_of = "|".join(re.findall(r"\d+", pids[1])) if pids else ""
    worker = pids and evidence.first(rf"DataLoader worker \(pid (?:{any_of})\) is killed by signal: Killed")
    if worker:
        return killed(evidence, worker[0])
    lines = span.source.text.split("\n")[: span.line]
    for number in range(len(lines), max(0, len(lines) - 400), -1):
        frame = tracebacks.FRAME.match(lines[number - 1])
        if frame and not tracebacks.OF_OTHERS.search(frame["file"]):
            where = f", in {frame['name']}" if frame["name"] else ""
            return Diagnostic("R609", message, span, (f"raised below {frame['file']}:{frame['line']}{where}",))
    return Diagnostic("R609", message, span)


def refused_arguments(evidence: Evidence) -> Diagnostic | None:
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


def refused(evidence: Evidence) -> Diagnostic | None:
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
