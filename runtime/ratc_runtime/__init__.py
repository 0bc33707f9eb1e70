"""The runtime of ratc: trains exactly what `lock.yaml` says, and refuses if the machine is not the lock's."""

import os
import sys

if sys.argv[:1] == ["-m"] and not getattr(sys.flags, "safe_path", False) and sys.path[:1] in ([""], [os.getcwd()]):
    # `python -m` puts the working folder first, where a spec's `random.py` would hide Python's.
    sys.path.append(sys.path.pop(0))

from ratc_runtime.unneeded import leave_out

__version__ = "0.1.0"

leave_out()

if sys.argv[:1] == ["-m"]:
    # Most modules that are started so import torch before they can say anything.
    from ratc_runtime.config.torch_variables import refuse

    refuse()


def __getattr__(name: str) -> object:
    """`UnifiedTrainer` and `plan`, imported when they are used: preflight has to stay fast."""
    if name == "UnifiedTrainer":
        from ratc_runtime.trainer import UnifiedTrainer

        return UnifiedTrainer
    if name == "plan":
        from ratc_runtime.program.plan import plan

        return plan
    raise AttributeError(f"module 'ratc_runtime' has no attribute {name!r}")
