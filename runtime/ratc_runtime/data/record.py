"""The record of a run's data, `data.json` in its output folder. A later start under the same lock reports changes.

It holds the names of the samples in order, size and mtime of their files, and checksums of a few of them. So a data set
that was only copied does not count as changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ratc_runtime.config.yaml_file import open_regular
from ratc_runtime.data.samples import name_of
from ratc_runtime.errors import RuntimeFinding, warn
from ratc_runtime.output import atomic

FILE = "data.json"
VERSION = 1
#: Limits: samples of a split whose files are read, seconds for all splits, files of a split with a checksum.
MOST_SAMPLES, SECONDS, MOST_READ = 20_000, 5.0, 8
#: A split with more samples has only the checksum of its names.
MOST_NAMES = 100_000
#: Bytes read from the beginning and from the end of a long file.
_ENDS = 1 << 20
#: Names that a message lists.
_SHOWN = 3
#: Lists of samples that the built-in data sets read, beside the files of `files(index)`.
_LISTS = ("splits.json",)


def describe(datasets: Mapping[str, Any], data_dir: Path, own_folders: Sequence[Path]) -> dict[str, Any]:
    """Return the content of `data.json` for the data sets, by split or by `split/task`.

    For a data set without `files(index)` the files below `data_dir` are recorded, unless `data_dir` contains one of
    `own_folders`, which hold the run's output or code.
    """
    end = time.monotonic() + SECONDS
    splits, files, blind = {}, {}, False
    for key, dataset in datasets.items():
        names = [name_of(dataset, index) for index in range(len(dataset))]
        splits[key] = {
            "samples": len(names),
            "digest": _digest_of("\n".join(names).encode("utf-8", "surrogatepass")),
            "names": names if len(names) <= MOST_NAMES else None,
        }
        paths = _paths(dataset, names)
        blind |= paths is None
        files[key] = _look(dict.fromkeys(paths or ()), data_dir, end)
    if any(files.values()):
        files["lists"] = _look([data_dir / name for name in _LISTS if (data_dir / name).is_file()], data_dir, end)
    if blind and not any(data_dir.resolve() in (folder.resolve(), *folder.resolve().parents) for folder in own_folders):
        files["data_dir"] = _look(_below(data_dir, end), data_dir, end)
    return {"version": VERSION, "splits": splits, "files": {key: found for key, found in files.items() if found}}


def _paths(dataset: Any, names: Sequence[str]) -> list[Path] | None:
    """Return the files of up to MOST_SAMPLES samples, chosen by their names' checksums; None if they are unknown."""
    files = getattr(dataset, "files", None)
    if not callable(files):
        return None
    order: Sequence[int] = range(len(names))
    if len(names) > MOST_SAMPLES:
        order = sorted(order, key=lambda index: _digest_of(names[index].encode("utf-8", "surrogatepass")))
    try:
        return [Path(path) for index in order[:MOST_SAMPLES] for path in files(index)]
    except Exception:  # a data set of the user's may raise anything
        return None


def _below(folder: Path, end: float) -> Iterator[Path]:
    """Yield up to MOST_SAMPLES files below a folder, in order of their names, without hidden ones."""
    number = 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__")))
        for name in sorted(names):
            if name.startswith("."):
                continue
            number += 1
            if number > MOST_SAMPLES or time.monotonic() > end:
                return
            yield Path(place, name)


def _look(paths: Any, data_dir: Path, end: float) -> dict[str, list[Any]]:
    """Return size and mtime (ns) of each file, and the checksum of up to MOST_READ files."""
    found: dict[str, list[Any]] = {}
    for path in paths:
        if time.monotonic() > end:
            break
        try:
            state = os.stat(path)
        except OSError:  # reported when the sample is read
            continue
        found[_relative(path, data_dir)] = [state.st_size, state.st_mtime_ns]
    for name in sorted(found, key=lambda name: _digest_of(name.encode("utf-8", "surrogatepass")))[:MOST_READ]:
        if time.monotonic() < end:
            found[name].append(_checksum(data_dir / name))
    return found


def _relative(path: Path, data_dir: Path) -> str:
    try:
        return str(path.relative_to(data_dir))
    except ValueError:
        return str(path)


