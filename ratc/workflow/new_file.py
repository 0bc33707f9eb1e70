"""Writes a file that will belong to the user, over an existing one only with ``force``."""

from __future__ import annotations

import os

from ratc import files
from ratc.diagnostics import Diagnostic


def there(path: str, force: bool, otherwise: str = "") -> Diagnostic | None:
    """Return a finding if the path exists; ``otherwise`` begins its help with another remedy. Code: R403."""
    if force or not os.path.lexists(path):
        return None
    return Diagnostic("R403", f"`{path}` exists already", helps=(f"{otherwise}use `--force` to overwrite it",))


def write(path: str, text: str, force: bool, otherwise: str = "") -> Diagnostic | None:
    """Write the file atomically, with the folders above it; returns a finding if that fails. Code: R403."""
    try:
        files.make_folders(os.path.dirname(path) or ".")
        files.replace(path, text.encode(), force=force)
    except OSError as error:
        plain = Diagnostic("R403", f"cannot write `{path}`: {error.strerror}")
        return (there(path, force, otherwise) or plain) if isinstance(error, FileExistsError) else plain
    return None
