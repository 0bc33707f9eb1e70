"""Compiles a spec for a scheduler and submits its script: not twice, and with a record of each submission."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone

from ratc import files
from ratc.compiled import finished
from ratc.console import say, would
from ratc.diagnostics import Diagnostic, Severity, has_errors
from ratc.plan import Values
from ratc.scheduler import DIALECTS, history, record, summary
from ratc.scheduler.client import Scheduler, ask, detect, inside, unanswered
from ratc.scheduler.dialect import Answer
from ratc.scheduler.record import Submission
from ratc.scheduler.refusal import refusal
from ratc.targets import job as job_files
from ratc.targets import lock
from ratc.targets.artifact import Artifact
from ratc.workflow import inputs, lookups, require_trust
from ratc.workflow.compile import compile_spec
from ratc.workflow.findings import FindingsPrinter
from ratc.workflow.inputs import Loaded
from ratc.workflow.request import CompileRequest

#: Set aside when a job is submitted: the lock holds their values, relative to the spec's folder and under the options.
_COMPILED_IN = ("RAT_DATA_DIR", "RAT_OUTPUT_DIR")


@dataclass(frozen=True, slots=True)
class Asked:
    """How to submit: ``after`` are jobs to wait for, ``timeout`` is in seconds."""

    dry_run: bool
    live_check: bool
    after: tuple[str, ...]
    wait: bool
    again: bool
    timeout: float
    form: str


def submit(request: CompileRequest, named_target: str | None, asked: Asked, printer: FindingsPrinter) -> int:
    """Compile for the scheduler of this machine, or the one that is named, and submit; returns the exit status.

    Codes: R410 to R419, R403, and those of compiling.
    """
    found: tuple[Diagnostic, ...] = ()
    surrounding = None if asked.dry_run else inside(os.environ)
    if surrounding:
        dialect, number = surrounding
        helps = ("submit from a login node; `--dry-run` may be used here",)
        found = (Diagnostic("R411", f"this shell is inside {dialect.name}'s job {number}", helps=helps),)
        return _refuse(printer, found)
    refused = inputs.known_target(named_target) if named_target else ()
    if refused:
        return _refuse(printer, refused)
    scheduler = None
    if named_target is None or asked.live_check or not asked.dry_run:
        scheduler, found = detect(named_target, asked.timeout)
        if scheduler is None:
            # Mistakes in the spec are said, too: they need no scheduler.
            return _refuse(printer, (*inputs.load(request).diagnostics, *found))
    target = scheduler.target if scheduler else str(named_target)
    with ExitStack() as stack:
        submission = _Submission(asked, scheduler, printer, stack)
        status, folder = compile_spec(
            replace(request, target=target),
            check=False,
            printer=printer,
            before=submission.prepare,
            dry_run=asked.dry_run,
        )
        if status:
            return 1
        job = submission.submit(target, folder)
    if job is None:
        return submission.status
    return _wait(scheduler, job, asked.timeout, printer) if asked.wait and scheduler else 0


@dataclass(slots=True)
class _Submission:
    """One submission on its way. `prepare` runs before a file is written, `submit` after; `stack` holds the lock."""

    asked: Asked
    scheduler: Scheduler | None
    printer: FindingsPrinter
    stack: ExitStack
    status: int = 1
    spec_folder: str = "."
    settings: Values = field(default_factory=lambda: Values({}))
    artifacts: Sequence[Artifact] = ()
    former: tuple[Submission, ...] = ()
    done: int = 0

    def prepare(self, loaded: Loaded, folder: str, artifacts: Sequence[Artifact]) -> tuple[Diagnostic, ...]:
        """Lock the folder, and check whether a former submission forbids this one. Codes: R235 (a warning), R412,
        R447.
        """
        assert loaded.settings is not None
        self.spec_folder, self.settings, self.artifacts = loaded.folder, loaded.settings, artifacts
        if self.asked.dry_run or self.scheduler is None:
            return ()
        if untrusted := require_trust.refused(loaded):
            return untrusted
        absent = lookups.absent(loaded.settings, loaded.folder)
        try:
            self.stack.enter_context(history.alone_in(folder))
        except OSError as error:
            return (_unwritable(folder, error),)
        self.former, found = history.read(folder)
        found += (*absent, *self._conflicts())
        self.done = finished.count(artifacts, loaded.folder)
        if self.done and self.done == self._runs:
            where = "its output folder has a file `DONE`" if self._runs == 1 else "every point has a file `DONE`"
            helps = ("remove `DONE` to run it again",)
            severity = Severity.WARNING if self.asked.again else Severity.ERROR
            found += (Diagnostic("R412", "this run is already finished", None, (where,), helps, severity),)
        return found

    def _conflicts(self) -> Iterator[Diagnostic]:
        """Yield at most one objection; forgets former submissions that have ended."""
        assert self.scheduler is not None
        dialect, standing = self.scheduler.dialect, []
        for former in self.former:
            state, here = None, (former.scheduler, former.cluster) == (self.scheduler.target, self.scheduler.cluster)
            asked = here and former.job is not None
            if asked:
                answer = ask(dialect.state(former.job or ""), self.asked.timeout)
                tasks = dialect.tasks(answer)
                if tasks is None:
                    yield unanswered(dialect, answer)
                    return
                state = record.active(tasks)
            elif former.job is not None and former.lock == self._lock.digest:
                state = f"on the cluster {former.cluster}, so its state is not known here"
            objection = record.conflict(former, state, self._lock.digest, dialect, self.asked.again)
            # With --again the user has looked: a former submission with an uncertain state is not asked about again.
            if state is not None if asked else not self.asked.again:
                standing.append(former)
            if objection:
                yield objection
                if objection.severity is Severity.ERROR:
                    return
        self.former = tuple(standing)

    @property
    def _lock(self) -> Artifact:
        return next(artifact for artifact in self.artifacts if artifact.path == lock.NAME)

    @property
    def _script(self) -> str:
        """The text of the submitted script."""
        assert self.scheduler is not None
        return next(one.text for one in self.artifacts if one.path == self.scheduler.dialect.script)

    @property
    def _points(self) -> int:
        table = [artifact for artifact in self.artifacts if artifact.path == job_files.TABLE]
        return table[0].text.count("\n") - 1 if table else 0

    @property
    def _runs(self) -> int:
        return self._points or 1

    def submit(self, target: str, folder: str) -> str | None:
        """Show, check and submit; returns the job's number, or None with `status` set."""
        dialect = DIALECTS.get(target)
        script = os.path.join(folder, dialect.script if dialect else "run.sh")
        self._show(script, folder)
        if self.asked.dry_run:
            would("submit" if dialect else "run", os.path.relpath(script))
        if self.scheduler is None or dialect is None:
            self.status = 0
            return None
        environment = self._environment()
        after_found = [item for job in self.asked.after for item in self._unknown(job)]
        checked = self._check(script, environment) if self.asked.live_check else ()
        if self.printer.print([*after_found, *checked]) or self.asked.dry_run:
            self.status = 1 if has_errors(checked) else 0
            return None
        job, found = self._submit_recorded(script, folder, environment)
        if self.printer.print(found):
            return None
        say(job or "", sys.stdout if self.asked.form == "text" else sys.stderr)
        name = self.settings.get_as(str, "experiment_name")
        log = os.path.relpath(os.path.join(self.spec_folder, dialect.log(name, job or "", self._points > 0)))
        say(f"submitted to {self.scheduler.cluster}; its log: {log}")
        return job

    def _show(self, script: str, folder: str) -> None:
        name = self.settings.get_as(str, "experiment_name")
        now = summary.values(lock.NAME, self._lock.text)
        for line in summary.lines({**now, "experiment_name": name}, os.path.relpath(script), self._points):
            say(line)
        if self.done:
            say(f"{self.done} of {self._runs} are finished and will not run again")
        former = history.former_lock(folder)
        if former is not None:
            changed = summary.differences(summary.values(lock.NAME, former), now)
            same = former == self._lock.text
            print("as submitted last" if same else "not as submitted last:", file=sys.stderr)
            for line in changed or ([] if same else ["the files that the lock names"]):
                say(f"  {line}")

    def _environment(self) -> dict[str, str]:
        """Return the job's environment: this shell's, without variables that would override the script or the lock.

        Code: R418.
        """
        assert self.scheduler is not None
        overridden = self.scheduler.dialect.overridden(self._script, list(os.environ))
        if overridden:
            message = f"{', '.join(f'`{name}`' for name in overridden)} would change the request of the script"
            note = ("ignored for this submission: the script alone describes the job",)
            self.printer.print([Diagnostic("R418", message, None, note, severity=Severity.WARNING)])
        environment = {key: value for key, value in os.environ.items() if key not in (*overridden, *_COMPILED_IN)}
        own = ("modules", "venv", "conda", "container", "setup")
        if not any(self.settings[f"environment.{key}"].value for key in own):
            # The interpreter that runs ratc trains too, unless the spec names another environment.
            environment.setdefault("RATC_PYTHON", sys.executable)
        return environment

    def _unknown(self, job: str) -> tuple[Diagnostic, ...]:
        """Return a warning for an unknown job to wait for: Slurm then starts at once. Code: R419."""
        assert self.scheduler is not None
        dialect = self.scheduler.dialect
        if dialect.tasks(ask(dialect.state(job), self.asked.timeout)) != ():
            return ()
        note = "it ended long ago or never existed: the new job may not wait for it"
        return (Diagnostic("R419", f"{dialect.name} knows no job {job}", None, (note,), severity=Severity.WARNING),)

    def _check(self, script: str, environment: dict[str, str]) -> tuple[Diagnostic, ...]:
        """Ask the scheduler whether it would accept the script. Codes: R413, R414, R417."""
        assert self.scheduler is not None
        dialect = self.scheduler.dialect
        with self._script_path(script) as path:
            command = dialect.check(path, self.asked.after)
            answer = ask(command, self.asked.timeout, self.spec_folder, None, environment) if command else None
        if answer is None:
            message = f"{dialect.name} has no command that checks a job before its submission"
            notes = (
                "ratc checked the job against the cluster's facts only; the scheduler checks limits at the submission",
            )
            return (Diagnostic("R417", message, None, notes, severity=Severity.WARNING),)
        if answer.status == 0:
            for line in answer.words:
                say(line)
            return ()
        if answer.status is None or dialect.may_have_submitted(answer):
            return (unanswered(dialect, answer),)
        return (refusal(answer, self.settings, submitted=False),)

    @contextmanager
    def _script_path(self, script: str) -> Iterator[str]:
        """Yield the path of the script; in a dry run, of a temporary copy."""
        if not self.asked.dry_run:
            yield os.path.abspath(script)
            return
        with files.temporary_folder() as folder:
            path = os.path.join(folder, os.path.basename(script))
            with open(path, "w", encoding="utf-8") as file:
                file.write(self._script)
            yield path

    def _submit_recorded(
        self, script: str, folder: str, environment: dict[str, str]
    ) -> tuple[str | None, tuple[Diagnostic, ...]]:
        """Submit, with a record before it and the job's number in the record after it.

        Codes: R403, R414, R415.
        """
        assert self.scheduler is not None
        dialect = self.scheduler.dialect
        time = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        entry = Submission(
            None, self._lock.digest, self.scheduler.target, self.scheduler.cluster, socket.gethostname(), time
        )
        path = os.path.abspath(script)
        command, on_stdin = dialect.submit(path, self.asked.after)
        try:
            with _uninterrupted():
                history.write(folder, [*self.former, entry])
                answer = ask(command, self.asked.timeout, self.spec_folder, path if on_stdin else None, environment)
                job = dialect.job(answer) if answer.status == 0 else None
                if job is not None:
                    history.write(folder, [*self.former, replace(entry, job=job)])
                    history.keep_lock(folder, self._lock.text)
                    self._pass_on(answer)
                    return job, ()
                if answer.status != 0 and not dialect.may_have_submitted(answer):
                    history.write(folder, self.former)
                    return None, (refusal(answer, self.settings, submitted=True),)
        except OSError as error:
            return None, (_unwritable(folder, error),)
        message = f"it is not known whether {dialect.name} took the job"
        helps = (f"look for it with `{dialect.queue()}`; if it is not there, submit it with `--again`",)
        return None, (Diagnostic("R415", message, notes=answer.words, helps=helps),)

    def _pass_on(self, answer: Answer) -> None:
        """Print the scheduler's lines other than the job's number: a site's message, or a warning."""
        assert self.scheduler is not None
        for line in (*answer.err.splitlines(), *answer.out.splitlines()):
            is_number = self.scheduler.dialect.job(Answer(answer.command, 0, line)) is not None
            if line.strip() and not is_number:
                say(f"{answer.command} said: {line.strip()}")


def _wait(scheduler: Scheduler, job: str, timeout: float, printer: FindingsPrinter) -> int:
    from ratc.scheduler import wait

    try:
        status, found = wait.wait(scheduler, job, timeout)
    except KeyboardInterrupt:
        dialect = scheduler.dialect
        say(f"no longer waiting; job {job} goes on, and `{dialect.cancel(job)}` cancels it")
        return 130
    printer.print(found)
    if status is not None:
        say(f"job {job} ended with status {status}")
    return 1 if status is None else status


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C: a submitted job must be recorded. The wait is limited by the scheduler's timeout."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _refuse(printer: FindingsPrinter, found: tuple[Diagnostic, ...]) -> int:
    printer.print(found)
    return 1


def _unwritable(folder: str, error: OSError) -> Diagnostic:
    message = f"cannot write into `{folder}`: {error.strerror}"
    return Diagnostic("R403", message, helps=("use `-o DIR` to write the files to another folder",))
