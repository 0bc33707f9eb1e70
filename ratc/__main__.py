"""``python -m ratc``."""

import os
import sys

if not getattr(sys.flags, "safe_path", False) and sys.path[:1] in ([""], [os.getcwd()]):
    sys.path.pop(0)  # a spec's folder is not a place to import from: a `random.py` there is not Python's

from ratc.cli import main

sys.exit(main())
