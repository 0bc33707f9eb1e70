"""Runs a study's trials with Ray Tune, on this machine or on an existing Ray cluster.

Ray places the trials, ends poor ones early (ASHA), and chooses them if the study is adaptive (Optuna's TPE). Its own
state is thrown away: a study that is continued reports its trials' own results to Ray again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ratc import files
from ratc.study import proposed, trials
from ratc.study.budget import Budget
from ratc.study.progress import Live
from ratc.study.proposed import Ledger
from ratc.study.ray_settings import ENVIRONMENT, LOOPBACK, STORE_BYTES
from ratc.study.trial_files import STOP, STOPPED, TrialFiles
from ratc.study.trials import Compiled, Prepared
from ratc.tuning import outcome, proposals
from ratc.tuning.points import Study
from ratc.tuning.share import Share
from ratc.tuning.space import Choices

# Before Ray is imported.
os.environ.update(ENVIRONMENT)

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import Searcher

from ratc.study.ray_trial import TrialRun

#: Why a study ends that has had all its hours.
SPENT = "the budget is spent"
#: Proposals in a row that may turn out known or impossible before no more are asked for.
_PATIENCE = 100


class _Stopped(Exception):
    """The study ends before its trials: it was asked to stop, or its budget is spent."""


class Source(Searcher):  # type: ignore[misc]  # Ray is read without its types
    """Gives Ray one compiled trial after the other: those of a spread in their order, or TPE's proposals."""

    def __init__(self, study: Study, prepared: Prepared, book: Ledger) -> None:
        super().__init__(metric="score", mode="max")
        self.trials: list[Compiled] = []
        self.left = list(prepared.left)
        self._study, self._prepared, self._book = study, prepared, book
        self._ready = iter(prepared.ready)
        self._optuna = _optuna(study, book) if study.adaptive else None
        self._asked: dict[str, str] = {}
        self._number = 0

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Return the next trial's folders, or Ray's word for no more trials."""
        trial = self._propose(trial_id) if self._optuna else next(self._ready, None)
        if trial is None:
            return str(Searcher.FINISHED)
        self.trials.append(trial)
        return {
            "folder": os.path.abspath(trial.files.folder),
            "output": os.path.abspath(trial.files.output),
            "metric": self._study.metric,
            "larger_is_better": self._study.larger_is_better,
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Do nothing: TPE learns from trials that have ended."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Report the result of a trial to TPE."""
        if self._optuna:
            self._optuna.on_trial_complete(self._asked[trial_id], result, error)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger and the trials' results hold the whole state."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing."""

    def _propose(self, trial_id: str) -> Compiled | None:
        """The next proposal that can run and is new; those that cannot are kept with the reason."""
        if len(self.trials) >= self._study.trials:
            return None
        assert self._prepared.maker is not None
        assert self._optuna is not None
        for _ in range(_PATIENCE):
            asked = f"{trial_id}.{self._number}"
            self._number += 1
            values = self._optuna.suggest(asked)
            if self._number > len(self._book.entries):
                self._book.add(values)
            point = proposals.point(self._number, self._study.space, values)
            trial = self._prepared.maker.trial(point)
            known = any(point.nodes == other.point.nodes for other in self.trials)
            why = next((why for bad, why in self.left if proposals.alike(self._study.space, bad, point)), None)
            wrong = () if known or why else self._prepared.maker.compile(trial)
            if not known and not why and not wrong:
                self._asked[trial_id] = asked
                return trial
            if wrong:
                self.left.append((point, wrong[0]))
            self._optuna.on_trial_complete(asked, None, True)
        return None


def _optuna(study: Study, book: Ledger) -> Any:
    """Return Ray's searcher for Optuna's TPE; it proposes the entries of ``book`` first."""
    import optuna
    from optuna import distributions
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space: dict[str, Any] = {}
    for entry in study.space:
        if isinstance(entry, Choices):
            space[entry.path] = distributions.CategoricalDistribution(list(range(len(entry.nodes))))
        elif entry.whole:
            space[entry.path] = distributions.IntDistribution(int(entry.low), int(entry.high), log=entry.log)
        else:
            space[entry.path] = distributions.FloatDistribution(entry.low, entry.high, log=entry.log)
    known = list(book.entries) or None
    return OptunaSearch(space, metric="score", mode="max", seed=study.seed, points_to_evaluate=known)


