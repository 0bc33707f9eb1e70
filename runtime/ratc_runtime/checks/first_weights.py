"""The file of the weights that a run starts from (`training.init_from`): whether it is needed, and is that of the lock.

Torch is not imported: preflight asks before a GPU is taken.
"""

from __future__ import annotations

from pathlib import Path

from ratc_runtime.config.lock import Lock
from ratc_runtime.config.yaml_file import sha256_of
from ratc_runtime.errors import RuntimeFinding

#: In the folder of a DeepSpeed checkpoint, the file with the digests of all others.
_HEADER = "progress.pt"


def are_needed(lock: Lock, output_dir: Path, fresh: bool) -> bool:
    """Return whether the run starts from other weights now: it has such a section, and continues no checkpoint."""
    if lock.training.init_from is None:
        return False
    folder = output_dir / "checkpoints"
    there = [*folder.glob("epoch-*"), *folder.glob("last*")]
    return fresh or lock.checkpoint.resume == "never" or not there


def check(lock: Lock, base: Path) -> Path:
    """Return the file or folder of the weights; its path in the lock is relative to `base`, the spec's folder.

    Raises R596 if it is not there, or has another digest than in the lock.
    """
    wanted = lock.training.init_from
    assert wanted is not None
    path = base / Path(wanted.path).expanduser()
    try:
        found = sha256_of(path / _HEADER if path.is_dir() else path)
    except OSError as error:
        raise RuntimeFinding(
            "R596",
            "the weights that the run starts from cannot be read",
            f"{path}: {error.strerror or error}",
            "copy them to that place, or correct `training.init_from` in the spec and compile again",
        ) from None
    if found != wanted.digest:
        raise RuntimeFinding(
            "R596",
            "the weights that the run starts from have changed since the spec was compiled",
            f"{path}\nlock:  {wanted.digest}\nfound: {found}",
            "restore the old file, or compile again to start from the new one",
        )
    return path
