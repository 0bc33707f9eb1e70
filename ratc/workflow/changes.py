"""Renders a comparison in the requested form, in colour on a terminal."""

from __future__ import annotations

import os
import sys

from ratc.comparison.model import Comparison


def rendered(comparison: Comparison, form: str) -> str:
    """Return the comparison in the given form; text has colours on a terminal."""
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
