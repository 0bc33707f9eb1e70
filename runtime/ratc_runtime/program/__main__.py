"""Starts a program of the spec's own on one node, and records how it ended.

`python -m ratc_runtime.program --lock LOCK … -- LAUNCHER … {}`: `{}` stands for the program and its arguments. A run is
finished only if the program ended with status 0 on every node and did not stop; then results.json says so, with the
digest of the lock. What the program itself wrote there is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from ratc_runtime.config import elastic
from ratc_runtime.config.lock import lock_digest
from ratc_runtime.config.program_lock import ProgramLock, fill, read_any
from ratc_runtime.distributed.stop import STOP_FILE, STOPPED_FILE
from ratc_runtime.errors import RuntimeFinding, say, warn
from ratc_runtime.health import record as health
from ratc_runtime.output import results
from ratc_runtime.output.atomic import write_text
from ratc_runtime.output.folder_lock import FolderLock
from ratc_runtime.program import plan

#: Stands for the program in the words of a launcher.
HERE = "{}"
#: Says which program was started in an output folder last.
IDENTITY_FILE = "identity"
#: Seconds for the other nodes to end after the first one did: file systems may show their word later.
PATIENCE = 60.0
#: What decides the optimizer step: results that say it otherwise are of another run than the reviewed one.
_SPLIT = ("micro_batch_size", "gradient_accumulation_steps", "global_batch_size", "world_size")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ratc_runtime.program", description="Start a program by its lock, on one node."
    )
    parser.add_argument("--lock", type=Path, required=True, help="the compiled lock.yaml")
    parser.add_argument("--data-dir", type=Path, help="folder of the data (default: the folder in the lock)")
    parser.add_argument("--output-dir", type=Path, help="folder of the results (default: the folder in the lock)")
    parser.add_argument("--fresh", action="store_true", help="run again although the run is finished")
    parser.add_argument("--start", default="", help="an id of this start of the job")
    parser.add_argument("--node", type=int, default=0, help="this node's number; with srun that of the process")
    parser.add_argument("--local", type=int, help="the process's number on its node, if Slurm starts each")
    parser.add_argument("--head", help="where the nodes meet")
    parser.add_argument("--port", help="the port there")
    parser.add_argument("launcher", nargs="+", help=f"after --: words of a launcher, with {HERE} for the program")
    given = parser.parse_args(argv)
    if given.launcher.count(HERE) != 1:
        parser.error(f"the launcher's words hold {HERE} once, for the program")
    return given


def main(argv: list[str] | None = None) -> int:
    """Run the program; return its status, 0 if it stopped as asked, 1 after a finding."""
    given = parse(argv)
    try:
        lock = read_any(given.lock)
        if not isinstance(lock, ProgramLock):
            raise RuntimeFinding(
                "R505", f"{given.lock} names no program", "", "run the script that was compiled with it"
            )
        return run(elastic.of_start(lock, os.environ), given)
    except RuntimeFinding as finding:
        print(finding.render(), file=sys.stderr, flush=True)
        return 1


def run(lock: ProgramLock, given: argparse.Namespace) -> int:
    """Start the program and wait; return the exit status. Raises R510, R517, R561 and R567."""
    told = at_start(lock, given)
    output, from_scratch = Path(told["output_dir"]), told["resume"] == "false"
    digest, first = lock_digest(given.lock), given.node == 0
    there = None
    mark = output / "logs" / f"{given.start or 'run'}-node{given.node}.ended"
    if first:
        results.prepare_output(output)
        results.refuse_links(output)
        folder_lock = FolderLock(output)
        folder_lock.take(os.environ)
        (output / STOPPED_FILE).unlink(missing_ok=True)
        if _is_finished(output, digest) and not from_scratch:
            print(f"already finished: {output / results.RESULTS_FILE}; --fresh runs it again", flush=True)
            return 0
        if results.read_results(output).get("lock_sha256") is not None:
            results.set_aside(output)  # of another lock, or of this one if it starts again from nothing
        elif _identity(output) not in (None, lock.identity()):
            results.set_aside(output, results.UNFINISHED_FILE)
        _write(output / IDENTITY_FILE, lock.identity())
        there = results.written(output)
        if from_scratch:
            _set_aside(Path(told["checkpoint_dir"]))
    environment = variables(lock, given, told)
    command = words(lock, given.launcher, told)
    status = _watched(command, environment, output / STOP_FILE)
    if (output / STOPPED_FILE).exists():
        if first:
            (output / STOP_FILE).unlink(missing_ok=True)
        return 0
    if status:
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        raise RuntimeFinding("R567", f"the program {how}", " ".join(command)[:500], "its messages are above")
    _write(mark)  # it ended well on this node
    if first:
        _wait_for_others(lock, mark)
        _finish(lock, output, digest, there)
    return 0


def at_start(lock: ProgramLock, given: argparse.Namespace) -> dict[str, str]:
    """The values that are known now, by the names of placeholders."""
    output = os.path.abspath(given.output_dir or lock.output_dir)
    from_scratch = given.fresh or lock.checkpoint.resume == "never"
    return {
        "data_dir": os.path.abspath(given.data_dir or lock.data.data_dir),
        "output_dir": output,
        "checkpoint_dir": os.path.join(output, "checkpoints", lock.identity()[:12]),
        "resume": "false" if from_scratch else "true",
        "lock": os.path.abspath(given.lock),
    }


def _identity(output: Path) -> str | None:
    """The identity of the program that was started here last; None for the first one."""
    try:
        return (output / IDENTITY_FILE).read_text(encoding="ascii")
    except (OSError, ValueError):
        return None


def _set_aside(checkpoints: Path) -> None:
    """Keep an earlier run's checkpoints of this very program under another name: this one starts from nothing."""
    previous = checkpoints.with_name(f"{checkpoints.name}.previous")
    try:
        if checkpoints.exists():
            shutil.rmtree(previous, ignore_errors=True)
            checkpoints.rename(previous)
    except OSError as error:
        raise RuntimeFinding("R510", f"cannot move {checkpoints}", error.strerror or str(error)) from None


