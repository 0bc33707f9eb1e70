"""The trainer for an own model, data set or loss. `train.py` is built on it.

    results = UnifiedTrainer("compiled/moles/local", model=model, train_dataset=train, val_dataset=val).train()

Missing parts are built from the lock. Torch is imported when training starts, so that refusals that do not need it come
first.
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

from ratc_runtime import preflight
from ratc_runtime.config.yaml_file import open_regular
from ratc_runtime.errors import RuntimeFinding, warn
from ratc_runtime.models.import_callable import name_of
from ratc_runtime.output import atomic
from ratc_runtime.output.results import prepare_output, read_results

if TYPE_CHECKING:
    from torch import nn

    from ratc_runtime.callbacks import Callback
    from ratc_runtime.tasks.own_scores import Score

LOCK = "lock.yaml"


class UnifiedTrainer:
    """Trains according to a lock, with the caller's parts in place of the lock's.

    `config` is a compiled folder, its `lock.yaml`, a spec, or a spec's content as a mapping. A spec is compiled at once
    for this machine, into `compiled/` beside it, as `ratc compile` does. A mapping is first written into the output
    folder. Relative paths of a lock are relative to the working folder, those of a spec to its own.

    Datasets are map-style; an item is a mapping of `image`, `target` and optionally `name`, or a pair of image and
    target. An image is a tensor or array (C, ...), or a list of them from fine to coarse (a pyramid). Pass both
    datasets or none. Without `test_dataset` the best epoch has only its scores of the validation split. `criterion`
    takes the model's output and the collated targets and returns a scalar. `scores` names functions of the outputs and
    targets of one sample (batches of one) that return a number, larger being better; they replace the task's scores.
    `callbacks`: see `ratc_runtime.callbacks`. Under torchrun, accelerate or srun every process makes its own trainer.

    A model that is passed as an object cannot be traced: its memory is not predicted, and `training.batch_size` is
    needed on a GPU. A model named `package.module:callable` in the spec is predicted like any other.

    Raises ValueError if a dataset is passed without the others that it needs, R544 if the spec cannot be compiled.
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
        """Train to the end or to a stop request; return the content of results.json, on every rank.

        A run that was stopped or killed continues from its last checkpoint. A finished one is not repeated unless
        `fresh`. Raises RuntimeFinding (R5xx) for errors that you can fix, TypeError if the configuration is neither a
        path nor a mapping, and any exception of the caller's own code.
        """
        return self.train_since(time.perf_counter())

    def train_since(self, began: float) -> dict[str, Any]:
        """Train as `train` does. Time counts from `began`, by `time.perf_counter`."""
        from ratc_runtime.training import loop

        loop.take_place()
        path, base = self._lock()
        passed = any(part is not None for part in (self._model, self._criterion, self._scores)) or self._datasets
        # The caller's parts replace the lock's.
        lock = preflight.check(path, os.environ, launched=True, own_folder=None if passed else base)
        loop.prepare_environment(lock)
        # Torch is imported from here on.
        from ratc_runtime.training.components import Own

        first = lock.training.init_from
        if first is not None:  # from here on relative to the working folder
            first = first.replace(path=os.fspath(base / Path(first.path).expanduser()))
            lock = lock.replace(training=lock.training.replace(init_from=first))
        own = Own(self._model, self._datasets, self._criterion, self._scores, self._callbacks)
        data_dir = self.data_dir or base / _folder("RAT_DATA_DIR", lock.data.data_dir)
        output_dir = self.output_dir or base / _folder("RAT_OUTPUT_DIR", lock.output_dir)
        loop.start(own.named_in(lock), path, data_dir, output_dir, self.fresh, own, began)
        return read_results(output_dir)

    def _lock(self) -> tuple[Path, Path]:
        """Return the lock, compiled now if the configuration is a spec, and the base folder of its relative paths."""
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
        """Write a spec given as a mapping into the output folder, as a record of the run."""
        name = self.experiment_name or config.get("experiment_name") or "experiment"
        data = dict(config.get("data") or {})
        # The schema wants a folder; data that are passed lie in none.
        data["data_dir"] = os.fspath((self.data_dir or Path(data.get("data_dir") or ".")).expanduser().absolute())
        folder = self.output_dir or Path(config.get("output_dir") or Path("outputs") / name).expanduser()
        content = {**config, "experiment_name": name, "data": data, "output_dir": os.fspath(folder.absolute())}
        if self._model is not None:
            # RAT's defaults do not apply to it; a description in the mapping stays.
            content.setdefault("model", {"name": name_of(self._model)})
        if self._datasets:
            data.setdefault("dataset", name_of(self._datasets["train"]))
        if self._criterion is not None:
            content["training"] = {"loss": name_of(self._criterion), **(config.get("training") or {})}
        try:
            text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        except yaml.YAMLError as error:
            raise RuntimeFinding("R544", "the mapping holds a value that a spec cannot hold", str(error)) from None
        prepare_output(folder)
        path = folder / "spec.yaml"
        # Every rank writes the same bytes; a reader must not meet half of them.
        atomic.write_text(path, text, shared=True)
        return path

    def _compiled(self, spec: Path) -> tuple[Path, Path]:
        """Compile a spec for this machine; every rank does, with identical results. Raises R544 on failure."""
        command = [sys.executable, "-m", "ratc", "compile", os.fspath(spec), "--target", "local"]
        if self.experiment_name is not None:
            command += ["--experiment-name", self.experiment_name]
        # The run itself rehearses its first step, sooner than a trace would.
        environment = {**os.environ, "RATC_SKIP_BATCH_CHECK": "1", "PYTHONSAFEPATH": "1"}
        # The caller's own program trains the spec, so its code is trusted.
        environment["RATC_TRUST"] = "1"
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode != 0:
            raise RuntimeFinding("R544", f"{spec} cannot be compiled", done.stderr.strip() or "ratc gave no reason")
        folder = Path(done.stdout.splitlines()[-1])
        from ratc_runtime.models import import_callable

        import_callable.add_search_folder(os.fspath(spec.parent))
        return folder / LOCK, spec.parent


def _is_lock(path: Path) -> bool:
    """Return whether a file is a lock and not a spec. An unreadable file counts as a lock, whose reader raises the
    error.
    """
    try:
        if path.name == LOCK:
            return True
        with open_regular(path) as file:
            return b"\nlock_version:" in b"\n" + file.read(4096)
    except (OSError, ValueError):  # a name with a null character
        return path.suffix != ".yaml" or not path.exists()


def _folder(variable: str, locked: str) -> Path:
    return Path(os.environ.get(variable) or locked).expanduser()
