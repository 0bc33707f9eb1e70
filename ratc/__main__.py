"""``python -m ratc``."""

import os
import sys

try:
    here = os.getcwd()
except FileNotFoundError:  # it was removed
    here = ""
if not getattr(sys.flags, "safe_path", False) and sys.path[:1] in ([""], [here]):
    sys.path.pop(0)  # a spec's folder is not a place to import from: a `random.py` there is not Python's

from ratc.cli import main

sys.exit(main())
