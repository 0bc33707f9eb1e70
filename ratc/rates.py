"""Measured learning rates: the conditions of one, reading their file, and writing it.

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
    """Return the name of the file beside a spec that holds its measurement."""
    return f"measured_{spec_name}"


def conditions(settings: Values) -> str:
    """Return ``sha256:…`` of the conditions of a learning rate: model, data, loss and optimizer, not the batch size."""
    of = {path: settings[path].value for path in settings if keys.decides_rate(path)}
    return "sha256:" + sha256(json.dumps(of, sort_keys=True, default=str).encode()).hexdigest()


def text(measured: Mapping[str, Any]) -> str:
    """Return the file's content: one rate, with its conditions and how it was found."""
    head = (
        "# A learning rate that `ratc tune lr` has measured; `learning_rate: auto` uses it. Commit this file with "
        "the spec.\n"
    )
    return head + mapping(dict(measured), {})
