"""Finds a run by its folder or its job, gathers its files, and asks its scheduler about it."""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from ratc import files
from ratc.compiled import find, read_lock
from ratc.compiled.read_lock import Compiled
from ratc.diagnostics import Diagnostic, Source
from ratc.plan import Values
from ratc.scheduler import DIALECTS, history
from ratc.scheduler.client import ask
from ratc.scheduler.dialect import AccountingRecord, Dialect, End
from ratc.targets import lock
from ratc.why.causes import the_cause
from ratc.why.evidence import Evidence
from ratc.workflow import inputs, recorded

#: Names by which an output folder is known.
_OUTPUTS = ("logs", "owner.json", "starts.jsonl", "checkpoints", "results.json", "DONE", "STOPPED")
#: Folders of trackers, which keep copies of locks.
_COPIES = {"tracking", "mlartifacts", "mlruns"}
#: Bytes of a log that are looked through, from its end.
_MOST = 8 << 20
_JOB = re.compile(r"(?P<job>\d+)(?:_(?P<task>\d+)|\[(?P<index>\d+)\])?")
#: Colours and other commands to a terminal.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\)?)")
#: What a progress bar has written over: up to the last return in a line that text follows.
_WRITTEN_OVER = re.compile(r"^[^\n]*\r(?=[^\r\n])", re.MULTILINE)
#: The line of the batch script that names the folder of its nodes' logs.
_SAYS = re.compile(r"ratc: job \S+ on .*; logs of the nodes: (?P<folder>.*)/logs/(?P<start>\d[\w.]*)-node\*\.log")


@dataclass(frozen=True, slots=True)
class Asked:
    """The run to explain, by a folder or the number of a job; ``logs`` are more files with its output. ``timeout`` is
    in seconds, for each answer of the scheduler.
    """

    what: str
    logs: tuple[str, ...] = ()
    timeout: float = 60.0


@dataclass(frozen=True, slots=True)
class Why:
    """The cause, or the errors that kept from looking for it; and a line for people that names the run."""

    found: tuple[Diagnostic, ...]
    about: str = ""


def why(asked: Asked) -> Why:
    """Return the cause of a run's state. Codes: R600 to R612, the R5xx that the run itself reported, R422, R001."""
    match = _JOB.fullmatch(asked.what)
    if match and not os.path.exists(asked.what):
        compiled, job, found = _of_job(asked, match["job"])
    else:
        compiled, found = _of_folder(asked.what)
        job = None
    if compiled is None:
        return Why(found)
    spec_folder, settings = _spec(compiled)
    dialect = DIALECTS.get(compiled.target)
    if dialect is not None and job is None:
        job = _newest(compiled.shared_folder)
    records = _records(dialect, job, asked.timeout) if dialect and job else ()
    records = _of_one_task(records, match)
    own = _own_logs(compiled, dialect, job, records, spec_folder, settings)
    if records and not compiled.point and (point := _point(compiled, records[-1].task)):
        compiled = point
    output, start = _last_start(own) or (_output(compiled, spec_folder), "")
    nodes = _node_logs(output, start or (job or ""))
    logs = [_log(path) for path in (*asked.logs, *nodes, *own)]
    missing = [path for path, log in zip(asked.logs, logs, strict=False) if log is None]
    if missing:
        return Why((Diagnostic("R001", f"cannot read `{missing[0]}`"),))
    evidence = Evidence(
        compiled.values,
        tuple(log for log in logs if log is not None),
        records,
        job,
        files.shown(output),
        _mapping(os.path.join(output, "results.json")),
        _epochs(os.path.join(output, "epochs.json")),
        _text(os.path.join(output, "STOPPED")),
        _is_done(compiled, output),
        _checkpoint(output),
        settings,
    )
    about = f"job {records[-1].task if records else job}" if job else "the run"
    return Why(
        (the_cause(evidence),), f"{about} of {files.shown(compiled.path)}, with its results in {evidence.output}"
    )


