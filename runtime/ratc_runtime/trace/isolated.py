"""Recording in child processes: the model's code may print, hang, crash or change the process.

There is one forked child per batch size. They share the import of torch, cannot affect each other (by a cache of
tensors, say), and run at once.
"""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import resource
import selectors
import signal
import sys
from dataclasses import dataclass, field
from typing import NoReturn

import torch

from ratc_runtime.trace.failure import FAILED, Failure, TraceError
from ratc_runtime.trace.record import Recording, record
from ratc_runtime.trace.request import BadRequest, Request

# Host memory that building or calling a model may take beyond what the process has, in bytes.
HOST_LIMIT_BYTES = 16 * 2**30
TAIL_BYTES = 4000


@dataclass
class _Child:
    pid: int
    batch: int
    result: bytearray = field(default_factory=bytearray)
    printed: bytearray = field(default_factory=bytearray)


def _limit_memory() -> None:
    """Let allocations fail beyond the limit. RLIMIT_DATA counts private writable memory (Linux 4.7 on)."""
    with open("/proc/self/status") as status:
        used = next((int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:")), 0)
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = used + HOST_LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _work(request: Request, batch: int, result: int, printed: int) -> NoReturn:
    """Record in the child. The answer goes through one pipe, printed text through another."""
    status = 1
    try:
        null = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, null), (1, printed), (2, printed)):
            os.dup2(source, target)
        if sys.platform == "linux":
            # The caller kills the parent after a timeout; PR_SET_PDEATHSIG (prctl(2)) ends this process with it.
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)
            _limit_memory()
        # OpenMP's threads do not come along with a fork: if the parent ever used them, a loop here would wait for ever.
        torch.set_num_threads(1)
        answer: object
        try:
            answer = record(request, batch)
        except TraceError as error:
            answer = error.failure
        except BadRequest as error:
            answer = error
        with os.fdopen(result, "wb") as pipe:
            pickle.dump(answer, pipe)
        status = 0
    finally:
        os._exit(status)


def _start(request: Request, batch: int, selector: selectors.BaseSelector, others: list[int]) -> _Child:
    result, result_end = os.pipe()
    printed, printed_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        for descriptor in (result, printed, *others):
            os.close(descriptor)
        _work(request, batch, result_end, printed_end)
    os.close(result_end)
    os.close(printed_end)
    child = _Child(pid, batch)
    others += [result, printed]
    selector.register(result, selectors.EVENT_READ, child.result)
    selector.register(printed, selectors.EVENT_READ, child.printed)
    return child


def _collect(selector: selectors.BaseSelector) -> None:
    """Read all pipes to their ends. Of printed text only the last part is used."""
    while selector.get_map():
        for key, _ in selector.select():
            data = os.read(key.fd, 1 << 20)
            if not data:
                selector.unregister(key.fd)
                os.close(key.fd)
            key.data.extend(data)


def _answer(child: _Child) -> Recording:
    _, status = os.waitpid(child.pid, 0)
    if child.result and os.waitstatus_to_exitcode(status) == 0:
        answer = pickle.loads(bytes(child.result))
        if isinstance(answer, Recording):
            return answer
        raise TraceError(answer) if isinstance(answer, Failure) else answer
    code = os.waitstatus_to_exitcode(status)
    how = f"ended the process with status {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
    tail = bytes(child.printed[-TAIL_BYTES:]).decode(errors="replace")
    raise TraceError(Failure(FAILED, f"the model's code {how} while it was traced", "", tail))


def record_both(request: Request) -> tuple[Recording, Recording]:
    """Record at both batch sizes of a request, at the same time. If it has only one, return its recording twice.

    Raises TraceError: R315, R316; BadRequest if the request asks for an unknown optimizer.
    """
    gc.freeze()  # the children collect garbage between steps: all imported modules need not be looked at
    selector = selectors.DefaultSelector()
    descriptors: list[int] = []
    children = [_start(request, batch, selector, descriptors) for batch in request.batch_sizes]
    try:
        _collect(selector)
    except BaseException:
        for child in children:
            os.kill(child.pid, signal.SIGKILL)
        raise
    answers: list[Recording] = []
    failures: list[Exception] = []
    for child in children:  # every child is waited for
        try:
            answers.append(_answer(child))
        except (TraceError, BadRequest) as error:
            failures.append(error)
    if failures:
        raise failures[0]
    return answers[0], answers[-1]
