"""The metadata of a checkpoint: its version, the lock that it was made under, and the progress of the run.

It holds the whole lock, so that the model, its data and its loss can be rebuilt from the checkpoint alone.
"""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import torch

from ratc_runtime.checkpoint import shards
from ratc_runtime.checkpoint.files import fault_of
from ratc_runtime.config.lock import Lock, lock_from
from ratc_runtime.errors import RuntimeFinding

VERSION = 2
#: Exceptions of torch, pickle and the zip reader for files that are damaged or no checkpoints.
UNREADABLE = (
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    struct.error,
    pickle.UnpicklingError,
)
_KEYS = ("version", "fingerprint", "lock", "progress", "world_size")
#: Their types, without the version's, and the required counters of the progress.
_KINDS: dict[str, type] = {"fingerprint": str, "lock": str, "progress": dict, "world_size": int}
_COUNTS = ("epoch", "step")


def make(lock: Lock, progress: dict[str, Any], rng: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the header of a new checkpoint. `rng` holds the random states of every rank."""
    return {
        "version": VERSION,
        "fingerprint": lock.fingerprint(),
        # As text: a lock may hold values that torch cannot load without running code.
        "lock": json.dumps(lock.model_dump(), default=str),
        "progress": progress,
        "world_size": len(rng),
        "rng": rng,
    }


def read(path: Path) -> dict[str, Any]:
    """Return the header of a checkpoint, a file or a folder of DeepSpeed's, after its checksum has been verified.

    It has `version`, `fingerprint`, `lock` (a mapping, see `lock_of`), `progress` (`epoch` whole epochs and `step`
    optimizer steps of the next one, `history`) and `world_size`. Raises R508 if it is damaged, missing or no
    checkpoint.
    """
    content = open_content(path)
    header = {key: content[key] for key in _KEYS}
    try:
        header["lock"] = json.loads(header["lock"])
    except (ValueError, RecursionError) as error:
        raise unusable(path, f"its lock is not JSON: {error}"[:600], _ANOTHER) from None
    if not isinstance(header["lock"], dict):
        raise unusable(path, "its lock is not a mapping", _ANOTHER)
    return header


def open_content(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint's file (with DeepSpeed, of its header). Tensors are memory-mapped. Raises
    R508.
    """
    if path.is_dir() and not (path / shards.HEADER_FILE).exists():
        reason = f"it is a folder without {shards.HEADER_FILE}"
        raise unusable(path, reason, "name a checkpoint, or the output folder of a run that has saved one")
    try:
        if path.is_dir():
            fault, file = shards.fault_of_share(path, 0, 1), path / shards.HEADER_FILE
        else:
            fault, file = fault_of(path), path
        older = fault is not None and is_older(file)
        if fault is None:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            check_version(path, content)
            return dict(content)
    except UNREADABLE as error:
        raise unusable(path, f"{type(error).__name__}: {error}"[:600], _ANOTHER) from error
    raise unusable(path, OLDER if older else fault, _ANOTHER)


_ANOTHER = "use another checkpoint from the same folder"
OLDER = "an earlier ratc wrote it, in version 1, which this ratc cannot read"


def is_older(file: Path) -> bool:
    """Return whether a file without a digest is a checkpoint of version 1, which had no digest."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except UNREADABLE:
        return False
    return isinstance(content, dict) and content.get("version") == 1


def check_version(path: Path, content: Any) -> None:
    """Raise R508 unless `content` is a checkpoint of this version with all required keys."""
    found = content.get("version") if isinstance(content, dict) else None
    if found != VERSION:
        raise unusable(path, f"it has version {found!r}, not {VERSION}" if found else "it does not hold a checkpoint")
    for key, kind in _KINDS.items():
        if not isinstance(content.get(key), kind):
            raise unusable(path, f"its {key} is {type(content.get(key)).__name__}, expected {kind.__name__}")
    counts = [content["progress"].get(name) for name in _COUNTS]
    if not all(type(number) is int and number >= 0 for number in counts):
        raise unusable(path, "its progress does not say its epoch and step in whole numbers")
    if type(content["world_size"]) is not int or content["world_size"] < 1:
        raise unusable(path, f"it says that {content['world_size']!r:.40} processes made it")


def lock_of(header: dict[str, Any]) -> Lock:
    """Return the lock of a checkpoint. Raises R508 if this runtime cannot read it."""
    lock = header["lock"]
    try:
        return lock_from(json.loads(lock) if isinstance(lock, str) else lock)
    except (RuntimeFinding, ValueError, RecursionError) as error:
        reason = f"{error.message}\n{error.note}" if isinstance(error, RuntimeFinding) else str(error)[:600]
        raise RuntimeFinding(
            "R508",
            "this runtime cannot read the lock in the checkpoint",
            reason,
            "read it with the version of ratc that wrote it",
        ) from None


def continued(header: dict[str, Any], lock: Lock) -> Lock:
    """Return the plan that a checkpoint was made under, if `lock` only adds epochs to it; else `lock`."""
    try:
        return lock.continues(header["fingerprint"], lock_of(header).training.epochs)
    except RuntimeFinding:
        return lock


def more_epochs(header: dict[str, Any], lock: Lock) -> str:
    """Return a help with the spec's change if only the number of epochs differs, and is larger; else ""."""
    try:
        before, now = lock_of(header).training, lock.training
    except RuntimeFinding:
        return ""
    as_before = lock.replace(training=now.replace(epochs=before.epochs)).fingerprint()
    if lock.compression is not None or before.epochs >= now.epochs or as_before != header["fingerprint"]:
        return ""
    return (
        f"add `training.extensions: [{{after: {before.epochs}}}]` and compile again: the epochs after that get a"
        f" {now.scheduler} schedule of their own\n"
    )


def differences(header: dict[str, Any], lock: Lock) -> list[str]:
    """Return the differences that forbid continuing a checkpoint under `lock`: a line per value with path, old and new.

    With DeepSpeed the ZeRO stage counts too, and the number of processes unless both plans are elastic: the shards of
    others may be in an order that its converter does not know. Those of FSDP2 are read by any number.
    """
    try:
        old = lock_of(header)
    except RuntimeFinding:
        return []  # a lock with other keys; the fingerprints still tell whether it may be continued
    sharded = old.engine.deepspeed and lock.engine.deepspeed
    fixed = sharded and (old.elastic is None or lock.elastic is None)
    before, after = _decisive(old, sharded, fixed), _decisive(lock, sharded, fixed)
    return [
        f"{path}: {before.get(path, 'not there')} -> {after.get(path, 'not there')}"
        for path in [*before, *(path for path in after if path not in before)]
        if before.get(path) != after.get(path)
    ]


def _decisive(lock: Lock, sharded: bool, fixed: bool) -> dict[str, str]:
    values = _flat(lock.learnt()) | _flat({"engine": {"deepspeed": lock.engine.deepspeed}})
    values["parallel.strategy"] = "fsdp2" if lock.fsdp2 is not None else "another"
    if sharded:
        values["engine.zero_stage"] = str(lock.engine.zero_stage)
    if fixed:
        values["parallel.world_size"] = str(lock.parallel.world_size)
    return values


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        flat: dict[str, str] = {}
        for key, item in value.items():
            flat |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
        return flat
    return {prefix: json.dumps(value, default=str)}


def moved_code(header: dict[str, Any], lock: Lock) -> list[str]:
    """Return the changes of the user's own code since a checkpoint was made, one line per module.

    Comments and blank lines do not count. Older checkpoints that recorded no code give an empty list.
    """
    try:
        before, after = lock_of(header).own_code, lock.own_code
    except RuntimeFinding:
        return []
    if before is None or after is None:
        return []
    found = []
    for path in sorted({*before, *after}):
        old, new = before.get(path), after.get(path)
        if old is None or new is None:
            found.append(f"{path} {'is newly used' if old is None else 'is gone, or no longer used'}")
        elif old.digest != new.digest and (old.parts != new.parts or not new.parts):
            names = sorted(name for name in {*old.parts, *new.parts} if old.parts.get(name) != new.parts.get(name))
            found.append(f"{path}: {', '.join(names) or 'its bytes'} changed")
    return found


def code_changed(path: Path, found: list[str]) -> RuntimeFinding:
    """Return R583: a checkpoint was trained with other code."""
    return RuntimeFinding(
        "R583",
        f"your own code has changed since checkpoint {path} was made",
        "\n".join(found),
        "name another output folder, or start again with --fresh (the old checkpoints are kept as"
        " checkpoints.previous)\nor set `checkpoint.own_code: warn` and compile again, to continue with the new code",
    )


def unusable(path: Path, reason: str | None, help: str = "") -> RuntimeFinding:
    """Return R508 for a checkpoint that cannot be continued or read."""
    fresh = "name another output folder, or start again with --fresh (the old ones are kept as checkpoints.previous)"
    return RuntimeFinding("R508", f"checkpoint {path} cannot be read", reason or "", help or fresh)


def changed(path: Path, found: list[str], help: str = "") -> RuntimeFinding:
    """Return R518: the lock has changed since a checkpoint was made. `help` comes before the usual one."""
    return RuntimeFinding(
        "R518",
        f"the lock has changed since checkpoint {path} was made",
        "\n".join(found) or "values that determine the weights differ",
        f"{help}compile with the old values to continue this run\n"
        "name another output folder for the new ones, or start again with --fresh (the old checkpoints are kept as"
        " checkpoints.previous)",
    )
