"""`results.json`: the results of a run, for people and for programs."""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from ratc_runtime.config.yaml_file import open_regular
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.output import atomic

RESULTS_FILE = "results.json"
#: The results of an earlier run of the same folder, kept while another one trains from the start.
PREVIOUS_FILE = "results.previous.json"
#: What another program's start wrote that did not end well.
UNFINISHED_FILE = "results.unfinished.json"
#: The scores of each epoch of a run that has not ended.
EPOCHS_FILE = "epochs.json"


def finite(value: Any) -> Any:
    """Return `value` with every non-finite number replaced by None, because JSON has none."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_results(output_dir: Path, results: dict[str, Any]) -> None:
    """Write results.json atomically. Raises R510 if it cannot be written."""
    text = json.dumps(finite(results), indent=2, sort_keys=True, allow_nan=False) + "\n"
    path = output_dir / RESULTS_FILE
    try:
        atomic.write_text(path, text, sync=True)
    except OSError as error:
        raise unwritable(path, error) from None


def write_epochs(output_dir: Path, lock_sha256: str, epochs: list[dict[str, Any]]) -> None:
    """Write epochs.json, the scores of every epoch so far, for programs that follow the run.

    A failure does not end the run: the file is then missing or old, and results.json is still written.
    """
    text = json.dumps(finite({"lock_sha256": lock_sha256, "epochs": epochs}), allow_nan=False) + "\n"
    with contextlib.suppress(OSError):
        atomic.write_text(output_dir / EPOCHS_FILE, text)


def read_results(output_dir: Path) -> dict[str, Any]:
    """Return the content of results.json; empty if there is none or it is unreadable."""
    return _mapping(output_dir / RESULTS_FILE) or {}


def written(output_dir: Path) -> tuple[int, int, int] | None:
    """Return which file results.json is, and when it was written; None if there is none."""
    try:
        found = (output_dir / RESULTS_FILE).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def keep_other(output_dir: Path) -> Path | None:
    """Rename a results.json that holds no mapping; return its new path, or None if there is no such file."""
    path = output_dir / RESULTS_FILE
    if not path.is_file() or _mapping(path) is not None:
        return None
    return path.replace(path.with_name("results.program"))


def _mapping(path: Path) -> dict[str, Any] | None:
    """Return the mapping in a JSON file; None if the file cannot be read or holds something else."""
    try:
        with open_regular(path) as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def confirm(output_dir: Path, lock_digest: str) -> None:
    """Record in a finished results.json that it is another lock's result, too. Raises R510 if it cannot be written.

    Locks may differ in values that do not decide the weights. A job is finished only if `finished_locks` has its lock.
    """
    results = read_results(output_dir)
    known = [str(one) for one in results.get("finished_locks") or []]
    if lock_digest not in known and results.get("lock_sha256") != f"sha256:{lock_digest}":
        write_results(output_dir, {**results, "finished_locks": [*known, lock_digest]})


def set_aside(output_dir: Path, name: str = PREVIOUS_FILE) -> None:
    """Rename the results of an earlier run, because this one starts from the beginning. Raises R510 if it cannot
    be renamed.
    """
    path = output_dir / RESULTS_FILE
    try:
        path.replace(output_dir / name)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise RuntimeFinding("R510", f"cannot move {path}", error.strerror or str(error)) from None


def unwritable(path: Path, error: OSError) -> RuntimeFinding:
    """Return R510: a file or a folder cannot be written."""
    return RuntimeFinding("R510", f"cannot write {path}", error.strerror or str(error))


def refuse_links(output_dir: Path) -> None:
    """Raise R510 if the output folder holds a link that leads out of it, a pipe or a device.

    A run would write through a link, and block on a pipe. The folder itself may be a link, because the user named it.
    The folder of Weights & Biases is not checked: it has links to its logs.
    """
    root = os.path.realpath(output_dir)
    for place, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = os.path.join(place, name)
            fault = _reason_against(path, root)
            if fault:
                raise RuntimeFinding(
                    "R510",
                    f"the output folder {output_dir} holds {os.path.relpath(path, root)}, {fault}",
                    "nothing was written there",
                    "remove it, or name another folder with --output-dir or RAT_OUTPUT_DIR",
                )
        if place == root and "wandb" in folders:
            folders.remove("wandb")


def _reason_against(path: str, root: str) -> str | None:
    """Return the reason why a file must not be there, as text; None if it may."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:  # removed by another process meanwhile
        return None
    if stat.S_ISLNK(mode):
        target = os.path.realpath(path)
        return None if target.startswith(f"{root}{os.sep}") else f"a link to {target}"
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISSOCK(mode):
        return None
    return "a pipe or a device"


def prepare_output(output_dir: Path) -> None:
    """Make the output folder. Raises R510 if it is not writable."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir) as probe:
            probe.write(b"\0")
    except OSError as error:
        raise RuntimeFinding(
            "R510",
            f"the output folder {output_dir} cannot be written",
            error.strerror or str(error),
            "name another one: `output_dir` or RAT_OUTPUT_DIR for a run, `-o` for a command on its checkpoint",
        ) from None
