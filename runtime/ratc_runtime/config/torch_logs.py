"""The check of TORCH_LOGS: an unknown name in it makes the import of torch fail."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

from ratc_runtime.errors import RuntimeFinding


def check_torch_logs(environment: Mapping[str, str]) -> None:
    """Raise R587 if torch cannot be imported with this TORCH_LOGS. The check imports torch in a subprocess, which takes
    seconds, and only if the variable is set.
    """
    if not environment.get("TORCH_LOGS"):
        return
    command = [sys.executable, "-c", "import torch"]
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=False)
    if done.returncode and "TORCH_LOGS" in done.stderr:
        raise RuntimeFinding(
            "R587",
            "torch cannot be imported with this TORCH_LOGS",
            f"it is {environment['TORCH_LOGS']!r:.100}, with a name that torch does not know",
            "unset TORCH_LOGS; TORCH_LOGS=help shows the names",
        )


def refuse() -> None:
    """End the process with R587, which rank 0 prints, if torch cannot be imported."""
    try:
        check_torch_logs(os.environ)
    except RuntimeFinding as finding:
        if os.environ.get("RANK", "0") == "0":
            print(finding.render(), file=sys.stderr, flush=True)
        raise SystemExit(1) from None
