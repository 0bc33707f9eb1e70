"""The trainer for people who bring their own model, data or loss; `train.py` is built on it.

    results = UnifiedTrainer("compiled/moles/local", model=model, train_dataset=train, val_dataset=val).train()

What is not passed is built from the lock. Torch is imported when training starts, not before, so that a start that can
be refused without it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ratc_runtime import atomic, preflight
from ratc_runtime.errors import RuntimeFinding, warn
from ratc_runtime.models.import_callable import name_of
from ratc_runtime.output.results import prepare_output, read_results

if TYPE_CHECKING:
    from torch import nn

    from ratc_runtime.callbacks import Callback
    from ratc_runtime.tasks.custom import Score

LOCK = "lock.yaml"


class UnifiedTrainer:
    """Trains what a lock says, with parts of the caller's in place of the lock's.

    `config` is a compiled folder, its `lock.yaml`, a spec, or a spec's content as a mapping. A spec is compiled on the
    spot for this machine, into `compiled/` beside it, as `ratc compile` does; one that is a mapping is written into the
    output folder first. Relative paths of a lock start from the working folder, those of a spec from its own.

    Datasets are map-style; an item is a mapping of `image`, `target` and perhaps `name`, or a pair of image and
    target. An image is a tensor or array (C, ...), or a list of them from fine to coarse (a pyramid). Both datasets
    are passed, or none; without `test_dataset` the best epoch has its scores of the validation split only.
    `criterion` takes the model's output and the collated targets and returns a scalar. `scores` names functions of
    the outputs and targets of one sample (batches of one) that return a number, larger being better; with it nothing
    else is scored. `callbacks`: see `ratc_runtime.callbacks`. Under torchrun, accelerate or srun every process makes
    its own trainer.

    A model that is passed as an object cannot be traced: nothing is predicted of it, and `training.batch_size` is
    needed on a GPU. Named `package.module:callable` in the spec, it is predicted as any other.
    """

    def __init__(
        self,
        config: str | os.PathLike[str] | Mapping[str, Any],
        model: nn.Module | None = None,
        train_dataset: Any = None,
        val_dataset: Any = None,
        criterion: Any = None,
        output_dir: str | os.PathLike[str] | None = None,
        experiment_name: str | None = None,
        *,
        test_dataset: Any = None,
        data_dir: str | os.PathLike[str] | None = None,
        scores: Mapping[str, Score] | None = None,
        callbacks: Sequence[Callback] = (),
        fresh: bool = False,
    ) -> None:
        if (train_dataset is None) != (val_dataset is None) or (test_dataset is not None and train_dataset is None):
            raise ValueError("train_dataset and val_dataset go together, and test_dataset needs both")
        self.config, self.experiment_name, self.fresh = config, experiment_name, fresh
        self.output_dir = None if output_dir is None else Path(output_dir).expanduser()
        self.data_dir = None if data_dir is None else Path(data_dir).expanduser()
        named = {"train": train_dataset, "val": val_dataset, "test": test_dataset}
        self._datasets = {split: dataset for split, dataset in named.items() if dataset is not None}
        self._model, self._criterion, self._scores, self._callbacks = model, criterion, scores, callbacks

    def train(self) -> dict[str, Any]:
        """Train to the end, or until asked to stop; return what results.json says, on every rank.

        A run that was stopped or killed is continued from its last checkpoint, a finished one is not made again unless
        `fresh`. Raises RuntimeFinding (R5xx) for what a person can mend, and whatever the caller's own code raises.
        """
        return self.train_since(time.perf_counter())

    def train_since(self, began: float) -> dict[str, Any]:
        """Train as `train` does; time counts from `began`, of `time.perf_counter`."""
        from ratc_runtime.training import loop

        loop.take_place()
        path, base = self._lock()
        passed = any(part is not None for part in (self._model, self._criterion, self._scores)) or self._datasets
        # What a caller brings takes the place of what the lock names.
        lock = preflight.check(path, os.environ, launched=True, own_folder=None if passed else base)
        loop.prepare_environment(lock)
        # Torch is imported from here on.
        from ratc_runtime.training.components import Own

        own = Own(self._model, self._datasets, self._criterion, self._scores, self._callbacks)
        data_dir = self.data_dir or base / _folder("RAT_DATA_DIR", lock.data.data_dir)
        output_dir = self.output_dir or base / _folder("RAT_OUTPUT_DIR", lock.output_dir)
        loop.start(own.named_in(lock), path, data_dir, output_dir, self.fresh, own, began)
        return read_results(output_dir)

    def _lock(self) -> tuple[Path, Path]:
        """Return the lock, compiled now if the configuration is a spec, and what its relative paths start from."""
        if isinstance(self.config, Mapping):
            return self._compiled(self._written(self.config))
        path = Path(self.config).expanduser()
        found = path / LOCK if path.is_dir() else path
        if not _is_lock(found):
            return self._compiled(found)
        if self.experiment_name is not None:
            warn(f"experiment_name is left out: {found} has the name that was reviewed")
        # As the compiled script does, which changes to the spec's folder.
        return found, Path()

    def _written(self, config: Mapping[str, Any]) -> Path:
        """Write the spec that a mapping is into the output folder, where what ran can be read a month later."""
        name = self.experiment_name or config.get("experiment_name") or "experiment"
        data = dict(config.get("data") or {})
        # The schema wants a folder; data that are passed lie in none.
        data["data_dir"] = os.fspath((self.data_dir or Path(data.get("data_dir") or ".")).expanduser().absolute())
        folder = self.output_dir or Path(config.get("output_dir") or Path("outputs") / name).expanduser()
        content = {**config, "experiment_name": name, "data": data, "output_dir": os.fspath(folder.absolute())}
        if self._model is not None:
            # RAT's defaults say nothing of it; if the mapping describes it, that stays.
            content.setdefault("model", {"name": name_of(self._model)})
        if self._datasets:
            data.setdefault("dataset", name_of(self._datasets["train"]))
        if self._criterion is not None:
            content["training"] = {"loss": name_of(self._criterion), **(config.get("training") or {})}
        prepare_output(folder)
        path = folder / "spec.yaml"
        # Every rank writes the same bytes; a reader must not meet half of them.
        atomic.write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True), shared=True)
        return path

    def _compiled(self, spec: Path) -> tuple[Path, Path]:
        """Compile a spec for this machine, as every rank does, to the same bytes; raise R544 if that fails."""
        command = [sys.executable, "-m", "ratc", "compile", os.fspath(spec), "--target", "local"]
        if self.experiment_name is not None:
            command += ["--experiment-name", self.experiment_name]
        # What follows at once rehearses its first step: that is told sooner than by a trace.
        environment = {**os.environ, "RATC_SKIP_BATCH_CHECK": "1", "PYTHONSAFEPATH": "1"}
        # It is the caller's program that trains what the spec names.
        environment["RATC_TRUST"] = "1"
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode != 0:
            raise RuntimeFinding("R544", f"{spec} cannot be compiled", done.stderr.strip() or "ratc says nothing")
        folder = Path(done.stdout.splitlines()[-1])
        from ratc_runtime.models import import_callable

        import_callable.look_in(os.fspath(spec.parent))
        return folder / LOCK, spec.parent


def _is_lock(path: Path) -> bool:
    """Tell a lock from a spec; a file that cannot be read is left to whoever says what is wrong with locks."""
    try:
        return path.name == LOCK or b"\nlock_version:" in b"\n" + path.read_bytes()[:4096]
    except OSError:
        return path.suffix != ".yaml" or not path.exists()


def _folder(variable: str, locked: str) -> Path:
    return Path(os.environ.get(variable) or locked).expanduser()
