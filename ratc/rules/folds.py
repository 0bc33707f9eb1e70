"""R365: the fold exists, and the data can be divided into folds."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ratc.diagnostics import Diagnostic
from ratc.plan import Values


def check(settings: Values) -> Iterator[Diagnostic]:
    """Check `data.folds`, if the spec has it."""
    if "data.folds.number" not in settings:
        return
    number, index, group = (settings[f"data.folds.{key}"] for key in ("number", "index", "group"))
    span = number.span
    if index.value >= number.value:
        message = f"there is no fold {index.value}: {number.value} folds are counted from 0"
        yield Diagnostic("R365", message, index.span or span, helps=(f"use 0 to {number.value - 1}",))
    if settings["task_type"].value == "multi":
        helps = ("write one spec for each task",)
        yield Diagnostic("R365", "folds do not work with several tasks", span, helps=helps)
    if settings["data.dataset"].value == "volumes" and settings["data.args"].value.get("overlap"):
        note = "patches for validation never overlap, and in folds every patch is used for both"
        message = "`overlap` does not work with `folds`: patches of volumes may not overlap there"
        yield Diagnostic("R365", message, settings["data.args"].span or span, (note,), ("remove `overlap`",))
    try:
        re.compile(group.value or "")
    except re.error as error:
        yield Diagnostic("R365", f"`group` is not a valid regular expression: {error}", group.span)
