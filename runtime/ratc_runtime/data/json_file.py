"""JSON files of a data set. They are untrusted: only regular files of a limited size are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ratc_runtime.config.yaml_file import open_regular, reason_of
from ratc_runtime.errors import RuntimeFinding

#: Size limit in bytes. The annotations of COCO have 0.5 GB, of LVIS 1.1 GB.
MOST_BYTES = 4 * 2**30


def read_json(path: Path, help: str = "", pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Return the content of a JSON file; `pairs` is the hook for its objects. Raises R506 if it cannot be read."""
    try:
        with open_regular(path) as file:
            raw = file.read(MOST_BYTES + 1) if path.stat().st_size <= MOST_BYTES else None
        if raw is None or len(raw) > MOST_BYTES:
            raise RuntimeFinding("R506", f"{path} is too large to be read", f"more than {MOST_BYTES:,} bytes", help)
        return json.loads(raw, object_pairs_hook=pairs)
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or "it does not fit into memory"
        raise RuntimeFinding("R506", f"{path} cannot be read", reason, help) from None
    except (ValueError, RecursionError) as error:
        raise RuntimeFinding("R506", f"{path} is not valid JSON", reason_of(error)[:600], help) from None
