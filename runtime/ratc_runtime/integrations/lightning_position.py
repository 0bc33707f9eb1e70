"""The position of a Lightning run in its data and its random numbers, so that it continues exactly inside an epoch.

Three properties of Lightning 2.6.6 and torchdata 0.11, observed in runs, make this necessary:

- Lightning's checkpoint holds no random states. Of loaders with a state it holds only those of rank 0.
- Lightning makes the first iterator before it gives the distributed sampler the epoch, so that loader processes read
  the order of epoch 0.
- A loader that was saved at the end of an epoch repeats its order in the next one.

Loaders that have `state_dict` and `load_state_dict`, such as torchdata's StatefulDataLoader, get their states back.
Other loaders draw the order of the interrupted epoch again, and the finished batches are read again and dropped.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch import Trainer

from ratc_runtime.checkpoint import rng_state, set_rng_state
from ratc_runtime.errors import say, warn


class Position:
    """The position of this process. A loaded position is applied once, when the training starts."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None
        self._epoch, self._batches = -1, 0
        #: The random states before the order of this epoch was drawn, and after the last batch.
        self._drawn: dict[str, Any] = {}
        self._after_batch: dict[str, Any] = {}

    def gather(self, trainer: Trainer) -> list[dict[str, Any]]:
        """Return the positions of all ranks, in order of rank, for a checkpoint. Every rank calls this."""
        loaders = _loaders(trainer)
        mine = {
            "epoch": self._epoch,
            "batches": self._batches,
            "drawn": self._drawn,
            "now": _random(loaders),
            "loaders": [loader.state_dict() for loader in loaders] if _have_states(loaders) else None,
        }
        if trainer.world_size == 1:
            return [mine]
        everyone: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(everyone, mine)
        return everyone

    def load(self, trainer: Trainer, everyone: list[dict[str, Any]] | None) -> None:
        """Take the position of this rank from those in a checkpoint.

        Warns and takes none if there are none, or if they are of another number of ranks.
        """
        if everyone is None or len(everyone) != trainer.world_size:
            warn("the checkpoint lacks the position of each process in its data: samples are read twice or left out")
        else:
            self._loaded = everyone[trainer.global_rank]

    def start(self, trainer: Trainer) -> None:
        """Make the first iterator of the training again: at the loaded position, or from recorded random states."""
        loaders, fetcher = _loaders(trainer), _fetcher(trainer)
        for loader in loaders:
            _set_sampler_epoch(loader, trainer.current_epoch)
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            inside = loaded["epoch"] == trainer.current_epoch
            if loaded["loaders"] is not None:
                for loader, state in zip(loaders, loaded["loaders"], strict=True):
                    loader.load_state_dict(state)
                iter(fetcher)
            elif inside:
                _set_random(loaders, loaded["drawn"])
                iter(fetcher)
                _skip(trainer, loaded["batches"])
            _set_random(loaders, loaded["now"])
            if inside:
                self._epoch, self._batches, self._drawn = loaded["epoch"], loaded["batches"], loaded["drawn"]
                return
        self.begin_epoch(trainer)
        iter(fetcher)

    def begin_epoch(self, trainer: Trainer) -> None:
        """Record the random states before Lightning makes the iterator of an epoch."""
        if self._epoch != trainer.current_epoch:
            self._epoch, self._batches, self._drawn = trainer.current_epoch, 0, _random(_loaders(trainer))

    def end_batch(self, batch: int) -> None:
        """Record that the batch with the number `batch` in the epoch, from 0, is done."""
        self._batches, self._after_batch = batch + 1, rng_state()

    def end_validation(self) -> None:
        """Restore the random states from before the validation, since a run that stopped there skips the validation."""
        if self._after_batch:
            set_rng_state(self._after_batch)


def _loaders(trainer: Trainer) -> list[Any]:
    """Return the training's loaders, usually one."""
    combined = trainer.fit_loop._combined_loader
    return [] if combined is None else combined.flattened


def _fetcher(trainer: Trainer) -> Any:
    """Return the iterator over the batches of all loaders. `iter()` of it makes the loaders' iterators again."""
    return trainer.fit_loop._data_fetcher


def _have_states(loaders: list[Any]) -> bool:
    return all(hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict") for loader in loaders)


def _generators(loaders: list[Any]) -> list[torch.Generator]:
    """Return the generators that loaders and their samplers use in place of torch's global one."""
    owners = [owner for loader in loaders for owner in (loader, getattr(loader, "sampler", None))]
    found = [getattr(owner, "generator", None) for owner in owners]
    return [generator for generator in found if isinstance(generator, torch.Generator)]


def _random(loaders: list[Any]) -> dict[str, Any]:
    """Return all random states that can affect the order and the content of the batches."""
    return {"process": rng_state(), "loaders": [generator.get_state() for generator in _generators(loaders)]}


def _set_random(loaders: list[Any], states: dict[str, Any]) -> None:
    set_rng_state(states["process"])
    for generator, state in zip(_generators(loaders), states["loaders"], strict=True):
        generator.set_state(state)


def _skip(trainer: Trainer, batches: int) -> None:
    """Read and drop the batches that were done before the run stopped. Lightning itself counts them."""
    fetcher = _fetcher(trainer)
    if trainer.is_global_zero:
        say(f"reading {batches} batches of epoch {trainer.current_epoch + 1} again, which were done before")
    fetched = fetcher.fetched
    for _ in range(batches):
        next(fetcher)
    fetcher.fetched = fetched
