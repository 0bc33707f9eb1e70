"""The runtime of ratc: trains exactly as `lock.yaml` specifies, and refuses if the machine does not match the lock."""

import os
import sys

if sys.argv[:1] == ["-m"] and not getattr(sys.flags, "safe_path", False) and sys.path[:1] in ([""], [os.getcwd()]):
    # `python -m` puts the working folder first, where a spec's `random.py` would hide Python's.
    sys.path.append(sys.path.pop(0))

from ratc_runtime.config.skipped_imports import skip_imports

__version__ = "0.1.0"

skip_imports()

if sys.argv[:1] == ["-m"]:
    # Most modules started this way import torch before they can print anything.
    from ratc_runtime.config.torch_variables import refuse

    refuse()


def __getattr__(name: str) -> object:
    """Import `UnifiedTrainer` and `plan` at first use, because preflight has to stay fast."""
    if name == "UnifiedTrainer":
        from ratc_runtime.trainer import UnifiedTrainer

        return UnifiedTrainer
    if name == "plan":
        from ratc_runtime.program.plan import plan

        return plan
    raise AttributeError(f"module 'ratc_runtime' has no attribute {name!r}")
