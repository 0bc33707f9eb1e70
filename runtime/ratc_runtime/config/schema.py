"""The JSON Schemas of both kinds of lock, as pydantic makes them of the models: `python -m ratc_runtime.config.schema`.

They are printed as one mapping, by the names of their files.
"""

from __future__ import annotations

import json
import sys

from ratc_runtime.config.lock import Lock
from ratc_runtime.config.program_lock import ProgramLock


def main() -> int:
    """Print them; `ratc.spec.generate` writes them out as the other schemas. Always 0."""
    print(json.dumps({"lock": Lock.model_json_schema(), "program-lock": ProgramLock.model_json_schema()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
