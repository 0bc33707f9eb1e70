"""Diagnostics in forms for machines and pages, one file each; how a terminal shows them is :mod:`ratc.render.text`."""
