"""A TORCH_LOGS that torch does not know ends the import of torch: looked at before that."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

from ratc_runtime.errors import RuntimeFinding


def check_torch_logs(environment: Mapping[str, str]) -> None:
    """Raise R587 if torch cannot be imported for what TORCH_LOGS asks for. Asking torch itself takes seconds, which are
    spent only if the variable is set.
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
