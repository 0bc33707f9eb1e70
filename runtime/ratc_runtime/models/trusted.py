"""The user's trust in a checkpoint and the code that it names, as in `ratc trust` and `ratc --trust`.

With `--trust` or `RATC_TRUST=1` everything is trusted. Otherwise the trust file must list both the checkpoint's folder
and the working folder, which holds own modules, or parents of them. `ratc` writes that file (`ratc/own_code/trust.py`);
the two share no code.
"""

from __future__ import annotations

import os
from pathlib import Path

HELP = "if you trust both the checkpoint and the code, give --trust, set RATC_TRUST=1, or list both folders: ratc trust"


def allows(checkpoint: Path, trust: bool) -> bool:
    """Return whether code that a checkpoint names or holds may run."""
    if trust or os.environ.get("RATC_TRUST") == "1":
        return True
    listed = _listed()
    return all(any(place.is_relative_to(one) for one in listed) for place in (checkpoint.resolve(), Path.cwd()))


def _listed() -> list[Path]:
    """Return the folders of the trust file; none if it cannot be read."""
    base = os.environ.get("XDG_CONFIG_HOME") or ""
    base = base if os.path.isabs(base) else os.path.join(os.path.expanduser("~"), ".config")
    path = os.path.join(os.environ.get("RATC_CONFIG") or os.path.join(base, "ratc"), "trusted")
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return [Path(line) for line in file.read().split("\n") if os.path.isabs(line)]
    except OSError:
        return []
