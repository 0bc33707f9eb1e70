"""Ask the runtime for a model's trace, in a process of its own with limits, and keep what it said by content.

A user's model may raise, hang, exit, print, or take all memory while it is built: here that is one diagnostic. The
cache lies in `$RATC_CACHE`, else in `ratc` under `$XDG_CACHE_HOME` or `~/.cache`. Codes: R315, and those that the
runtime reports.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ratc.diagnostics import Diagnostic, Span
from ratc.memory.trace import VERSION, BadTrace, Trace, parse

#: Bytes of private memory that the tracing process may take: fake tensors need none, torch itself about one GiB.
MEMORY_BYTES = 12 << 30
#: Seconds between two looks at what a process has used.
POLL_S = 0.5
#: What to do if a limit was met.
WITHOUT = "if `batch_size` is not set, set it: training then needs no prediction"
#: Traces kept; the oldest go first.
KEPT = 300
_TAIL = 1 << 16


@dataclass(frozen=True, slots=True)
class Work:
    """A module of the runtime that reads a request on standard input and writes a file: what it is called, the code of
    what goes wrong, and whether it needs the GPU (and then no limit of memory: CUDA maps more than there is).
    ``variables`` are added to its environment.
    """

    module: str
    doing: str
    code: str
    gpu: bool = False
    interpreter: str = sys.executable
    variables: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Limits:
    """When a process is ended. None is no limit.

    Attributes:
        cpu_s: Seconds of processor time, of the process and its children together. Other load on the machine does not
            count, as it would by the clock.
        idle_s: Seconds in which none of them runs or waits for a disk: it waits for something that does not come.
        wall_s: Seconds by the clock, whatever it does.
    """

    cpu_s: float | None = None
    idle_s: float | None = None
    wall_s: float | None = None


TRACING = Work("ratc_runtime.trace", "tracing", "R315")
#: For one trace. RAT takes about 10 s of processor time, most of it the import of torch.
LIMITS = Limits(cpu_s=360.0, idle_s=120.0, wall_s=1800.0)


def fetch(
    request: Mapping[str, Any],
    folder: str,
    span: Span | None = None,
    progress: Callable[[str], None] | None = None,
    limits: Limits = LIMITS,
) -> tuple[Trace | None, tuple[Diagnostic, ...]]:
    """The trace for a request, from the cache or made now in ``folder``, the spec's. A corrupt cache entry is made
    again.
    """
    path = os.path.join(cache_folder(), f"{key(request, folder)}.json")
    kept = _read(path)
    if isinstance(kept, Trace):
        os.utime(path)
        return kept, ()
    if progress:
        progress(_describe(request))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    handle, fresh = tempfile.mkstemp(suffix=".part", dir=os.path.dirname(path))
    os.close(handle)
    try:
        problem = run(TRACING, request, folder, fresh, span, limits)
        if problem:
            return None, (problem,)
        trace = _read(fresh)
        if not isinstance(trace, Trace):
            return None, (Diagnostic("R315", f"the runtime wrote a trace that cannot be used: {trace}", span),)
        os.replace(fresh, path)
        _prune(os.path.dirname(path))
        return trace, ()
    finally:
        if os.path.exists(fresh):
            os.unlink(fresh)


def cache_folder() -> str:
    """Where traces are kept."""
    given = os.environ.get("RATC_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(given or os.path.join(base, "ratc"), "traces")


def key(request: Mapping[str, Any], folder: str) -> str:
    """The digest of all that a trace depends on: the request, the packages, the runtime's code and the user's own."""
    whole = hashlib.sha256()
    whole.update(json.dumps([VERSION, sys.version_info[:2], request], sort_keys=True).encode())
    for name in _packages():
        whole.update(name.encode() + b"\0")
    for file in _sources(request, folder):
        try:
            with open(file, "rb") as handle:
                whole.update(file.encode() + b"\0" + hashlib.sha256(handle.read()).digest())
        except OSError:
            continue
    return whole.hexdigest()


def _packages() -> list[str]:
    """Every installed package as name and version: the names of its metadata folders."""
    found: set[str] = set()
    for place in sys.path:
        if os.path.isdir(place):
            found |= {name for name in os.listdir(place) if name.endswith(".dist-info")}
    return sorted(found)


def _sources(request: Mapping[str, Any], folder: str) -> list[str]:
    """The runtime's modules, and the user's own."""
    runtime = _runtime_folder()
    return sorted([*(_python_files(runtime) if runtime else []), *own_sources(request, folder)])


def own_sources(request: Mapping[str, Any], folder: str) -> list[str]:
    """The modules beside the spec that the model's and the loss's names begin with."""
    files = []
    for name in (request["model"]["name"], request["training"]["loss"]["name"]):
        top = str(name).partition(":")[0].split(".")[0]
        if ":" in str(name):
            files += [os.path.join(folder, top), os.path.join(folder, f"{top}.py")]
    return sorted({found for file in files for found in _python_files(file)})


def _python_files(place: str) -> list[str]:
    if os.path.isfile(place):
        return [place]
    return [os.path.join(root, name) for root, _, names in os.walk(place) for name in names if name.endswith(".py")]


def _runtime_folder() -> str | None:
    beside = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    for place in (os.path.join(beside, "runtime"), beside, *sys.path):
        if os.path.isdir(os.path.join(place, "ratc_runtime")):
            return os.path.join(place, "ratc_runtime")
    return None


def _read(path: str) -> Trace | str:
    """The trace in a file, or what is wrong with it."""
    try:
        with open(path, "rb") as handle:
            return parse(json.load(handle))
    except FileNotFoundError:
        return "there is none"
    except (OSError, ValueError, RecursionError) as error:
        return str(error) if isinstance(error, BadTrace) else f"{type(error).__name__}: {error}"


def run(
    work: Work, request: Mapping[str, Any], folder: str, output: str, span: Span | None, limits: Limits
) -> Diagnostic | None:
    """Have the runtime do its work in a process of its own, in the spec's folder; what went wrong, if anything: a
    limit that was met, or what the runtime reports.
    """
    runtime = _runtime_folder()
    if runtime is None:
        helps = ("install ratc with its runtime: `pip install 'ratc[runtime]'`",)
        known = "measured" if work.gpu else "predicted"
        return Diagnostic(work.code, f"memory cannot be {known}: the runtime is not installed here", span, helps=helps)
    paths = [os.path.dirname(runtime), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in paths),
        # What is found must not depend on what the network answers.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        **work.variables,
    }
    if not work.gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [work.interpreter, "-m", work.module, os.path.abspath(output)]
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as asked:
        asked.write(json.dumps(request).encode())
        asked.seek(0)
        process = subprocess.Popen(
            command,
            stdin=asked,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            cwd=folder or ".",
            env=environment,
            start_new_session=True,
            preexec_fn=None if work.gpu else functools.partial(_limit, limits),
        )
        try:
            met = _await(process, limits)
        finally:
            _end(process)
        if met:
            return Diagnostic(work.code, f"{work.doing} the model {met}", span, helps=(WITHOUT,))
        errors.seek(max(0, os.fstat(errors.fileno()).st_size - _TAIL))
        said = errors.read().decode("utf-8", "replace")
    return None if process.returncode == 0 else _failure(work, process.returncode, said, span)


def _limit(limits: Limits) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if limits.cpu_s is not None:
        # Of each process; for the sum of them there is no such limit. Only where /proc says nothing is this one met.
        most = int(limits.cpu_s) + 30
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_CPU, (most, hard))


def _await(process: subprocess.Popen[bytes], limits: Limits) -> str | None:
    """Wait for a process that leads its session; the limit that it met, in words, or None if it ended by itself."""
    start = active = time.monotonic()
    counted = 0.0
    while True:
        try:
            process.wait(POLL_S)
            return None
        except subprocess.TimeoutExpired:
            pass
        now = time.monotonic()
        used, busy = _usage(process.pid)
        if busy or used >= counted + 1:
            active, counted = now, used
        if limits.cpu_s is not None and used > limits.cpu_s:
            return f"took more than {limits.cpu_s:g} s of processor time"
        if limits.idle_s is not None and now - active > limits.idle_s and used:
            return f"has done nothing for {limits.idle_s:g} s: it waits for something that does not come"
        if limits.wall_s is not None and now - start > limits.wall_s:
            return f"did not end within {limits.wall_s:g} s"


def _usage(session: int) -> tuple[float, bool]:
    """Seconds of processor time of a session's processes, with that of children that ended, and whether one of them
    runs or waits for a disk now. (0, False) on a system without /proc.
    """
    ticks, busy = 0, False
    try:
        numbers = [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return 0.0, False
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


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing behind: the model may have started processes of its own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    except PermissionError:
        process.kill()
    process.wait()


def _failure(work: Work, status: int, said: str, span: Span | None) -> Diagnostic:
    """What the runtime reported in its last line, or what can be known of a process that went without a word."""
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
            known = re.fullmatch(r"R[35]\d\d", code)
            return Diagnostic(code if known else work.code, told["message"], span, (where,), helps)
    how = f"with signal {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
    return Diagnostic(work.code, f"{work.doing} the model ended {how}", span, (lines[-1][:300] if lines else "",))


def _describe(request: Mapping[str, Any]) -> str:
    training, data = request["training"], request["data"]
    size = " x ".join(str(side) for side in data["image_size"])
    more = ", checkpointed" if training["activation_checkpointing"] else ""
    several = ", accumulating" if request["accumulation"] > 1 else ""
    kernels = f"compute capability {request['compute_capability']}"
    return f"tracing {request['model']['name']}: {size}, {training['precision']}, {kernels}{more}{several}"


def _prune(folder: str) -> None:
    files = [os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".json")]
    if len(files) > KEPT:
        for file in sorted(files, key=os.path.getmtime)[: len(files) - KEPT]:
            os.unlink(file)
