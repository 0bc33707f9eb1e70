"""Strict reading of small YAML files: a duplicate key, a file that is not regular, or one that is too large is R505."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from ratc_runtime.config.refusal import unreadable

# A lock has some hundred lines; anything beyond this is another file under its name.
MAX_LOCK_BYTES = 4 * 2**20


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which refuses a duplicate key instead of taking the last one."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in seen:
                raise yaml.YAMLError(f"key {key.value!r} is given twice (line {key.start_mark.line + 1})")
            seen.add(key.value)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_yaml(path: Path) -> Any:
    """Return the content of a small YAML file. Raises R505 with the reason if it cannot be read."""
    try:
        with open_regular(path) as file:
            raw = file.read(MAX_LOCK_BYTES + 1)
    except (OSError, ValueError) as error:
        raise unreadable(f"cannot read {path}", getattr(error, "strerror", None) or str(error)) from None
    if len(raw) > MAX_LOCK_BYTES:
        raise unreadable(f"{path} is too large to be read", f"more than {MAX_LOCK_BYTES} bytes")
    try:
        return yaml.load(raw.decode("utf-8"), Loader=_StrictLoader)
    except UnicodeDecodeError:
        raise unreadable(f"{path} is not UTF-8 text") from None
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, OverflowError) as error:
        raise unreadable(f"{path} is not valid YAML", reason_of(error)) from None


def reason_of(error: Exception) -> str:
    """Return why a text cannot be read, in words for people: Python advises programmers."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return "a number has too many digits" if "set_int_max_str_digits" in str(error) else str(error)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises OSError for a device or a pipe, which may never end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(handle, "rb")


def sha256_of(path: Path) -> str:
    """Return `sha256:<hex>` of a file's bytes. Raises OSError for anything but a regular file."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"
