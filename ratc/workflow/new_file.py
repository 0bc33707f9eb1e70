"""Writes a file that will belong to the user: never over one that is there, unless that is asked for."""

from __future__ import annotations

import os

from ratc import files
from ratc.diagnostics import Diagnostic


def there(path: str, force: bool, otherwise: str = "") -> Diagnostic | None:
    """What is wrong if something lies there already; ``otherwise`` is what else can be done. Code: R403."""
    if force or not os.path.lexists(path):
        return None
    return Diagnostic("R403", f"`{path}` is there already", helps=(f"{otherwise}`--force` writes over it",))


def write(path: str, text: str, force: bool, otherwise: str = "") -> Diagnostic | None:
    """Write the file whole, with the folders above it; returns what kept it from being written. Code: R403."""
    try:
        files.make_folders(os.path.dirname(path) or ".")
        files.replace(path, text.encode(), force=force)
    except OSError as error:
        plain = Diagnostic("R403", f"cannot write `{path}`: {error.strerror}")
        return (there(path, force, otherwise) or plain) if isinstance(error, FileExistsError) else plain
    return None
