"""Compare the store of the cache of decoded images with LMDB: `python benchmarks/sample_stores.py`.

Speed: two processes fill a store together, then read every sample warm, as a loader does (`unpack`). Hazards: what a
damaged file, a killed writer and a stopped writer do to the process that reads or fills next.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import os
import random
import signal
import statistics
import sys
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "runtime"))

from ratc_runtime.data.packing import pack, unpack
from ratc_runtime.data.shared_cache import SharedCache

# LMDB gives views that cannot be written to, which torch mentions; they are only read.
warnings.filterwarnings("ignore", "The given buffer is not writable")

FORK = multiprocessing.get_context("fork")
MIB = 2**20


class Lmdb:
    """The same interface over an LMDB environment, opened by each process at its first use; nothing is synced."""

    def __init__(self, path: Path, limit: int) -> None:
        self.path, self.limit, self._pid = path, limit, 0
        self._checked: set[int] = set()

    @property
    def _environment(self) -> lmdb.Environment:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._opened = lmdb.open(
                str(self.path), map_size=self.limit, subdir=False, sync=False, readahead=False, max_readers=1024
            )
        return self._opened

    def read(self, slot: int) -> Any:
        """Return image, target and name, or None if the sample is absent or its checksum is wrong."""
        with self._environment.begin(buffers=True) as transaction:
            found = transaction.get(slot.to_bytes(8, "big"))
            if found is None:
                return None
            packed = found[4:]
            if slot not in self._checked:
                if zlib.crc32(packed) != int.from_bytes(found[:4], "little"):
                    return None
                self._checked.add(slot)
            return unpack(packed)

    def store(self, slot: int, packed: bytes) -> bool:
        """Keep a packed sample; False if there is no room."""
        try:
            with self._environment.begin(write=True) as transaction:
                transaction.put(slot.to_bytes(8, "big"), zlib.crc32(packed).to_bytes(4, "little") + packed)
        except (lmdb.MapFullError, lmdb.DiskError):
            return False
        return True

    def close(self) -> None:
        """Close this process's environment."""
        self._environment.close()
        self._pid = 0


class Ours:
    """The cache's own store behind that interface."""

    def __init__(self, shared: SharedCache) -> None:
        self.shared = shared

    def read(self, slot: int) -> Any:
        """Return image, target and name, or None."""
        packed = self.shared.read(slot)
        return None if packed is None else unpack(packed)

    def store(self, slot: int, packed: bytes) -> bool:
        """Keep a packed sample; False if there is no room."""
        return self.shared.store(slot, b"s" * 16, packed)

    def close(self) -> None:
        """Let the file go."""
        self.shared.close()
        os.close(self.shared.descriptor)


def sample(slot: int) -> tuple[Any, Any, str]:
    """An image of 3 x 256 x 256 bytes and its mask, as float tensors."""
    generator = torch.Generator().manual_seed(slot)
    image = torch.randint(0, 256, (3, 256, 256), generator=generator).float() / 255
    return image, (image[:1] > 0.5).float(), f"sample {slot}"


def packed_sample(slot: int) -> bytes:
    """The bytes of that sample."""
    packed = pack(*sample(slot))
    assert packed is not None
    return packed


def together(work: Callable[[int], float], processes: int) -> list[float]:
    """What `work(rank)` returns in so many processes at once."""
    pipes = [FORK.Pipe(False) for _ in range(processes)]
    started = [FORK.Process(target=lambda n=n: pipes[n][1].send(work(n))) for n in range(processes)]
    for process in started:
        process.start()
    found = [float(receive.recv()) for receive, _ in pipes]
    for process in started:
        process.join()
    return found


def speed(store: Ours | Lmdb, content: list[bytes], epochs: int) -> tuple[float, float]:
    """Samples a second of two processes together: filled, and read warm."""

    def fill(rank: int) -> float:
        start = time.perf_counter()
        for slot in range(rank, len(content), 2):
            while not store.store(slot, content[slot]):  # ours waits a hundredth of a second at most
                pass
        return time.perf_counter() - start

    def read(rank: int) -> float:
        torch.set_num_threads(1)
        order = list(range(len(content)))
        random.Random(rank).shuffle(order)
        for slot in order:  # checksums are compared now
            assert store.read(slot) is not None
        start = time.perf_counter()
        for _ in range(epochs):
            for slot in order:
                store.read(slot)
        return time.perf_counter() - start

    return len(content) / max(together(fill, 2)), 2 * epochs * len(content) / max(together(read, 2))


def outcome(work: Callable[[], str]) -> str:
    """What `work` returned in a process of its own, or what ended that process."""
    receive, send = FORK.Pipe(False)

    def run() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            send.send(work())
        except Exception as error:
            send.send(f"raised {type(error).__name__}")

    process = FORK.Process(target=run)
    process.start()
    process.join(10)
    if process.exitcode is None:
        process.kill()
        process.join()
        return "hangs"
    return str(receive.recv()) if receive.poll() else f"ended by {signal.Signals(-process.exitcode).name}"


