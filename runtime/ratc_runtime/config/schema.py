"""The JSON Schema of the lock, as pydantic makes it of the model: `python -m ratc_runtime.config.schema`."""

from __future__ import annotations

import json
import sys

from ratc_runtime.config.lock import Lock


def main() -> int:
    """Print it; `ratc.spec.generate` writes it out as the other schemas. Always 0."""
    print(json.dumps(Lock.model_json_schema()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
