"""Run by itself: a fork server (`ratc/tracing/fork_server.py`) for trainings, which has imported what they import.

Of the CPU seconds that a tiny training takes in an interpreter of its own, most are those imports.
"""

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Nothing here reads the environment when it is imported, and none is a tracker.
MODULES = ("torch.utils.data", "torch._dynamo", "matplotlib.pyplot", "ratc_runtime.training.loop")

if __name__ == "__main__":
    own = list(sys.path)
    sys.path[:0] = [str(ROOT / "runtime"), str(ROOT / "ratc/tracing")]
    import fork_server
    from ratc_runtime.models import rat_patches

    rat_patches.import_rat()
    for module in MODULES:
        importlib.import_module(module)
    # Jobs import from their PYTHONPATH; the folder of this file is no place to import from.
    sys.path[:] = own if getattr(sys.flags, "safe_path", False) else own[1:]
    fork_server.main(())
