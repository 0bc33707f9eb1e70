"""The command line of the sample data."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ratc_runtime.data.sample import NAMES, SampleDataError, find


def main(argv: list[str] | None = None) -> int:
    """Write the named sample data; return 0, or 1 if it cannot be written."""
    parser = argparse.ArgumentParser(
        prog="python -m ratc_runtime.data.sample",
        description="Write sample data; nothing is downloaded.",
        epilog=" ".join(f"{name}: {find(name).summary}." for name in NAMES),
    )
    parser.add_argument("name", choices=NAMES, help="which sample data")
    parser.add_argument("folder", type=Path, help="the folder to write; it must be new, empty or already complete")
    arguments = parser.parse_args(argv)
    sample = find(arguments.name)
    try:
        written = sample.write(arguments.folder)
    except SampleDataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    counts = ", ".join(f"{count} {split}" for split, count in sample.counts.items())
    print(f"{arguments.folder}: {'written' if written else 'already complete'} ({counts})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
