"""One kind of test of a node, as the check starts it: `python -m ratc_runtime.health alone|together|store …`."""

import sys

from ratc_runtime.health import measure

sys.exit(measure.main())
