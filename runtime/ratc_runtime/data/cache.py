"""The cache of decoded images: samples of a data set, kept from epoch to epoch, with one copy per node.

A sample is kept decoded and resized, before augmentation. Training with a cache equals training without one, bit for
bit. If the cache cannot hold or keep a sample, the sample is decoded as without a cache.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import socket
import uuid
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ratc_runtime.config.lock import Lock
from ratc_runtime.data.packing import pack, unpack
from ratc_runtime.data.randomness import Drawn
from ratc_runtime.data.samples import Checked, checked, name_of
from ratc_runtime.data.shared_cache import SharedCache, remove_unused
from ratc_runtime.distributed.world import World
from ratc_runtime.errors import warn
from ratc_runtime.output.sizes import size_text

FOLDER_VARIABLE = "RAT_CACHE_DIR"
SUFFIX = ".ratc-cache"
#: Bytes, and share, of the disk's free space that the cache leaves free. Chosen, not measured.
SPARE_BYTES, SPARE_SHARE = 2**30, 0.05
#: The cache's largest share of the memory that is free at the start of a run. Chosen, not measured.
MEMORY_SHARE = 0.8
#: Flags of the shared cache.
FULL, RANDOM, FOREIGN = 0, 1, 2
_NO_STAMP = bytes(16)


class CachedSplit:
    """A data set that keeps its samples in a shared cache, from record `first` on. The rest is the data set's own.

    If the data set has `files(index)`, the source files of a sample, the sample is made again if the size or mtime of
    one of them has changed. Each process checks once per sample.
    """

    def __init__(self, dataset: Any, shared: SharedCache, first: int, foreign: bool) -> None:
        self.dataset, self.shared, self.first, self.foreign = dataset, shared, first, foreign

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # while it is unpickled there is none yet
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __getitem__(self, index: int) -> Checked:
        slot = self.first + index
        stamp = None
        if not self.shared.is_checked(slot):
            stamp = self._stamp(index)
            if not self.shared.has(slot, stamp):
                return self._fill(index, slot, stamp)
        packed = self.shared.read(slot)
        try:
            if packed is not None:
                image, target, name = unpack(packed)
                return Checked(image=image, target=target, name=name)
        except (ValueError, KeyError, TypeError, RecursionError):  # foreign bytes whose checksum is right
            pass
        return self._fill(index, slot, stamp or self._stamp(index))

    def _fill(self, index: int, slot: int, stamp: bytes) -> Checked:
        drawn = Drawn() if self.foreign else None
        sample = checked(self.dataset[index], name_of(self.dataset, index))
        if drawn is not None and drawn.has_changed():
            self.shared.note(RANDOM)  # kept, it would be the same in every epoch
            return sample
        packed = pack(sample["image"], sample["target"], sample["name"])
        if packed is None:
            self.shared.note(FOREIGN)
        elif not self.shared.store(slot, stamp, packed):
            if not self.shared.has_room(len(packed)):
                self.shared.note(FULL)
            if not self.shared.has(slot, stamp):
                self.shared.forget(slot)
        return sample

    def target(self, index: int) -> Any:
        """Return the target of one sample, from the cache or from the data set's `target`, which reads no image."""
        read = getattr(self.dataset, "target", None)
        if read is None or self.shared.has(self.first + index, self._stamp(index)):
            return self[index]["target"]
        return read(index)

    def _stamp(self, index: int) -> bytes:
        files = getattr(self.dataset, "files", None)
        if files is None:
            return _NO_STAMP
        try:
            states = [(str(path), *_state(path)) for path in files(index)]
        except OSError:  # the data set itself reports the error
            return _NO_STAMP
        return hashlib.blake2b(repr(states).encode(), digest_size=16).digest()