def damage(open_store: Callable[[Path], Ours | Lmdb], folder: Path, tries: int) -> collections.Counter[str]:
    """Damage files of eight small samples (a page of noise, or the end cut off), then read all and store one."""
    chosen, found = random.Random(0), collections.Counter[str]()
    content = [pack(torch.full((500,), float(slot)), None, "s") or b"" for slot in range(8)]
    for number in range(tries):
        path = folder / f"damaged-{number}"

        def prepare(path: Path = path) -> str:
            store = open_store(path)
            for slot, packed in enumerate(content):
                store.store(slot, packed)
            store.close()
            return ""

        outcome(prepare)
        size = path.stat().st_size
        used = min(size, 48 * 1024)
        if number % 4 == 0:
            os.truncate(path, chosen.randrange(1, used))
        else:
            with path.open("r+b") as file:
                file.seek(chosen.randrange(used // 4096) * 4096)
                file.write(chosen.randbytes(4096))

        def use(path: Path = path) -> str:
            store = open_store(path)
            for slot in range(8):
                read = store.read(slot)
                if read is not None and not torch.equal(read[0], torch.full((500,), float(slot))):
                    return "reads wrong samples"
            store.store(3, content[3])
            return "goes on"

        found[outcome(use)] += 1
        for left in folder.glob(f"damaged-{number}*"):
            left.unlink()
    return found


def stopped(store: Ours | Lmdb, hold: Callable[[Any], None]) -> str:
    """What storing does while another process is stopped in the middle of storing."""
    holder = FORK.Process(target=hold, args=(store,))
    holder.start()
    time.sleep(0.5)
    os.kill(holder.pid or 0, signal.SIGSTOP)

    def work() -> str:
        start = time.perf_counter()
        kept = store.store(1, b"x" * 4096)
        return f"{'kept' if kept else 'not kept'} after {1000 * (time.perf_counter() - start):.0f} ms"

    try:
        return outcome(work)
    finally:
        os.kill(holder.pid or 0, signal.SIGKILL)
        holder.join()


def _hold_ours(store: Any) -> None:
    from ratc_runtime.data import shared_cache

    shared_cache._lock(store.shared.descriptor, shared_cache._LOCK_HEAD)
    time.sleep(60)


def _hold_lmdb(store: Any) -> None:
    with store._environment.begin(write=True):
        time.sleep(60)


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100, help="samples of 256 x 256")
    parser.add_argument("--rounds", type=int, default=5, help="fresh stores of each kind, in turn")
    parser.add_argument("--epochs", type=int, default=5, help="counted passes of each process over a store")
    parser.add_argument("--damaged", type=int, default=100, help="damaged files of each kind")
    options = parser.parse_args()
    content = [packed_sample(slot) for slot in range(options.samples)]
    limit = 2 * sum(map(len, content))
    with tempfile.TemporaryDirectory() as disk, tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        ways: dict[str, Callable[[int], Ours | Lmdb]] = {
            "ours, memory (memfd)": lambda _: Ours(SharedCache.in_memory(options.samples, limit)),
            "LMDB, memory (/dev/shm)": lambda turn: Lmdb(Path(memory) / str(turn), limit),
            "ours, disk": lambda turn: Ours(SharedCache.on_disk(Path(disk) / f"ours{turn}", options.samples, limit)),
            "LMDB, disk": lambda turn: Lmdb(Path(disk) / f"lmdb{turn}", limit),
        }
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for turn in range(options.rounds):
            for name, make in ways.items():
                store = make(turn)
                rates[name].append(speed(store, content, options.epochs))
                store.close()
        print("| store | filled by two processes, samples/s | read by two processes, samples/s |\n| --- | --- | --- |")
        for name, found in rates.items():
            fill, read = (statistics.median(column) for column in zip(*found, strict=True))
            print(f"| {name} | {fill:.0f} | {read:.0f} |")
        folder = Path(disk)
        print("\n| store | damaged file | storing while a stopped process stores |\n| --- | --- | --- |")
        for name, open_store, hold in (
            ("ours", lambda path: Ours(SharedCache.on_disk(path, 8, MIB)), _hold_ours),
            ("LMDB", lambda path: Lmdb(path, MIB), _hold_lmdb),
        ):
            told = ", ".join(
                f"{how} {number}" for how, number in damage(open_store, folder, options.damaged).most_common()
            )
            print(f"| {name} | {told} | {stopped(open_store(folder / f'stopped-{name}'), hold)} |")
    print(
        f"\n{options.samples} samples of 3 x 256 x 256 and their masks; {os.cpu_count()} cores, lmdb {lmdb.__version__}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