def _epochs(path: str) -> tuple[dict[str, Any], ...]:
    """The records of a run's epochs, without those that a person may have spoilt."""
    found = _mapping(path).get("epochs")
    return tuple(one for one in found if isinstance(one, dict)) if isinstance(found, list) else ()


def _of_spec(spec: str) -> tuple[Compiled | None, tuple[Diagnostic, ...]]:
    """The folder beside a spec that was compiled from it; of several the last submitted one, or the newest."""
    place = os.path.join(os.path.dirname(spec) or ".", "compiled")
    read = [read_lock.read(folder)[0] for folder in (find.compiled((place,)) if os.path.isdir(place) else ())]
    own = [one for one in read if one is not None and os.path.realpath(_spec_of(one)) == os.path.realpath(spec)]
    if own:
        return max(own, key=lambda one: (_submitted(one.folder), os.path.getmtime(one.folder))), ()
    helps = (f"run `ratc compile {spec}`, or name the output folder of the run",)
    return None, (Diagnostic("R001", f"`{spec}` was not compiled into `{place}`", helps=helps),)


def _spec_of(compiled: Compiled) -> str:
    """The path of the spec that a folder was compiled from; empty if its lock does not say."""
    try:
        return recorded.request(compiled.words, compiled.shared_folder).spec
    except recorded.Refused:
        return ""


def _of_folder(path: str) -> tuple[Compiled | None, tuple[Diagnostic, ...]]:
    """The compiled folder at a path, or the one that writes its results into it; of several the last submitted one."""
    if not os.path.exists(path):
        return None, (Diagnostic("R001", f"there is no `{path}`"),)
    if os.path.isfile(path) and not read_lock.is_compiled(path):
        return _of_spec(path)
    if not os.path.isdir(path) or os.path.exists(os.path.join(path, lock.NAME)):
        return read_lock.read(path)
    # Below an output folder, too, there may be locks: those that were handed to MLflow or to TensorBoard.
    is_output = any(os.path.exists(os.path.join(path, name)) for name in _OUTPUTS)
    folders = [one for one in find.compiled((path,)) if not _COPIES & set(os.path.relpath(one, path).split(os.sep))]
    if (is_output or not folders) and (writer := next(_writers(path), None)) is not None:
        return writer, ()
    if folders:
        return read_lock.read(max(folders, key=lambda folder: (_submitted(folder), os.path.getmtime(folder))))
    return read_lock.read(path)


def _submitted(folder: str) -> str:
    """When something was submitted from a folder last, as text that sorts by time; nothing if never."""
    submissions, _ = history.read(folder)
    return submissions[-1].time if submissions else ""


def _writers(output: str) -> Iterator[Compiled]:
    """The compiled folders of specs above an output folder, or in this one, that write into it."""
    wanted = os.path.realpath(output)
    above = [os.path.abspath(output)]
    for _ in range(4):
        above.append(os.path.dirname(above[-1]))
    places = [os.path.join(near, "compiled") for near in dict.fromkeys((*above, os.getcwd())) if near != os.sep]
    # Of a path that is not a folder, `find` would look through all that lies beside it.
    for place in filter(os.path.isdir, places):
        for folder in find.compiled((place,)):
            compiled, _ = read_lock.read(folder)
            if compiled is None:
                continue
            for one in (compiled, *_points(compiled)):
                if "output_dir" in one.values and os.path.realpath(_output(one, _spec(one)[0])) == wanted:
                    yield one


