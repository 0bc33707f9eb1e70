"""``python -m ratc``."""

import sys

from ratc.cli import main

sys.exit(main())
