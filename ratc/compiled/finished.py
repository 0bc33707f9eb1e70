"""Counts finished runs of compiled files: job scripts leave `DONE` in the output folder (docs/develop/design.md)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from hashlib import sha256

from ratc import files
from ratc.scheduler import summary
from ratc.targets import job, lock
from ratc.targets.artifact import Artifact


def count(artifacts: Sequence[Artifact], spec_folder: str) -> int:
    """Return the number of runs with a `DONE` of these very locks: 0 or 1 for one run, up to all points of an array."""
    texts = {artifact.path: artifact.text for artifact in artifacts}
    shared = texts[lock.NAME]
    if job.TABLE not in texts:
        output = str(summary.values(lock.NAME, shared)["output_dir"])
        return int(_is_done(spec_folder, output, shared))
    names = [line.split("\t", 1)[0] for line in texts[job.TABLE].splitlines()[1:]]
    own = [texts[f"{job.POINTS}/{name}/{lock.NAME}"] for name in names]
    return sum(_is_done(spec_folder, str(summary.values(lock.NAME, text)["output_dir"]), shared + text) for text in own)


def _is_done(spec_folder: str, output: str, text: str) -> bool:
    path = os.path.join(spec_folder, os.path.expanduser(output), "DONE")
    try:
        with files.open_regular(path) as file:
            return file.read(200).split()[:1] == [sha256(text.encode()).hexdigest().encode()]
    except OSError:
        return False