def _checksum(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            content = file.read(2 * _ENDS)
            if len(content) == 2 * _ENDS:
                file.seek(-_ENDS, os.SEEK_END)
                content = content[:_ENDS] + file.read(_ENDS)
    except OSError:
        return None
    return _digest_of(content)


def _digest_of(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=12).hexdigest()


def read(output_dir: Path) -> dict[str, Any] | None:
    """Return the record of an earlier start; None if it is missing or unreadable."""
    try:
        with open_regular(output_dir / FILE) as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("version") != VERSION:
        return None
    return content if all(isinstance(content.get(key), dict) for key in ("splits", "files")) else None


def write(output_dir: Path, record: Mapping[str, Any]) -> None:
    """Write the record. A failure gives a warning: later starts then cannot compare."""
    try:
        atomic.write_text(output_dir / FILE, json.dumps(record) + "\n")
    except OSError as error:
        warn(f"cannot write {output_dir / FILE}, so later starts cannot notice changed data: {error.strerror or error}")


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the differences of two records, a line per split or kind of change; empty if there are none."""
    found = []
    for key in sorted({*old["splits"], *new["splits"]}):
        before, after = old["splits"].get(key), new["splits"].get(key)
        if before is None or after is None:
            found.append(f"{key}: the split {'is new' if before is None else 'is gone'}")
        elif before["digest"] != after["digest"]:
            found.append(f"{key}: {_other_names(before, after)}")
    for key in sorted(old["files"].keys() - {"lists"}):  # of lists the names tell
        found += [f"{key}: {line}" for line in _other_files(old["files"][key], new["files"].get(key, {}))]
    return found


def changed_files(old: Mapping[str, Any], data_dir: Path) -> list[str]:
    """Return the differences in the files of a record, as `changes`, without opening the data sets.

    Returns nothing if none of the files exists any more.
    """
    end = time.monotonic() + SECONDS
    new = {key: _look((data_dir / name for name in files), data_dir, end) for key, files in old["files"].items()}
    if not any(new.values()):
        return []
    found = []
    for key, files in old["files"].items():
        gone = [] if time.monotonic() > end else [name for name in files if name not in new[key]]
        if gone:
            found.append(f"{key}: {_listed(gone)} {'is' if len(gone) == 1 else 'are'} gone")
        found += [f"{key}: {line}" for line in _other_files(files, new[key])]
    return found


def _other_names(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    if before["names"] is None or after["names"] is None:
        return f"other samples: {after['samples']}, and they were {before['samples']}"
    old, new = set(before["names"]), set(after["names"])
    added = [name for name in after["names"] if name not in old]
    removed = [name for name in before["names"] if name not in new]
    said = [f"{_listed(some)} {what}" for some, what in ((added, "added"), (removed, "removed")) if some]
    return ", ".join(said) or "the samples are in another order"


def _other_files(old: Mapping[str, Sequence[Any]], new: Mapping[str, Sequence[Any]]) -> list[str]:
    """Return lines for the common files with another size, other content or another mtime (ignored if all have one)."""
    both = [name for name in old if name in new]
    sized = [name for name in both if old[name][0] != new[name][0]]
    summed = [
        name
        for name in both
        if name not in sized and len(old[name]) == len(new[name]) == 3 and old[name][2] != new[name][2]
    ]
    known = {*sized, *summed, *(name for name in both if len(old[name]) == len(new[name]) == 3)}
    later = [name for name in both if old[name][1] != new[name][1]]
    # If all have another mtime, the folder was copied: then only the checksums count.
    written = [name for name in later if name not in known] if len(later) < len(both) else []
    told = ((sized, "has another size"), (summed, "has other content"), (written, "was written again"))
    return [f"{_listed(some)} {_plural(what, len(some))}" for some, what in told if some]


def _plural(what: str, number: int) -> str:
    return what if number == 1 else what.replace("has ", "have ").replace("was ", "were ")


def _listed(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    return f"{len(names)} ({', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''})"


def changed_finding(found: Sequence[str], since: str) -> RuntimeFinding:
    """Return R590, a warning: the data have changed since the run began."""
    return RuntimeFinding("R590", f"the data have changed since {since}: {'; '.join(found)}")
