"""The entry point of training: the launcher starts `python -m ratc_runtime.train --lock lock.yaml` in every process.

All refusals that need no torch come before torch is imported. The loop itself is `training/loop.py`.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

from ratc_runtime import meeting
from ratc_runtime.distributed import watchdog
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.output.time_accounting import process_age
from ratc_runtime.trainer import UnifiedTrainer
from ratc_runtime.training import failures

#: Seconds that the other ranks wait before they end with a finding that rank 0 prints. Its end ends them earlier.
RANK_0_FIRST_S = 10


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line. Data and output folders default to RAT_DATA_DIR and RAT_OUTPUT_DIR."""
    parser = argparse.ArgumentParser(prog="python -m ratc_runtime.train", description="Train according to a lock.")
    parser.add_argument("--lock", type=Path, required=True, help="the compiled lock.yaml")
    parser.add_argument(
        "--data-dir", type=Path, help="folder of the data (default: RAT_DATA_DIR, or the folder in the lock)"
    )
    parser.add_argument(
        "--output-dir", type=Path, help="folder of the results (default: RAT_OUTPUT_DIR, or the folder in the lock)"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="start from the beginning instead of continuing the last checkpoint"
    )
    return parser.parse_args(argv)


def _open_streams() -> None:
    """Open /dev/null as a standard stream that this process was started without (`2>&-`).

    Python has None for it, and the next file that is opened would get its number, and the messages of C code.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def main(argv: list[str] | None = None) -> int:
    """Train; return 0 if finished or stopped on request, 1 after a finding."""
    _open_streams()
    arguments = parse(argv)
    status = 0
    try:
        UnifiedTrainer(
            arguments.lock, output_dir=arguments.output_dir, data_dir=arguments.data_dir, fresh=arguments.fresh
        ).train_since(time.perf_counter() - process_age())
    except Exception as error:
        finding, several = failures.as_finding(error), os.environ.get("WORLD_SIZE", "1") != "1"
        if finding is None and not several:
            raise
        status, dog = 1, watchdog.current()
        # Errors in the main thread after the watchdog has ended the run are not printed.
        if dog is None or not dog.spoken:
            report_error(error, finding, dog)
    if os.environ.get("WORLD_SIZE", "1") != "1" and "torch" in sys.modules:
        from ratc_runtime.distributed.world import leave

        leave(status)
    return status


def report_error(error: Exception, finding: RuntimeFinding | None, dog: watchdog.Watchdog | None) -> None:
    """Print the reason why this process ends."""
    if finding is None:
        # Raising would run the interpreter's shutdown, in which a process group may wait for the other ranks.
        traceback.print_exception(error)
        finding = failures.unexpected(error)
    if finding.code == "R514" and dog is not None:
        finding.note = f"{dog.lost()}\n{finding.note}".lstrip()
    if finding.code == "R514":
        host = socket.gethostname()
        address = None if any(os.environ.get(name) for name in meeting.INTERFACES) else meeting.loopback(host)
        if address is not None and os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE"):
            finding.note += f"\n{meeting.loopback_sentence(host, address)}"
    if os.environ.get("RANK", "0") == "0" or not finding.everywhere:
        print(finding.render(), file=sys.stderr, flush=True)
    else:
        # A launcher ends all ranks when the first one ends: rank 0, which prints the finding, must be that one.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(RANK_0_FIRST_S)


if __name__ == "__main__":
    sys.exit(main())