def words(lock: ProgramLock, launcher: list[str], told: Mapping[str, str]) -> list[str]:
    """Return the command: the launcher's words with the program in the place of `{}`."""
    entry, alone = lock.entrypoint, launcher == [HERE]
    known = {name: str(value) for name, value in lock.handed().items()} | dict(told)
    program, args = entry.program, [fill(word, known) for word in entry.args]
    if program.startswith("-") and entry.kind != "module":  # neither Python nor a launcher takes it for an option
        program = shutil.which(program) or program if entry.kind == "command" else f"./{program}"
    if not alone and args[:1] == ["--"]:
        args = ["--", *args]  # argparse, by which launchers read their words, takes the first one away
    if entry.kind == "script":
        own = [sys.executable, program] if alone else [program]
    elif entry.kind == "module":
        own = [sys.executable, "-m", program] if alone else ["-m", program]
    else:
        no_python = {"torchrun": ["--no-python"], "accelerate": ["--no_python"]}.get(entry.launcher, [])
        own = [*([] if alone else no_python), program]
    at = launcher.index(HERE)
    return [*launcher[:at], *own, *args, *launcher[at + 1 :]]


def variables(lock: ProgramLock, given: argparse.Namespace, told: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the program: the plan under `RATC_…`, and its place among others without a launcher."""
    environment = dict(os.environ)
    # What keeps a launcher from importing a file of the spec's folder would keep a script from importing its own.
    environment.pop("PYTHONSAFEPATH", None)
    for name, value in {**lock.handed(), **told}.items():
        environment[f"RATC_{name.upper()}"] = str(value).lower() if isinstance(value, bool) else str(value)
    output = Path(told["output_dir"])
    environment[plan.STOP], environment[plan.STOPPED] = str(output / STOP_FILE), str(output / STOPPED_FILE)
    parallel = lock.parallel
    if given.head is not None:
        environment["MASTER_ADDR"], environment["MASTER_PORT"] = given.head, str(given.port)
    if given.local is not None:
        environment |= {"RANK": str(given.node), "LOCAL_RANK": str(given.local)}
        environment["WORLD_SIZE"] = str(parallel.world_size)
        environment["LOCAL_WORLD_SIZE"] = str(parallel.processes_per_node)
    if given.launcher == [HERE] and "SLURM_JOB_ID" in environment:
        # node.sh removes these, for a launcher's processes have other numbers; Lightning, for one, asks for them.
        environment |= {"SLURM_PROCID": str(given.node), "SLURM_LOCALID": str(given.local or 0)}
    if given.local is None and lock.entrypoint.launcher == "none":
        environment |= {"NODE_RANK": str(given.node), "NNODES": str(parallel.nodes)}
    return environment


#: Ends what a killed parent has left behind: a second line says that it has ended by itself. SIGINT comes first, since
#: torchrun then ends its processes; SIGTERM is for programs below a shell that ignores SIGINT.
_GUARD = """\
trap '' INT TERM HUP USR1 USR2
read -r group && read -r word && exit
[ -n "$group" ] || exit
kill -INT -- "-$group"
for ((i = 0; i < $1; i++)); do
  sleep 1
  kill -0 -- "-$group" || exit
  [ "$i" != 1 ] || kill -TERM -- "-$group"
done
kill -KILL -- "-$group"
"""
#: Seconds that it then has. Torchrun gives its processes 30.
LEFT = 40


def _watched(command: list[str], environment: Mapping[str, str], stop: Path) -> int:
    """Run the command to its end; return its status. Ctrl-C or SIGTERM asks it to stop, a second one ends it. Raises
    R567.
    """
    # If this process is killed, nobody holds the output folder any more, and the guard's pipe has an end.
    words, silent = ["bash", "-c", _GUARD, "guard", str(LEFT)], subprocess.DEVNULL
    try:
        guard = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=silent, stderr=silent, start_new_session=True, text=True
        )
        # In a session of its own: the terminal's Ctrl-C reaches this process alone, which decides.
        child = subprocess.Popen(command, env=environment, start_new_session=True)
    except OSError as error:
        raise RuntimeFinding(
            "R567", f"the program cannot be started: {error.filename or command[0]}", error.strerror or str(error)
        ) from None
    assert guard.stdin is not None
    with contextlib.suppress(OSError):  # somebody has killed it
        guard.stdin.write(f"{child.pid}\n")
        guard.stdin.flush()
    asked = False

    def interrupted(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if number != signal.SIGHUP and not asked:
            asked = True
            with contextlib.suppress(OSError):
                stop.touch()
            say("ratc: the program is asked to save and stop; Ctrl-C or `kill` once more ends it")
            return
        with contextlib.suppress(OSError):  # it has ended meanwhile
            os.killpg(child.pid, signal.SIGTERM if number == signal.SIGINT else number)

    signal.signal(signal.SIGINT, interrupted)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # of a job the batch script sees to it
            signal.signal(number, interrupted)
    status = child.wait()
    with contextlib.suppress(OSError):
        guard.communicate("ended\n")
    return status


def _write(path: Path, text: str = "") -> None:
    """Leave word for a later start or for other nodes. Raises R510."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise RuntimeFinding("R510", f"cannot write {path}", error.strerror or str(error), everywhere=False) from None


def _wait_for_others(lock: ProgramLock, mark: Path) -> None:
    """Wait for the word of the other nodes. Raises R561 if one does not come."""
    places = lock.parallel.world_size if lock.entrypoint.launcher == "srun" else lock.parallel.nodes
    wanted = [mark.with_name(mark.name.replace("-node0.", f"-node{place}.")) for place in range(places)]
    end = time.monotonic() + PATIENCE
    while missing := [path.name for path in wanted if not path.exists()]:
        if time.monotonic() > end:
            raise RuntimeFinding(
                "R561",
                "the program ended with status 0 on the first node, and not on all",
                f"not there after {PATIENCE:.0f} s: {', '.join(missing[:5])}",
            )
        time.sleep(0.5)
    for path in wanted:
        path.unlink(missing_ok=True)


def _is_finished(output: Path, digest: str) -> bool:
    found = results.read_results(output)
    return found.get("status") == "finished" and found.get("lock_sha256") == f"sha256:{digest}"


def _finish(lock: ProgramLock, output: Path, digest: str, there: object) -> None:
    """Say in results.json that the run is finished, beside the program's own values. Raises R503 and R510.

    Values of the plan that the program reports must be those of the lock. A file that was there before this start
    (`there`) and is the same now is of a start that failed: its values do not count.
    """
    found = results.read_results(output) if results.written(output) != there else {}
    if kept := results.keep_other(output):
        warn(f"the program's {results.RESULTS_FILE} holds no mapping: it is now {kept.name}")
    elif not found:
        warn(f"the program wrote no {results.RESULTS_FILE}: it ended with success, and nothing else is known")
    told = lock.handed()
    wrong = [
        f"{name}: {found[name]}, the lock says {told[name]}"
        for name in _SPLIT
        if found.get(name, told[name]) != told[name]
    ]
    if wrong:
        raise RuntimeFinding("R503", "the program ran with other values than the lock", "\n".join(wrong))
    head = {"experiment_name": lock.experiment_name, "status": "finished", "lock_sha256": f"sha256:{digest}"}
    results.write_results(output, {**found, **head, "health": health.summary(output)})


if __name__ == "__main__":
    sys.exit(main())
