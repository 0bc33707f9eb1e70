"""Have the runtime do a piece of work in a process of its own, with limits.

A user's model may raise, hang, exit, print, or take all memory there: here each of these is one diagnostic.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ratc import files
from ratc.catalog import launch_variables
from ratc.diagnostics import Diagnostic, Span
from ratc.tracing import warm

#: Bytes of private memory that the process may take: fake tensors need none, torch itself about one GiB.
MEMORY_BYTES = 12 << 30
#: Seconds between two polls of a process's usage.
POLL_S = 0.5
#: The help for a met limit.
WITHOUT = "set `training.batch_size`: the compilation then needs no prediction"
#: The place of a key in the spec.
Spans = Callable[[str], Span | None]
MODEL = "model.name"
_TAIL = 1 << 16
#: Runs a module as `python -m` does, but for the working folder on the path: that is a spec's, and anybody's.
_ALONE = """import sys
if sys.path[:1] == [""]:
    sys.path.pop(0)
import runpy
runpy.run_module("{module}", run_name="__main__", alter_sys=True)
"""
#: The fork server starts one job at a time.
_one_at_a_time = threading.Lock()


@dataclass(frozen=True, slots=True)
class Work:
    """A module of the runtime that reads a request on standard input and writes a file.

    Attributes:
        module: Its name.
        doing: Its action, in a message's words.
        code: The code of its failure.
        gpu: Whether it needs the GPU, and then has no limit of memory: CUDA maps more than there is.
        interpreter: The Python that runs it.
        variables: Added to its environment.
        warm: Whether it shares one import of torch with others of this command. Not with another interpreter.
    """

    module: str
    doing: str
    code: str
    gpu: bool = False
    interpreter: str = sys.executable
    variables: Mapping[str, str] = field(default_factory=dict)
    warm: bool = False


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a process. None means that there is no limit.

    Attributes:
        cpu_s: Seconds of processor time, of the process and its children together. Other load on the machine does not
            count, as it would by the clock.
        idle_s: Seconds in which none of them runs or waits for a disk: it waits for something that does not come.
        wall_s: Seconds by the clock.
    """

    cpu_s: float | None = None
    idle_s: float | None = None
    wall_s: float | None = None