def _of_job(asked: Asked, job: str) -> tuple[Compiled | None, str, tuple[Diagnostic, ...]]:
    """The folder that a job was submitted from: by the records of `ratc submit` below this folder, else as the
    scheduler tells it. Code: R612.
    """
    for folder in find.compiled((".",)):
        if any(submission.job == job for submission in history.read(folder)[0]):
            compiled, found = read_lock.read(folder)
            return compiled, job, found
    for dialect in DIALECTS.values():
        if any(shutil.which(program) is None for program in dialect.programs):
            continue
        for record in _records(dialect, job, asked.timeout):
            candidates = list(find.compiled((record.place,))) if os.path.isdir(record.place) else []
            for folder in candidates:
                compiled, found = read_lock.read(folder)
                if compiled is not None and DIALECTS.get(compiled.target) is dialect and _is_of(compiled, job, record):
                    return compiled, job, found
    message = f"job {job} was not submitted in this folder or below, and no scheduler here knows it as a job of ratc"
    helps = ("name the compiled folder or the output folder: `ratc why FOLDER`",)
    return None, job, (Diagnostic("R612", message, helps=helps),)


def _is_of(compiled: Compiled, job: str, record: AccountingRecord) -> bool:
    """Whether a job's log lies where this folder's script writes it."""
    folder, settings = _spec(compiled)
    return bool(_own_logs(compiled, DIALECTS[compiled.target], job, (record,), folder, settings))


def _newest(folder: str) -> str | None:
    """The job that was submitted last from a folder."""
    submissions, _ = history.read(folder)
    return next((item.job for item in reversed(submissions) if item.job), None)


def _records(dialect: Dialect, job: str, timeout: float) -> tuple[AccountingRecord, ...]:
    for command in dialect.record_commands(job):
        if shutil.which(command[0]) and (found := dialect.records(ask(command, timeout))):
            return found
    return ()


def _of_one_task(records: Sequence[AccountingRecord], wanted: re.Match[str] | None) -> tuple[AccountingRecord, ...]:
    """The starts of one task: the one that is asked for, else the first that did not end well."""
    index = (wanted["task"] or wanted["index"]) if wanted else None
    tasks = {record.task: record for record in records}
    for task, last in tasks.items():
        here = _JOB.fullmatch(task)
        number = here and (here["task"] or here["index"])
        if index is not None and number != index:
            continue
        if index is not None or last.end not in (End.WELL, End.RUNNING, End.WAITING) or len(tasks) == 1:
            return tuple(record for record in records if record.task == task)
    return tuple(records[-1:])


def _spec(compiled: Compiled) -> tuple[str, Values | None]:
    """The spec's folder, and the values of the spec if it is there and valid."""
    try:
        request = recorded.request(compiled.words, compiled.shared_folder)
    except recorded.Refused:
        return compiled.shared_folder, None
    folder = os.path.dirname(request.spec) or "."
    return folder, inputs.load(replace(request, spec=files.shown(request.spec))).settings


def _output(compiled: Compiled, spec_folder: str) -> str:
    """The output folder that the lock names; the spec's folder for the lock that the points of an array share."""
    given = compiled.values.get("output_dir")
    return os.path.join(spec_folder, os.path.expanduser(str(given.value))) if given else spec_folder


def _points(compiled: Compiled) -> Iterator[Compiled]:
    for name in compiled.points:
        point, _ = read_lock.read(os.path.join(compiled.folder, "points", name))
        if point is not None:
            yield point


def _point(compiled: Compiled, task: str) -> Compiled | None:
    """The point that a task of an array trains: its number counts the rows of the table."""
    match = _JOB.fullmatch(task)
    number = int(match["task"] or match["index"] or 0) if match else 0
    names = list(compiled.points)
    if not 0 < number <= len(names):
        return None
    return read_lock.read(os.path.join(compiled.folder, "points", names[number - 1]))[0]