def _state(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_size, found.st_mtime_ns


class Cache:
    """The cache of one run on one node. Without a shared cache there is no cache."""

    def __init__(self, kind: str, shared: SharedCache | None, place: str) -> None:
        self.kind, self.shared, self.place = kind, shared, place

    def record(self) -> dict[str, Any] | None:
        """Return the entry of results.json for the cache on the main process's node; None if there is no cache."""
        if self.shared is None:
            return None
        return {
            "kind": self.kind,
            "place": self.place,
            "samples": self.shared.held(),
            "of": self.shared.records,
            "bytes": self.shared.used,
            "limit_bytes": self.shared.limit,
            "full": self.shared.noted(FULL),
        }

    def warnings(self) -> Iterator[str]:
        """Yield warnings for samples that were not cached for a reason other than the cache's size."""
        if self.shared is not None and self.shared.noted(RANDOM):
            same = "because they would be the same in each epoch"
            yield f"the data set draws random numbers: its samples are not cached, {same}"
        if self.shared is not None and self.shared.noted(FOREIGN):
            yield "samples that are not made of tensors, arrays, numbers and text are not cached"


def open_cache(
    lock: Lock, datasets: Mapping[str, Any], data_dir: Path, output_dir: Path, world: World, passed: bool = False
) -> Cache:
    """Open the cache that a lock asks for, shared by all processes of a node. Every rank calls this.

    `passed` data sets were made by the caller, with arguments that are not in the lock: their cache file is made again.
    On an error the run goes on without a cache, after one warning.
    """
    if lock.data.cache == "none":
        return Cache("none", None, "")
    records, host = sum(len(dataset) for dataset in datasets.values()), socket.gethostname()
    hosts = world.gather(host)
    leader = hosts.index(host)
    opened: dict[str, Any] = {}
    shared: SharedCache | None = None
    if world.rank == leader:
        try:
            shared, opened = _open(lock, datasets, data_dir, output_dir, host, passed)
        except (OSError, ValueError, AttributeError) as error:  # no memfd outside of Linux
            opened = {"problem": f"{type(error).__name__}: {error}"}
    told = world.gather(opened)[leader]
    if world.rank != leader and "problem" not in told:
        try:
            shared = _join(told, records)
        except (OSError, ValueError) as error:
            told = {"problem": f"rank {world.rank} cannot open that of its node: {error}"}
    problems = world.gather(told.get("problem"))
    if world.main and any(problems):
        warn(f"no cache of decoded images: {next(filter(None, problems))}; images are decoded each time")
    return Cache(lock.data.cache, shared, told.get("place", ""))


def wrap(cache: Cache, datasets: Mapping[str, Any], foreign: bool) -> Mapping[str, Any]:
    """Return the data sets of the splits, each with its part of the cache."""
    if cache.shared is None:
        return datasets
    wrapped, first = {}, 0
    for split, dataset in datasets.items():
        wrapped[split] = CachedSplit(dataset, cache.shared, first, foreign)
        first += len(dataset)
    return wrapped


def _open(
    lock: Lock, datasets: Mapping[str, Any], data_dir: Path, output_dir: Path, host: str, passed: bool
) -> tuple[SharedCache, dict[str, Any]]:
    asked, records = lock.data.cache_size_bytes or 0, sum(len(dataset) for dataset in datasets.values())
    if lock.data.cache == "memory":
        limit = min(asked, int(MEMORY_SHARE * available_memory()))
        shared = SharedCache.in_memory(records, limit)
        return shared, {"pid": os.getpid(), "fd": shared.descriptor, "limit": limit, "place": "memory"}
    named = os.environ.get(FOLDER_VARIABLE)
    folder = Path(named).expanduser() if named else output_dir / "cache"
    folder.mkdir(parents=True, exist_ok=True)
    # A folder may be shared by nodes, and by runs.
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", f"{lock.experiment_name}-{host}")
    path = folder / f"{stem}-{_key(lock, datasets, data_dir, passed)}{SUFFIX}"
    for old in folder.glob(f"{stem}-{'[0-9a-f]' * 16}{SUFFIX}"):
        if old != path:
            remove_unused(old)
    there = path.stat().st_blocks * 512 if path.exists() else 0
    state = os.statvfs(folder)
    free = state.f_bavail * state.f_frsize
    limit = min(asked, there + free - max(SPARE_BYTES, int(SPARE_SHARE * free)))
    if limit <= 0:
        raise OSError(f"{folder} has {size_text(free)} left")
    return SharedCache.on_disk(path, records, limit), {"path": str(path), "limit": limit, "place": str(path)}


def _join(told: dict[str, Any], records: int) -> SharedCache:
    if "path" in told:
        return SharedCache.on_disk(Path(told["path"]), records, told["limit"])
    return SharedCache.of_process(told["pid"], told["fd"], records, told["limit"])


def _key(lock: Lock, datasets: Mapping[str, Any], data_dir: Path, passed: bool) -> str:
    """Return sixteen hex digits that change if decoded samples may change, apart from changes of the files."""
    data = lock.data
    what: list[Any] = [data.dataset, data.args, data.image_size, data.channels, data.scales, str(data_dir.resolve())]
    what += [data.num_classes, data.ignore_index]
    if lock.tasks:
        what.append({name: part.data.model_dump() for name, part in lock.tasks.items()})
    for package in ("torch", "numpy", "pillow"):
        try:
            what.append(version(package))
        except PackageNotFoundError:
            what.append(None)
    for split, dataset in datasets.items():
        names = getattr(dataset, "names", None)
        what += [split, len(dataset), None if names is None else [str(name) for name in names], _source(dataset)]
        if passed or not hasattr(dataset, "files"):
            what.append(uuid.uuid4().hex)  # changes of its files cannot be detected: made again at each start
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _source(dataset: Any) -> str | None:
    """Return a digest of the source file of the data set's class; of a fold, of the data set that it divides."""
    try:
        path = inspect.getsourcefile(type(getattr(dataset, "sources", [dataset])[0]))
        return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else None
    except (OSError, TypeError):
        return None


def available_memory() -> int:
    """Return the bytes of host memory that this process may still use: the machine's or its control group's."""
    bounds = []
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        bounds.append(int(text.split("MemAvailable:")[1].split()[0]) * 1024)
    except (OSError, IndexError, ValueError):
        pass
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            bounds.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return max(0, min(bounds)) if bounds else 0
