"""A comparison as it is shown: in the form asked for, and in colour if a terminal shows it."""

from __future__ import annotations

import os
import sys

from ratc.comparison.model import Comparison


def rendered(comparison: Comparison, form: str) -> str:
    """The comparison in a form; text in colour if a terminal shows it."""
    # Imported here: one form is asked for.
    if form == "json":
        from ratc.render.changes.json import document

        return document(comparison)
    if form == "markdown":
        from ratc.render.changes.markdown import markdown

        return markdown(comparison)
    from ratc.render.changes.text import text

    colour = os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")
    return text(comparison, colour and (sys.stdout.isatty() or "GIT_PAGER_IN_USE" in os.environ))
