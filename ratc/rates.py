"""Learning rates that were measured: what one is of, reading the file that holds them, and writing it.

`ratc tune lr SPEC` writes `measured_SPEC` beside the spec; a spec with `learning_rate: auto` takes its rate from there,
if it is of the same model, data, loss and optimizer. The global batch size it was measured with is noted: a rule may
scale it to another one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from ratc.plan import Values
from ratc.spec import keys
from ratc.yaml.write import mapping


def file_name(spec_name: str) -> str:
    """The file beside a spec that holds what was measured of it."""
    return f"measured_{spec_name}"


def conditions(settings: Values) -> str:
    """``sha256:…`` of what a learning rate is of: model, data, loss and optimizer, and no size of a batch."""
    of = {path: settings[path].value for path in settings if keys.decides_rate(path)}
    return "sha256:" + sha256(json.dumps(of, sort_keys=True, default=str).encode()).hexdigest()


def text(measured: Mapping[str, Any]) -> str:
    """The file's content: one rate, with what it is of and how it was found."""
    head = (
        "# A learning rate that `ratc tune lr` has measured; `learning_rate: auto` takes it. Commit it with the spec.\n"
    )
    return head + mapping(dict(measured), {})
