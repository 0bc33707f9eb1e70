"""The checkpoints of one run: write, keep and find them.

`checkpoints/epoch-0003-step-000120.pt` (with DeepSpeed and FSDP2 a folder with files of every rank) is written under a
temporary name, synced, read back and renamed. Then the links `last` and `best` are updated, and only then old
checkpoints are removed. A failed write loses the new checkpoint, never an old one, and does not stop the run. The names
alone decide which checkpoint is the newest.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ratc_runtime.checkpoint import files, header, shards
from ratc_runtime.checkpoint.background import Background, snapshot
from ratc_runtime.checkpoint.places import Place, place_of, places_in, to_keep
from ratc_runtime.checkpoint.progress import check_optimizer, checked
from ratc_runtime.checkpoint.random import rng_state, set_rng_state
from ratc_runtime.config.lock import Lock
from ratc_runtime.distributed.phases import phase
from ratc_runtime.errors import RuntimeFinding, warn
from ratc_runtime.output.atomic import PREFIX, sync_folder
from ratc_runtime.output.folder_lock import FolderLock


class Checkpoints:
    """The checkpoints of one output folder, for one engine. `lock` is the reviewed lock."""

    def __init__(self, output_dir: Path, engine: Any, lock: Lock, folder_lock: FolderLock | None = None) -> None:
        self.folder = output_dir / "checkpoints"
        self.engine, self.world, self.lock = engine, engine.world, lock
        self.suffix = "" if engine.sharded else ".pt"
        self._folder_lock = folder_lock or FolderLock(output_dir)
        self._background = Background()
        self._writing: Place | None = None
        self._newest: Place | None = None  # the newest that this process knows to be whole
        self._unreadable: set[Place] = set()  # may be whole: it could not be read
        self._damaged: set[Place] = set()
        self._lost: set[Place] = set()  # write failed; the ranks have not exchanged this yet
        self._failing = self._remains = False
        self._warned_of_code = False
        #: Whether the loaded checkpoint is of a plan of fewer epochs, which this one extends.
        self.extends = False

    def path(self, name: str) -> Path:
        """Return the path of `last`, `best` or the checkpoint with that name."""
        return self.folder / f"{name}{self.suffix}"

    def newest(self) -> Path | None:
        """Return the path of the newest checkpoint, or `last` if it links to that; None if there is no checkpoint."""
        there = self._present()
        return self._shown("last", there[0]) if there else None

    def best(self, epoch: int | None) -> Path | None:
        """Return the path of the checkpoint of an epoch, or `best` if it links to that; None if there is no such
        checkpoint.
        """
        place = None if epoch is None else Place(epoch, 0)
        return self._shown("best", place) if place is not None and place in self._present() else None

    def _shown(self, link: str, place: Place) -> Path:
        """Return the link if it leads to `place`, else the file itself: not every file system has links."""
        link_path, path = self.path(link), self.path(place.name)
        with contextlib.suppress(OSError):
            if os.path.samefile(link_path, path):
                return link_path
        return path

    @phase("checkpoint")
    def clear(self) -> None:
        """Rename the folder of an earlier run's checkpoints to `checkpoints.previous`."""
        if self.world.main and self.folder.exists():
            previous = self.folder.with_name("checkpoints.previous")
            shutil.rmtree(previous, ignore_errors=True)
            self.folder.rename(previous)
        self.world.barrier()

    # Saving.

    @phase("checkpoint")
    def save(self, progress: dict[str, Any], best: Sequence[Place], wait: bool = False) -> bool:
        """Save the whole state at the place of `progress`. Every rank calls this.

        `best` holds places by score, best first: the target of the link `best`, and the checkpoints kept for their
        score. Returns False, after a warning, if the write failed; older checkpoints are kept. With
        `checkpoint.asynchronous` it returns once the state is copied, unless `wait` is set; `take_lost` then reports a
        failure.
        """
        place = Place.of(progress)
        self.finish_write()
        content = header.make(self.lock, progress, self.world.gather(rng_state()))
        if self.engine.sharded:
            return self._save_shards(place, content, best)
        asynchronous = self.lock.checkpoint.asynchronous and not wait
        if self.world.main and self._is_there(place):
            self._attempt(place, lambda: self._update_links(place, best))
        elif self.world.main and asynchronous:
            copied = snapshot({**content, **self.engine.state()})
            self._writing = place
            self._background.start(lambda: self._publish(place, copied, best))
        elif self.world.main:
            self._attempt(place, lambda: self._publish(place, {**content, **self.engine.state()}, best))
        return asynchronous or all(self.world.gather(place not in self._lost))

    def _attempt(self, place: Place, write: Callable[[], None]) -> None:
        """Write, and warn if that fails or works again. Errors other than OSError are raised."""
        try:
            write()
        except OSError as error:
            self._lost.add(place)
            self._report(place, error.strerror or str(error))
        else:
            self._recovered(place)

    def _is_there(self, place: Place) -> bool:
        return self._newest == place and os.path.exists(self.path(place.name))  # False if the disk does not answer

    def _publish(self, place: Place, content: dict[str, Any], best: Sequence[Place]) -> None:
        self._prepare()
        files.write_file(self.path(place.name), content)
        self._update_links(place, best)

    def _prepare(self) -> None:
        """Make the folder, unless its parent folder is gone: an unmounted file system may be mounted again."""
        self._folder_lock.check()
        self.folder.mkdir(exist_ok=True)

    def _update_links(self, place: Place, best: Sequence[Place]) -> None:
        """Update the links `last` and `best` after `place` was written, and remove checkpoints that are not kept."""
        self._newest = place
        self._damaged.discard(place)
        present = [one for one in places_in(self.folder, self.suffix) if one not in self._damaged]
        first = next((one for one in best if one in present), None)
        with contextlib.suppress(OSError):  # the links are for people; file systems without them have the names
            files.link_to(self.path("last"), self.path(place.name).name)
            if first is not None:
                files.link_to(self.path("best"), self.path(first.name).name)
        # Checkpoints newer than the one that the run continues from are damaged, or no part of this run.
        past = [one for one in present if one <= place]
        keep = to_keep(past, best, self.lock.checkpoint.keep_last, self.lock.checkpoint.keep_best)
        for one in places_in(self.folder, self.suffix):
            if one not in keep and one not in self._unreadable:
                self._remove(one)

    def _remove(self, place: Place) -> None:
        """Remove a checkpoint that is not kept. Warn once if that fails, because the disk will fill up."""
        try:
            files.remove(self.path(place.name))
        except OSError as error:
            if not self._remains:
                path = self.path(place.name)
                warn(f"checkpoint {path} is not kept, and cannot be removed: {error.strerror or error}")
            self._remains = True

    @phase("checkpoint")
    def clean_up(self, best: Sequence[Place]) -> None:
        """Update links and remove old checkpoints after a kill between a checkpoint and its links.

        A run that has steps left would do so at its next save.
        """
        place = self._newest
        if not self.world.main or place is None:
            return
        present = places_in(self.folder, self.suffix)
        if present and place == present[0]:
            with contextlib.suppress(OSError):  # nothing depends on it; the next save reports an error of the disk
                self._update_links(place, best)

    @phase("checkpoint")
    def finish_write(self) -> None:
        """Wait for the current background write, if any, and warn if it failed."""
        if self._writing is not None:
            place, self._writing = self._writing, None
            self._attempt(place, self._background.wait)

    def poll(self) -> None:
        """Warn if a background write has failed. Does not wait."""
        if self._background.done:
            self.finish_write()

    def take_lost(self) -> set[Place]:
        """Return the places whose write failed since the last call. Every rank calls this."""
        lost: set[Place] = set().union(*self.world.gather(self._lost))
        self._lost = set()
        return lost

    def _report(self, place: Place, reason: str) -> None:
        there = self._present()
        kept = "there is no earlier checkpoint"
        if there:
            kept = f"{self.path(there[0].name)} is kept"
        elif self._newest is not None:
            kept = f"{self.path(self._newest.name)} was written before"
        warn(f"checkpoint {self.path(place.name)} not written: {reason}; {kept}, training goes on")
        self._failing = True

    def _present(self) -> list[Place]:
        try:
            return places_in(self.folder, self.suffix)
        except OSError:
            return []

    def _recovered(self, place: Place) -> None:
        if self._failing:
            warn(f"checkpoints can be written again: {self.path(place.name)}")
        self._failing = False

    def _save_shards(self, place: Place, content: dict[str, Any], best: Sequence[Place]) -> bool:
        """Write a folder with every rank's part. No rank starts a stage before all have finished the previous one."""
        work = files.hidden_name(self.path(place.name), "new")
        if self.world.gather(self._is_there(place))[0]:
            return self._together(place, lambda: self._update_links(place, best)) is not None
        main, world = self.world.main, self.world
        stages: tuple[Callable[[], Any], ...] = (
            lambda: self._begin(work) if main else None,
            lambda: self.engine.save_shards(work),
            lambda: shards.sync_and_list(work, world.rank, world.size),
        )
        found: list[Any] | None = None
        for stage in stages:
            found = self._together(place, stage)
            if found is None:
                break
        if found is not None:
            content["files"] = {name: digest for part in found for name, digest in part.items()}
            found = self._together(place, lambda: self._seal(place, work, content, best) if main else None)
        if found is not None:
            self._newest = place
            self._recovered(place)
        elif main:
            shutil.rmtree(work, ignore_errors=True)
        return found is not None

    def _begin(self, work: Path) -> None:
        self._prepare()
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(mode=0o700)

    def _seal(self, place: Place, work: Path, content: dict[str, Any], best: Sequence[Place]) -> None:
        target = self.path(place.name)
        files.write_file(work / shards.HEADER_FILE, content)
        if target.exists():
            files.remove(target)  # a damaged one of the same place
        self._folder_lock.check()
        work.rename(target)
        sync_folder(self.folder)
        self._update_links(place, best)

    def _together(self, place: Place, action: Callable[[], Any]) -> list[Any] | None:
        """Run an action on every rank and return the results by rank; None, after a warning, if it failed on one."""
        result, reason = None, None
        try:
            result = action()
        except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
            reason = getattr(error, "strerror", None) or str(error)
        outcomes = self.world.gather((result, reason))
        failed = [(rank, said) for rank, (_, said) in enumerate(outcomes) if said is not None]
        if not failed:
            return [value for value, _ in outcomes]
        self._lost.add(place)
        rank, said = failed[0]
        if self.world.main:
            self._report(place, said if rank == 0 else f"{said} (rank {rank})")
        return None

    def close(self) -> None:
        """Wait for the current write, so that it ends before the run does, on an error too. Then release the folder."""
        try:
            self.finish_write()
        finally:
            self._folder_lock.release()

    # Loading.

    @phase("checkpoint")
    def load_last(self) -> dict[str, Any] | None:
        """Load the newest whole checkpoint into the engine and return its progress; None if there is none.

        A damaged checkpoint gives a warning, and the one before it is loaded. Raises R508 if all are damaged, R518 if
        it was made under another lock, R583 if with other own code. Every rank calls this.
        """
        candidates, finding = self.world.gather(self._candidates() if self.world.main else None)[0]
        if finding is not None:
            raise finding
        if not candidates:
            self._refuse_others()
            return None
        return self._load_first(candidates)

    def _candidates(self) -> tuple[list[str], RuntimeFinding | None]:
        """Remove incomplete files. Return the names of the checkpoints to continue from, newest first, or R508."""
        last = self.path("last")
        try:
            self._clean()
            names = [one.name for one in files.retry(lambda: places_in(self.folder, self.suffix))]
            # One that was copied here alone, to go on from.
            return names or (["last"] if last.exists() and not last.is_symlink() else []), None
        except OSError as error:
            return [], header.unusable(self.folder, error.strerror or str(error))

    @phase("checkpoint")
    def load_best(self, best: Sequence[Place]) -> Place | None:
        """Load the first whole checkpoint of `best` into the engine and return its place; None if there is none."""
        self.finish_write()
        present = self.world.gather(self._present())[0]
        names = [one.name for one in best if one in present]
        try:
            progress = self._load_first(names) if names else None
        except RuntimeFinding as finding:
            if self.world.main:
                warn(f"{finding.message}: {finding.note}")
            return None
        return None if progress is None else Place.of(progress)

    def _load_first(self, names: list[str]) -> dict[str, Any] | None:
        last: RuntimeFinding | None = None
        for name in names:
            path = self.path(name)
            fault = self._fault(name)
            if fault is None:
                progress = self._take(path)
                self._newest = self._newest or Place.of(progress)
                return progress
            last = header.unusable(path, fault)
            if self.world.main and name != names[-1]:
                warn(f"checkpoint {path} is damaged and passed over: {fault}")
        if last is not None:
            raise last
        return None

    def _fault(self, name: str) -> str | None:
        """Return a description of a checkpoint's damage, the same on every rank. Each rank checks its share."""
        path, fault, readable = self.path(name), None, True
        try:
            if self.engine.sharded:
                fault = shards.fault_of_share(path, self.world.rank, self.world.size)
            elif self.world.main:
                fault = files.fault_of(path)
        except OSError as error:
            fault, readable = f"it cannot be read ({error.strerror or error})", False
        except header.UNREADABLE as error:
            fault = f"{type(error).__name__}: {error}"[:300]
        if self.world.main and fault is not None and header.is_older(self._header_file(path)):
            fault = header.OLDER
        found = [(said, could) for said, could in self.world.gather((fault, readable)) if said is not None]
        place = place_of(name, "")
        if found and place is not None:
            (self._damaged if all(could for _, could in found) else self._unreadable).add(place)
        return found[0][0] if found else None

    def _header_file(self, path: Path) -> Path:
        return path / shards.HEADER_FILE if self.engine.sharded else path

    def _take(self, path: Path) -> dict[str, Any]:
        """Load a whole checkpoint. If one rank fails, every rank raises its error: R508, R518 or R583."""
        finding: RuntimeFinding | None = None
        progress: dict[str, Any] = {}
        try:
            progress = self._load(path)
        except RuntimeFinding as error:
            finding = error
        except header.UNREADABLE as error:
            finding = header.unusable(path, f"{type(error).__name__}: {error}"[:600])
        for other in self.world.gather(finding):
            if other is not None:
                raise other
        return progress

    def _load(self, path: Path) -> dict[str, Any]:
        content = torch.load(self._header_file(path), map_location="cpu", weights_only=True)
        header.check_version(path, content)
        asked = header.continued(content, self.lock)
        found = header.differences(content, asked)
        if found or content["fingerprint"] != asked.fingerprint():
            raise header.changed(path, found, header.more_epochs(content, self.lock))
        self.extends = asked is not self.lock
        moved = header.moved_code(content, self.lock)
        if moved and self.lock.checkpoint.own_code == "strict":
            raise header.code_changed(path, moved)
        if moved and self.world.main and not self._warned_of_code:
            self._warned_of_code = True
            warn(f"your own code has changed since checkpoint {path} was made: {'; '.join(moved)}")
        progress = checked(content["progress"], self.lock.training.epochs)
        states = content["rng"]
        if not isinstance(states, list) or len(states) != content["world_size"]:
            raise ValueError(f"it lacks random states of some of its {content['world_size']} processes")
        if self.engine.sharded:
            self.engine.load_shards(path)
        else:
            check_optimizer(content, self.lock.training.optimizer)
            self.engine.load(content)
        # With another number of processes there is no state to take over for every rank.
        if len(states) == self.world.size:
            set_rng_state(states[self.world.rank])
        return progress

    def _refuse_others(self) -> None:
        """Raise R508 or R518 if the folder holds only checkpoints that this engine does not read."""
        suffix = ".pt" if self.engine.sharded else ""
        names = [one.name for one in places_in(self.folder, suffix)][:1] or ["last"]
        other = self.folder / f"{names[0]}{suffix}"
        finding = None
        if self.world.main and other.exists():
            try:
                finding = header.changed(other, header.differences(header.read(other), self.lock))
            except RuntimeFinding as error:
                finding = error
        finding = self.world.gather(finding)[0]
        if finding is not None:
            raise finding

    def _clean(self) -> None:
        """Remove files and folders that a killed run left incomplete."""
        if not self.folder.is_dir():
            return
        for path in self.folder.iterdir():
            name = path.name
            if name.startswith(PREFIX) or (name.startswith(".") and name.endswith((".new", ".old"))):
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
