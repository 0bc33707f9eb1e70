"""The node counts of an elastic lock: the row of the nodes that a start was given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ratc_runtime.config.refusal import Wrong
from ratc_runtime.config.sections import ProgramSize, Size
from ratc_runtime.errors import RuntimeFinding

if TYPE_CHECKING:
    from ratc_runtime.config.lock import Lock
    from ratc_runtime.config.program_lock import ProgramLock

#: The nodes that a job uses, as its script sets it.
NODES = "RATC_NODES"
_Lock = TypeVar("_Lock", "Lock", "ProgramLock")


def of_start(lock: _Lock, environment: Mapping[str, str]) -> _Lock:
    """Return the lock with the values of the nodes that this start was given; other locks as they are.

    A launcher's world size decides, else the number that the script sets, else the lock's own, the most nodes. Raises
    R613 if the lock has no row for it.
    """
    if lock.elastic is None:
        return lock
    each = lock.parallel.processes_per_node
    if "WORLD_SIZE" in environment:
        given, source = environment["WORLD_SIZE"], "WORLD_SIZE as the launcher set it"
        world = _number(given)
    else:
        given = environment.get(NODES, str(lock.parallel.nodes))
        source, world = f"{NODES} as the job's script set it", _number(given) * each
    for nodes, size in lock.elastic.items():
        if size.world_size == world:
            return _with(lock, int(nodes), size)
    raise RuntimeFinding(
        "R613",
        f"the lock has no split of the batch for {world} processes" if world else f"{given!r:.40} is not a number",
        f"{source}; the lock has one for {', '.join(str(size.world_size) for size in lock.elastic.values())}",
        "start the compiled job, or compile for this number of nodes",
    )


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0


def _with(lock: _Lock, nodes: int, size: ProgramSize) -> _Lock:
    """Return the lock with one row's values in the places of the lock's own."""
    split = {"micro_batch_size": size.micro_batch_size}
    split["gradient_accumulation_steps"] = size.gradient_accumulation_steps
    changes: dict[str, object] = {
        "parallel": lock.parallel.replace(nodes=nodes, world_size=size.world_size),
        "training": lock.training.replace(**split),
    }
    if lock.memory is not None:
        peaks = {"peak_allocated_bytes": size.peak_allocated_bytes, "peak_reserved_bytes": size.peak_reserved_bytes}
        changes["memory"] = lock.memory.replace(**peaks)
    if isinstance(size, Size):
        loop: Any = lock  # only a Lock has rows of this kind
        changes["data"] = loop.data.replace(prefetch_factor=size.prefetch_factor)
        if loop.fsdp2 is not None and loop.fsdp2.shard != "hybrid":
            changes["fsdp2"] = loop.fsdp2.replace(shard_size=size.world_size)
    return lock.replace(**changes)


def contradictions(lock: Lock | ProgramLock) -> Iterator[Wrong]:
    """Yield every contradiction of the rows of a lock with valid values."""
    if lock.elastic is None:
        return
    parallel, training = lock.parallel, lock.training
    for nodes, size in lock.elastic.items():
        at = f"elastic.{nodes}"
        if not _number(nodes) or str(int(nodes)) != nodes:
            yield Wrong(at, "is not a number of nodes")
            continue
        if int(nodes) * parallel.processes_per_node != size.world_size:
            yield Wrong(f"{at}.world_size", f"is not {nodes} x parallel.processes_per_node")
        split = size.micro_batch_size * size.gradient_accumulation_steps * size.world_size
        if split != training.global_batch_size:
            yield Wrong(f"{at}.micro_batch_size", "x gradient_accumulation_steps x world_size is not the global batch")
        shards = getattr(lock, "fsdp2", None)
        if shards is not None and shards.shard == "hybrid" and size.world_size % shards.shard_size:
            yield Wrong(f"{at}.world_size", f"is not divisible by fsdp2.shard_size {shards.shard_size}")
    own = lock.elastic.get(str(parallel.nodes))
    mine = (training.micro_batch_size, training.gradient_accumulation_steps, parallel.world_size)
    if own is None or (own.micro_batch_size, own.gradient_accumulation_steps, own.world_size) != mine:
        yield Wrong("elastic", f"has no row for parallel.nodes {parallel.nodes} with the lock's own split")