class Process(Protocol):
    """The interface of a process that this module needs: a part of `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...
    def wait(self, timeout: float | None = None) -> int: ...


def run(
    work: Work,
    request: Mapping[str, Any],
    runtime: str | None,
    folder: str,
    output: str,
    spans: Spans,
    limits: Limits,
) -> Diagnostic | None:
    """Do a piece of work in the spec's ``folder``, with the package ``runtime``. Return None, or a finding on its
    failure: a limit that was met, or the runtime's own report. ``spans`` gives the place of a key of the spec.
    """
    span = spans(MODEL)
    if runtime is None:
        helps = ("install ratc with its runtime: `pip install 'ratc[runtime]'`",)
        known = "measured" if work.gpu else "predicted"
        return Diagnostic(
            work.code, f"memory cannot be {known}: ratc's runtime is not installed here", span, helps=helps
        )
    environment = _environment(work, runtime)
    folder, output = os.path.abspath(folder or "."), os.path.abspath(output)
    with files.temporary_folder() as place:
        streams = os.path.join(place, "request.json"), os.devnull, os.path.join(place, "errors")
        with open(streams[0], "w", encoding="utf-8") as file:
            json.dump(request, file)
        with _one_at_a_time if work.warm else contextlib.nullcontext():
            status, met = _watched(_start(work, output, folder, environment, limits, streams), limits)
        if met:
            return Diagnostic(work.code, f"{work.doing} the model {met}", span, helps=(WITHOUT,))
        with open(streams[2], "rb") as errors:
            errors.seek(max(0, os.fstat(errors.fileno()).st_size - _TAIL))
            said = errors.read().decode("utf-8", "replace")
    return None if status == 0 else _failure(work, status, said, spans)


def _environment(work: Work, runtime: str) -> dict[str, str]:
    paths = [os.path.dirname(runtime), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    found = {
        # Torch's logs are for a run; here they are not read.
        **{name: text for name, text in os.environ.items() if name not in launch_variables.LOGS},
        "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in paths),
        # The result must not depend on the network.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        **work.variables,
    }
    if not work.gpu:
        found["CUDA_VISIBLE_DEVICES"] = ""
    return found


def _start(
    work: Work, output: str, folder: str, environment: dict[str, str], limits: Limits, streams: tuple[str, str, str]
) -> Process:
    """Start a piece of work; without the fork server if that fails, since importing torch may crash."""
    if work.warm:
        try:
            return warm.start({"module": work.module}, [output], folder, environment, _bounds(limits), streams)
        except OSError:
            pass
    return _cold(work, output, folder, environment, limits, streams)


def _cold(
    work: Work, output: str, folder: str, environment: dict[str, str], limits: Limits, streams: tuple[str, str, str]
) -> subprocess.Popen[bytes]:
    """Start an interpreter for a piece of work."""
    with open(streams[0], "rb") as asked, open(streams[2], "wb") as errors:
        return subprocess.Popen(
            [work.interpreter, "-c", _ALONE.format(module=work.module), output],
            stdin=asked,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            cwd=folder,
            env=environment,
            start_new_session=True,
            preexec_fn=None if work.gpu else functools.partial(_limit, _bounds(limits)),
        )


def _bounds(limits: Limits) -> dict[str, tuple[int, int]]:
    """Return the limits that the kernel enforces on each process, by their names in `resource`."""
    import resource

    found = {"RLIMIT_DATA": (MEMORY_BYTES, MEMORY_BYTES), "RLIMIT_CORE": (0, 0)}
    if limits.cpu_s is not None:
        # Only if /proc says nothing is this one met.
        most = int(limits.cpu_s) + 30
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        found["RLIMIT_CPU"] = (most if hard == resource.RLIM_INFINITY else min(most, hard), hard)
    return found


def _limit(bounds: Mapping[str, tuple[int, int]]) -> None:
    import resource

    for name, values in bounds.items():
        resource.setrlimit(getattr(resource, name), values)


def _watched(process: Process, limits: Limits) -> tuple[int, str | None]:
    """Wait for a process; returns its exit status, and the limit that it met, in words."""
    try:
        met = _await(process, limits)
    finally:
        _end(process)
    return process.wait(), met


def _await(process: Process, limits: Limits) -> str | None:
    """Wait for a session's leader; returns the limit that it met, in words, or None if it ended by itself."""
    start = active = time.monotonic()
    counted = 0.0
    while True:
        try:
            process.wait(POLL_S)
            return None
        except subprocess.TimeoutExpired:
            pass
        now = time.monotonic()
        used, busy = _usage(process.pid) or (0.0, True)
        if busy or used >= counted + 1:
            active, counted = now, used
        if limits.cpu_s is not None and used > limits.cpu_s:
            return f"took more than {limits.cpu_s:g} s of processor time"
        if limits.idle_s is not None and now - active > limits.idle_s:
            return f"has done nothing for {limits.idle_s:g} s: it may wait for something that never comes"
        if limits.wall_s is not None and now - start > limits.wall_s:
            return f"did not end within {limits.wall_s:g} s"


def _usage(session: int) -> tuple[float, bool] | None:
    """Seconds of processor time of a session's processes, with that of children that ended, and whether one of them
    runs or waits for a disk now. None on a system without /proc.

    A process may run for less than a tick of the kernel's clock, and so have used nothing.
    """
    ticks, busy = 0, False
    try:
        numbers = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return None
    for number in numbers:
        try:
            with open(f"/proc/{number}/stat", "rb") as handle:
                # After the name in parentheses, which may hold anything (proc_pid_stat(5)): state is the 3rd field of
                # the file, session the 6th, utime to cstime the 14th to 17th.
                fields = handle.read().rpartition(b")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[3]) == session:
            ticks += sum(int(field) for field in fields[11:15])
            busy = busy or fields[0] in (b"R", b"D")
    return ticks / os.sysconf("SC_CLK_TCK"), busy


def _end(process: Process) -> None:
    """End the whole session: the model may have started processes of its own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    except PermissionError:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()


def _failure(work: Work, status: int, said: str, spans: Spans) -> Diagnostic:
    """Return the runtime's report in its last line, or else the exit status or signal of the process."""
    span = spans(MODEL)
    lines = [line for line in said.splitlines() if line.strip()]
    for line in reversed(lines):
        try:
            told = json.loads(line)
        except ValueError:
            continue
        if isinstance(told, dict) and isinstance(told.get("message"), str):
            code = str(told.get("code"))
            where = f"at {told['where']}" if told.get("where") else ""
            helps = tuple(str(text) for text in [told.get("help")] if text)
            known = re.fullmatch(r"R[235]\d\d", code)
            place = (spans(str(told["key"])) if told.get("key") else None) or span
            return Diagnostic(code if known else work.code, told["message"], place, (where,), helps)
    how = f"with signal {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
    return Diagnostic(work.code, f"{work.doing} the model ended {how}", span, (lines[-1][:300] if lines else "",))
