"""Reads files that people write."""

from __future__ import annotations

import os

from ratc import files
from ratc.compiler import File
from ratc.diagnostics import Diagnostic, did_you_mean
from ratc.yaml.parse import MAX_BYTES

FOLDER_GONE = Diagnostic(
    "R001", "the current folder of the shell does not exist any more", helps=("change into another one",)
)


def read(path: str, layer: str = "spec", named: bool = False) -> tuple[File | None, Diagnostic | None]:
    """Read a file of at most ``MAX_BYTES``. Codes: R001, R006.

    If it is ``named`` on the command line, it may be a pipe.
    """
    if not path.isascii() and path != path.encode("utf-8", "replace").decode():
        return None, Diagnostic("R001", f"the name `{path}` is not UTF-8", helps=("rename it",))
    try:
        with files.open_regular(path, named) as handle:
            data = handle.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                size = os.fstat(handle.fileno()).st_size / 2**20
                has = f"{size:.1f} MiB" if size >= 1.05 else "more than 1 MiB"
                return None, Diagnostic("R006", f"`{path}` is too large for a spec: {has}, the limit is 1 MiB")
            return File(path, data, layer), None
    except IsADirectoryError:
        names = (
            sorted(name for name in os.listdir(path) if name.endswith((".yaml", ".yml")))[:3]
            if os.access(path, os.R_OK)
            else []
        )
        helps = (
            (f"name the file: {', '.join(os.path.join(path, name) for name in names)}",)
            if names
            else ("name a YAML file in it",)
        )
        return None, Diagnostic("R001", f"`{path}` is a folder", helps=helps)
    except FileNotFoundError:
        if os.path.islink(path):
            notes = (f"it points to `{os.readlink(path)}`",)
            return None, Diagnostic("R001", f"`{path}` is a link to a file that does not exist", notes=notes)
        folder, name = os.path.split(path)
        near = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
        return None, Diagnostic("R001", f"there is no file `{path}`", helps=did_you_mean(name, near))
    except (OSError, ValueError) as error:
        return None, Diagnostic("R001", f"cannot read `{path}`: {getattr(error, 'strerror', None) or error}")
