"""Run by itself: imports torch once, then forks itself for every job on standard input.

A line of JSON a job: ``module`` or ``file`` (to run), ``arguments``, ``folder`` (its working directory),
``environment``, ``paths`` (put before the others that are imported from), ``limits`` (of `resource`, by name) and
``streams`` (the files of its standard streams). Each job leads a session of its own. On standard output a line says its
process number, and another one, when it has ended, its wait status. At the end of standard input all jobs are killed.
"""

import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

#: The modules with the slowest imports; an optimizer's first call imports torch._dynamo. A failed import of torch is
#: reported by the job.
MODULES = ("torch", "torch._subclasses.fake_tensor", "torch.utils.checkpoint", "torch._dynamo")


def serve() -> dict[str, Any]:
    """Start jobs and say how they ended. Returns a job in the process that is to do it, and nowhere else."""
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken)
    running: set[int] = set()
    asked = b""
    while True:
        ready = select.select([0, wake], [], [])[0]
        if wake in ready:
            os.read(wake, 4096)
            for number in list(running):
                ended, status = os.waitpid(number, os.WNOHANG)
                if ended:
                    running.remove(number)
                    _tell(ended=number, status=status)
        if 0 in ready:
            more = os.read(0, 1 << 16)
            if not more:
                _end(running)
            *lines, asked = (asked + more).split(b"\n")
            for line in lines:
                number = os.fork()
                if not number:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    os.close(wake)
                    os.close(woken)
                    os.setsid()
                    _tell(started=os.getpid())
                    job: dict[str, Any] = json.loads(line)
                    return job
                running.add(number)


def _tell(**what: int) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


def _end(running: set[int]) -> NoReturn:
    """End with the process that asked."""
    for number in running:
        try:
            os.killpg(number, signal.SIGKILL)
        except ProcessLookupError:  # it does not lead its group yet
            os.kill(number, signal.SIGKILL)
    os._exit(0)


def become(job: dict[str, Any], base: Sequence[str]) -> NoReturn:
    """Do a job in this process, as if the interpreter had been started for it, and end. Imported modules are not torn
    down, which would take seconds.
    """
    for descriptor, path in enumerate(job["streams"]):
        opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    for limit, values in job["limits"].items():
        resource.setrlimit(getattr(resource, limit), tuple(values))
    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    sys.path[:] = [*job["paths"], *base]
    sys.argv[1:] = job["arguments"]
    status = 0
    try:
        if "module" in job:
            runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(job["file"], run_name="__main__")
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 0xFF)


def main(modules: Sequence[str]) -> NoReturn:
    """Import ``modules``, up to the first that fails, and serve. Jobs import from ``sys.path`` as it is now."""
    base = tuple(sys.path)
    gc.disable()
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception:
            break
    gc.freeze()  # no collection in a job visits, and so copies, the imported modules
    gc.enable()
    become(serve(), base)


if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False):
        sys.path.pop(0)  # this folder is not a place to import from
    main(MODULES)
