"""`python -m ratc_runtime.trace OUTPUT`: a request on standard input, a trace in OUTPUT (docs/reference/trace.md).

Exit status 0 and a file, or 1 and one line of JSON on standard error; 2 for wrong usage or a bad request.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ratc_runtime.output import atomic

if TYPE_CHECKING:
    from ratc_runtime.trace.request import Request


#: The micro-batch at which a trace is confirmed, in samples. Chosen, not measured.
_MORE = 32


def main(argv: list[str]) -> int:
    """Trace the request from standard input; return the exit status."""
    if len(argv) != 1:
        print("usage: python -m ratc_runtime.trace OUTPUT < request.json", file=sys.stderr)
        return 2
    warnings.simplefilter("ignore")
    # The traced step is one process without a GPU, even if a launcher's variables are set.
    for variable in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        os.environ.pop(variable, None)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

    from ratc_runtime.trace.request import BadRequest, read

    try:
        request = read(json.load(sys.stdin))
    except (ValueError, RecursionError) as error:  # JSON's errors and BadRequest are ValueErrors
        print(f"the request cannot be read: {error}", file=sys.stderr)
        return 2

    gc.disable()  # imported modules stay; a recording collects between its steps
    import torch

    from ratc_runtime.trace.failure import TraceError

    if request.lock.model.name == "rat":
        _import_once()
    version = str(torch.__version__)
    trace = _compiled(request, version) if request.compiled else None
    try:
        if trace is None:
            trace = _traced(request.uncompiled(), version)
    except TraceError as error:
        print(error.failure.line(), file=sys.stderr)
        return 1
    except BadRequest as error:
        print(f"the request cannot be read: {error}", file=sys.stderr)
        return 2
    _write(Path(argv[0]), trace)
    return 0


def _traced(request: Request, version: str) -> dict[str, object]:
    """Return the trace of a request's two recordings, confirmed by a third one if they leave doubt, or if the model may
    do something else with more samples. Raises TraceError, and BadRequest.
    """
    from ratc_runtime.trace.failure import TraceError
    from ratc_runtime.trace.isolated import record_both
    from ratc_runtime.trace.match import is_uneven, match

    small, large = record_both(request)
    third, is_needed = None, is_uneven(small, large)
    # RAT does the same for every batch. Compiling once more would take as long as all of the rest.
    if is_needed or (request.lock.model.name != "rat" and not request.compiled and small.batch < large.batch):
        try:
            third, _ = record_both(replace(request, batch_sizes=(max(_MORE, 2 * large.batch),)))
        except TraceError:  # such as a constant that is too large there for its values to be kept
            if is_needed:
                raise
    return match(small, large, request.content, version, third)


def _compiled(request: Request, version: str) -> dict[str, object] | None:
    """Return the trace of a compiled model. It is None if torch cannot compile it without the card, or makes another
    program of it for each batch: the uncompiled model is followed then, which needs no less.
    """
    from ratc_runtime.trace import compiled
    from ratc_runtime.trace.failure import TraceError

    try:
        compiled.import_once()
        return _traced(request, version)
    except (TraceError, ImportError):
        return None


def _import_once() -> None:
    """Import RAT before the processes fork. They report its errors themselves."""
    from ratc_runtime.models import rat_patches

    try:
        rat_patches.import_rat()
    except Exception:
        return


def _write(path: Path, trace: dict[str, object]) -> None:
    """Write a trace atomically. Several processes may write the same one at once."""
    atomic.write_text(path, json.dumps(trace, separators=(",", ":")) + "\n", shared=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
