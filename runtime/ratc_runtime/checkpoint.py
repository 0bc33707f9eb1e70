"""Checkpoints that are either whole or not there, and that continue a run as if it had not stopped.

`checkpoints/last.pt` and `checkpoints/best.pt` (folders `last/` and `best/` of one file a rank with DeepSpeed)
are written beside, synced, and renamed. A full disk costs the new checkpoint, never the old one, and not the run.
"""

from __future__ import annotations

import errno
import os
import pickle
import random
import shutil
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from ratc_runtime.errors import RuntimeFinding, warn

CHECKPOINT_VERSION = 1
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PROGRESS_FILE = "progress.pt"


def rng_state() -> dict[str, Any]:
    """Return the random states of this process."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        # As a tensor: torch reads checkpoints back without running any code only where they hold its own types.
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Take back what `rng_state` returned."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


class _Writer:
    """A file for torch.save that remembers the operating system's error, which torch turns into another."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        pass


def write_file(path: Path, state: dict[str, Any]) -> None:
    """Write a state to `path` in one piece; raise OSError, leaving what was there, where that fails."""
    work = path.with_name(f".{path.name}.new")
    try:
        with work.open("wb", buffering=0) as file:
            writer = _Writer(file)
            torch.save(state, writer)  # type: ignore[arg-type]
            if writer.error is not None:
                raise writer.error
            os.fsync(file.fileno())
        os.replace(work, path)
        sync_folder(path.parent)
    finally:
        work.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Checkpoints:
    """The checkpoints of one output folder, for one engine."""

    def __init__(self, output_dir: Path, engine: Any, fingerprint: str) -> None:
        self.folder = output_dir / "checkpoints"
        self.engine, self.world = engine, engine.world
        self.fingerprint = fingerprint
        self.suffix = "" if engine.deepspeed else ".pt"

    def path(self, name: str) -> Path:
        """Return where the checkpoint `last` or `best` lies."""
        return self.folder / f"{name}{self.suffix}"

    def clear(self) -> None:
        """Put the checkpoints of an earlier run aside, as `checkpoints.previous`."""
        if self.world.main and self.folder.exists():
            previous = self.folder.with_name("checkpoints.previous")
            shutil.rmtree(previous, ignore_errors=True)
            self.folder.rename(previous)
        self.world.barrier()

    def save(self, name: str, progress: dict[str, Any]) -> bool:
        """Save everything under `name`; every rank calls this.

        Returns False, after a warning, where there is no room; the checkpoint that was there is then kept.
        Raises R510 where the folder cannot be written for another reason.
        """
        header = {
            "version": CHECKPOINT_VERSION,
            "fingerprint": self.fingerprint,
            "progress": progress,
            "rng": self.world.gather(rng_state()),
        }
        error: OSError | None = None
        try:
            self._write(name, header)
        except OSError as caught:
            error = caught
        failed = int(self.world.sum(torch.tensor([float(error is not None)])).item())
        if error is not None and error.errno not in NO_SPACE:
            raise RuntimeFinding(
                "R510", f"cannot write {self.path(name)}", error.strerror or str(error), everywhere=False
            )
        if failed and self.world.main:
            kept = "the one before it is kept" if self.path(name).exists() else "there is none before it"
            reason = os.strerror(error.errno or 0) if error is not None else "on another rank"
            warn(f"checkpoint {self.path(name)} not written: {reason}; {kept}, training goes on")
        return failed == 0

    def _write(self, name: str, header: dict[str, Any]) -> None:
        target = self.path(name)
        if self.world.main:
            self.folder.mkdir(parents=True, exist_ok=True)
        if self.engine.deepspeed:
            self._write_shards(target, header)
        elif self.world.main:
            write_file(target, {**header, **self.engine.state()})

    def _write_shards(self, target: Path, header: dict[str, Any]) -> None:
        work = target.with_name(f".{target.name}.new")
        if self.world.main:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
        self.world.barrier()
        error: OSError | None = None
        try:
            self.engine.save_shards(work)
            if self.world.main:
                write_file(work / PROGRESS_FILE, header)
        except (OSError, RuntimeError) as caught:  # torch.save turns a full disk into a RuntimeError
            error = caught if isinstance(caught, OSError) else OSError(errno.ENOSPC, str(caught))
        # No rank renames before all have written.
        failed = self.world.sum(torch.tensor([float(error is not None)])).item() > 0
        if self.world.main and not failed:
            old = target.with_name(f".{target.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            if target.exists():
                target.rename(old)  # a folder cannot replace one that holds files
            work.rename(target)
            shutil.rmtree(old, ignore_errors=True)
        elif self.world.main:
            shutil.rmtree(work, ignore_errors=True)
        self.world.barrier()
        if error is not None:
            raise error

    def load(self, name: str) -> dict[str, Any] | None:
        """Load `name` into the engine and return its progress, or None where there is no such checkpoint.

        Raises R508 where it cannot be read, or was made under another lock. Every rank calls this.
        """
        path = self.path(name)
        interrupted = path.with_name(f".{path.name}.old")
        if self.world.main and self.engine.deepspeed and not path.exists() and interrupted.exists():
            interrupted.rename(path)  # killed between the two renames
        self.world.barrier()
        if not path.exists():
            other = self.folder / (f"{name}.pt" if self.engine.deepspeed else name)
            if other.exists():
                raise self._unusable(
                    other, "it was made " + ("without" if self.engine.deepspeed else "with") + " DeepSpeed"
                )
            return None
        header = self._read(path / PROGRESS_FILE if self.engine.deepspeed else path)
        if header.get("version") != CHECKPOINT_VERSION:
            raise self._unusable(path, f"it has version {header.get('version')!r}, not {CHECKPOINT_VERSION}")
        if header.get("fingerprint") != self.fingerprint:
            raise self._unusable(path, "it was made under another lock (model, training or data differ)")
        try:
            if self.engine.deepspeed:
                self.engine.load_shards(path)
            else:
                self.engine.load(header)
            states = header["rng"]
            # With another number of processes there is no state to take over for every rank.
            if len(states) == self.world.size:
                set_rng_state(states[self.world.rank])
            return dict(header["progress"])
        except (KeyError, TypeError, ValueError, RuntimeError, OSError, AttributeError) as error:
            raise self._unusable(path, f"{type(error).__name__}: {error}"[:600]) from error

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
            raise self._unusable(path, f"{type(error).__name__}: {error}"[:600]) from error
        if not isinstance(content, dict):
            raise self._unusable(path, "it holds no checkpoint")
        return content

    def _unusable(self, path: Path, reason: str) -> RuntimeFinding:
        return RuntimeFinding(
            "R508",
            f"checkpoint {path} cannot be continued",
            reason,
            "name another output folder, or start anew with --fresh (the old ones are kept as checkpoints.previous)",
        )
