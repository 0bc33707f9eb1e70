"""A checkpoint folder with files from every rank (DeepSpeed, FSDP2). One file lists the digests of all others.

`progress.pt` is written last and holds the header, this list and its own digest. The ranks share the reading.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ratc_runtime.checkpoint.files import digest_of, fault_of
from ratc_runtime.config.yaml_file import open_regular
from ratc_runtime.output.atomic import sync_folder

HEADER_FILE = "progress.pt"


def names(folder: Path) -> list[str]:
    """Return the files below `folder`, without its header, in the same order on every rank."""
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if name != HEADER_FILE and not name.startswith("."))


def sync_and_list(folder: Path, rank: int, size: int) -> dict[str, str]:
    """Sync this rank's share of the files to the disk and return their digests."""
    digests = {}
    for name in names(folder)[rank::size]:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            digests[name] = digest_of(file)
    if rank == 0:
        for part in {folder, *((folder / name).parent for name in names(folder))}:
            sync_folder(part)
    return digests


def fault_of_share(folder: Path, rank: int, size: int) -> str | None:
    """Return a description of the damage to this rank's share of a folder; None if the share is whole."""
    if not (folder / HEADER_FILE).exists():
        return f"its {HEADER_FILE} is missing"
    fault = fault_of(folder / HEADER_FILE)
    if fault is not None:
        return f"{HEADER_FILE}: {fault}"
    digests: dict[str, str] = header_of(folder).get("files", {})
    for name in sorted(digests)[rank::size]:
        try:
            with open_regular(folder / name) as file:
                found = digest_of(file)
        except FileNotFoundError:
            return f"its {name} is missing"
        if found != digests[name]:
            return f"the content of {name} does not match its digest"
    return None


def header_of(folder: Path) -> dict[str, Any]:
    """Return the content of the folder's header."""
    content = torch.load(folder / HEADER_FILE, map_location="cpu", weights_only=True)
    return content if isinstance(content, dict) else {}