class Watch(tune.Callback):  # type: ignore[misc]  # Ray is read without its types
    """Follows the study from Ray's loop: the table, trials that end, the budget, and being asked to stop.

    ``reason`` is why the study ends before its trials, if it does.
    """

    def __init__(self, study: Study, source: Source, base: str, budget: Budget) -> None:
        self.reason = ""
        self._study, self._source, self._budget = study, source, budget
        self._stop_file = os.path.join(base, STOP)
        self._running: dict[str, Compiled] = {}
        self._asked = False
        self.live = Live(self._table)

    def ask(self, number: int, frame: object) -> None:
        """Handle a signal: the trials save and the study ends; at the second one it does not wait for them, and
        raises KeyboardInterrupt.
        """
        if self.reason:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print the name of a trial that begins."""
        if trial.trial_id in self._running:
            return
        found = next(one for one in self._source.trials if os.path.abspath(one.files.folder) == trial.config["folder"])
        self._running[trial.trial_id] = found
        if not found.files.is_finished() and not found.files.ended_early():
            self.live.say(f"{found.point.name}  {found.point.text}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Record that a trial has finished, or that Ray has ended it."""
        found = self._running.pop(trial.trial_id)
        if found.files.is_finished() or found.files.ended_early():
            said = outcome_of(found, self._study)
        else:
            epoch = int(trial.last_result.get("epoch", 0))
            found.files.end_early(epoch)
            said = f"ended early, after epoch {epoch}: other trials were better at that epoch"
        self.live.say(f"{found.point.name}  {said}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Print that a trial has failed; the others continue."""
        found = self._running.pop(trial.trial_id, None)
        if found is not None:
            said = f"failed {found.files.last_code()}".rstrip()
            self.live.say(f"{found.point.name}  {said}; its log: {os.path.relpath(found.files.log)}")

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Check trials, signals and budget, some times a second. Raises _Stopped after all have saved."""
        self.live.show()
        if not self.reason and os.path.exists(self._stop_file):
            self.reason = f"the file {STOP}"
        if not self.reason and self._budget.is_spent():
            self.reason = SPENT
        if not self.reason:
            return
        running: Sequence[TrialFiles] = [one.files for one in self._running.values()]
        if not self._asked:
            self._asked = True
            self.live.say(
                f"stopping ({self.reason}): running trials save a checkpoint; run the same command again to continue"
            )
        for one in running:
            one.ask_to_stop()
        if not any(one.is_held() for one in running):
            raise _Stopped

    def _table(self) -> str:
        return outcome.table(self._study, [trials.result(one, self._study) for one in self._source.trials])


def outcome_of(trial: Compiled, study: Study) -> str:
    """Return the outcome of a trial, in words."""
    found = trials.result(trial, study)
    return f"{study.metric} {found.metric:.4f}" if found.metric is not None else found.status


def run(study: Study, prepared: Prepared, share: Share, address: str | None) -> tuple[int, Prepared]:
    """Run the unfinished trials; returns the status, 130 if asked to stop, and the trials that there were.

    Without an address Ray is started on this machine, and ends with the study.
    """
    assert prepared.maker is not None
    maker = prepared.maker
    source = Source(study, prepared, proposed.begin(maker.folder, study))
    budget = Budget(maker.folder, study.budget_seconds)
    watch = Watch(study, source, maker.base, budget)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with _ray(share, address):
            for number in before:  # now: Ray has taken them for itself
                signal.signal(number, watch.ask)
            _tuner(study, source, share, maker.folder, watch).fit()
    except _Stopped:
        pass
    except Exception as error:
        if not watch.reason:
            raise
        # A scheduler that ends a job tells Ray's processes, too; the trials still save.
        watch.live.say(f"Ray ended before the study: {type(error).__name__}: {error}")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        watch.live.end()
        budget.keep()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(maker.base, STOP))
    stopped = watch.reason not in ("", SPENT)
    if stopped:
        # The job's script reads it, and requeues the job.
        with open(os.path.join(maker.base, STOPPED), "w", encoding="utf-8") as file:
            file.write(f"{watch.reason}\n")
    return (130 if stopped else 0), Prepared(source.trials, source.left, maker)


@contextmanager
def _ray(share: Share, address: str | None) -> Iterator[None]:
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address:
        ray.init(address=address, **quiet)
        try:
            yield
        finally:
            ray.shutdown()
        return
    # Sockets need a short path.
    with files.temporary_folder("/tmp") as folder, _token(folder):
        ray.init(
            num_cpus=share.node_cpus,
            num_gpus=share.node_gpus,
            object_store_memory=STORE_BYTES,
            _node_ip_address=LOOPBACK,
            _temp_dir=os.path.join(folder, "r"),
            include_dashboard=False,
            **quiet,
        )
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _token(folder: str) -> Iterator[None]:
    """Let Ray require a token that only this user can read: without one, any user of the machine could run code as this
    user. ``ALONE`` turns this on before Ray is imported.
    """
    path = os.path.join(folder, "token")
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    os.environ["RAY_AUTH_TOKEN_PATH"] = path
    try:
        yield
    finally:
        del os.environ["RAY_AUTH_TOKEN_PATH"]


def _tuner(study: Study, source: Source, share: Share, folder: str, watch: Watch) -> Any:
    storage = os.path.join(os.path.abspath(folder), "ray")
    shutil.rmtree(storage, ignore_errors=True)
    scheduler = FIFOScheduler()
    if study.halving:
        grace, factor = study.halving
        # `max_t` is beyond any training: trials end by themselves.
        scheduler = ASHAScheduler(time_attr="epoch", max_t=10**9, grace_period=grace, reduction_factor=factor)
    return tune.Tuner(
        tune.with_resources(TrialRun, {"cpu": share.cpus, "gpu": share.gpus}),
        tune_config=tune.TuneConfig(
            metric="score",
            mode="max",
            search_alg=source,
            scheduler=scheduler,
            num_samples=study.trials,
            max_concurrent_trials=study.max_parallel,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(name="study", storage_path=storage, verbose=0, callbacks=[watch]),
    )