def _own_logs(
    compiled: Compiled,
    dialect: Dialect | None,
    job: str | None,
    records: Sequence[AccountingRecord],
    spec_folder: str,
    settings: Values | None,
) -> list[str]:
    """The job's own log, in the folder of the submission."""
    if dialect is None or job is None:
        return []
    told = [record.log for record in records[-1:] if record.log and os.path.isfile(record.log)]
    if told:
        return told
    # The lock that points share has none; the script is named after the spec's.
    given = settings.get("experiment_name") if settings else compiled.values.get("experiment_name")
    name = str(given.value) if given else "*"
    patterns = [dialect.log(name, job, False)]
    if records and (match := _JOB.fullmatch(records[-1].task)) and (match["task"] or match["index"]):
        patterns = [dialect.log(name, job, True).replace("*", match["task"] or match["index"])]
    elif compiled.points:
        patterns = [dialect.log(name, job, True)]
    places = dict.fromkeys((spec_folder, *(record.place for record in records if record.place), "."))
    for place in places:
        for pattern in patterns:
            prefix, star, suffix = pattern.partition("*")
            found = sorted(
                glob.glob(os.path.join(glob.escape(place), glob.escape(prefix) + star + glob.escape(suffix)))
            )
            if found:
                return found
    return []


def _last_start(logs: Sequence[str]) -> tuple[str, str] | None:
    """The output folder and the number of the latest start, as the script says them in the job's log."""
    for path in logs:
        log = _log(path)
        said = list(_SAYS.finditer(log.text)) if log else []
        if said:
            return said[-1]["folder"], said[-1]["start"]
    return None


def _node_logs(output: str, start: str) -> list[str]:
    """The logs of the nodes of a job's latest start, the first node's first; of all jobs' latest without a job."""
    pattern = re.compile(r"(?P<job>\d[\w]*)\.(?P<restart>\d+)-node(?P<rank>\d+)\.log")
    try:
        names = os.listdir(os.path.join(output, "logs"))
    except OSError:
        return []
    found = [match for name in names if (match := pattern.fullmatch(name))]
    job, _, restart = start.partition(".")
    of_job = [match for match in found if match["job"] == job and (not restart or match["restart"] == restart)]
    found = of_job if start else found
    if not found:
        return []

    def age(match: re.Match[str]) -> tuple[float, int]:
        path = os.path.join(output, "logs", match[0])
        return os.path.getmtime(path) if not start else 0.0, int(match["restart"])

    last = max(found, key=age)
    latest = [match for match in found if (match["job"], match["restart"]) == (last["job"], last["restart"])]
    return [os.path.join(output, "logs", match[0]) for match in sorted(latest, key=lambda match: int(match["rank"]))]


def _log(path: str) -> Source | None:
    """A log from its end without colours, with empty lines for those before, so that its lines have their numbers."""
    try:
        with files.open_regular(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            skipped, left = 0, max(0, size - _MOST)
            while left > 0 and (chunk := file.read(min(left, 1 << 20))):
                skipped, left = skipped + chunk.count(b"\n"), left - len(chunk)
            data = file.read(_MOST)
    except OSError:
        return None
    text = _ESCAPES.sub("", data.decode("utf-8", "replace").replace("\r\n", "\n"))
    text = _WRITTEN_OVER.sub("", text)
    return Source(files.shown(path), "\n" * skipped + text)


def _text(path: str) -> str:
    return (files.read(path, 1 << 16) or b"").decode("utf-8", "replace")


def _mapping(path: str) -> dict[str, Any]:
    try:
        content = json.loads((files.read(path, 64 << 20) or b"").decode("utf-8"))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _checkpoint(output: str) -> str:
    """The name of the newest checkpoint; nothing if there is none."""
    try:
        names = os.listdir(os.path.join(output, "checkpoints"))
    except OSError:
        return ""
    return max((name for name in names if name.startswith("epoch-")), default="")


def _is_done(compiled: Compiled, output: str) -> bool:
    """Whether the job's script has left word that this very lock's run is finished."""
    own = files.read(compiled.path, 64 << 20) or b""
    shared = files.read(os.path.join(compiled.shared_folder, lock.NAME), 64 << 20) or b"" if compiled.point else b""
    return _text(os.path.join(output, "DONE")).split()[:1] == [sha256(shared + own).hexdigest()]
