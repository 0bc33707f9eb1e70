"""Traces many requests in one process: a list of [request, output] on standard input. Each step is recorded in forked
children, as always.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ratc_runtime.trace.isolated import record_both
from ratc_runtime.trace.match import match
from ratc_runtime.trace.request import read

for content, output in json.load(sys.stdin):
    request = read(content)
    Path(output).write_text(json.dumps(match(*record_both(request), request.content, "test")))
