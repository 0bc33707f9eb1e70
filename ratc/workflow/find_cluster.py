"""Finds and reads the file of cluster facts that a spec names."""

from __future__ import annotations

import os

from ratc import compiler, facts
from ratc.compiler import File
from ratc.diagnostics import Diagnostic, did_you_mean
from ratc.layers import names_cluster_file
from ratc.plan import Values
from ratc.workflow.read import read

#: Folder of cluster facts, beside a spec or above it.
FOLDER = "clusters"


def load(settings: Values, folder: str) -> tuple[File | None, facts.Cluster | None, tuple[Diagnostic, ...]]:
    """The facts of the cluster that the spec names, and their file; nothing if it names none.

    ``folder`` is the spec's. Codes: R0xx, R1xx, R301, R325, R327.
    """
    named = settings["resources.cluster"]
    if named.value is None:
        return None, None, ()
    path, seen = _path(str(named.value), folder)
    if path is None:
        message = f"there are no facts of the cluster `{named.value}`"
        near = did_you_mean(str(named.value), seen) or _listed(seen)
        note = f"no `{FOLDER}/{named.value}.yaml` in the spec's folder or above it"
        return None, None, (Diagnostic("R327", message, named.span, (note,), near),)
    file, problem = read(path)
    if file is None:
        if problem is None or problem.code != "R001":
            return None, None, (problem,) if problem else ()
        return None, None, (Diagnostic("R327", problem.message, named.span, problem.notes, problem.helps),)
    cluster, found = compiler.read_cluster(file)
    return file, cluster, found


def _path(name: str, folder: str) -> tuple[str | None, list[str]]:
    """Return the file of a name or a path, or None and the known names."""
    if names_cluster_file(name):
        return os.path.normpath(os.path.join(folder, os.path.expanduser(name))), []
    seen: list[str] = []
    above, up = os.path.abspath(folder), folder
    while True:
        clusters = os.path.join(up, FOLDER)
        path = os.path.normpath(os.path.join(clusters, f"{name}.yaml"))
        if os.path.exists(path):
            return path, seen
        if os.path.isdir(clusters):
            seen += sorted(entry.removesuffix(".yaml") for entry in os.listdir(clusters) if entry.endswith(".yaml"))
        if os.path.dirname(above) == above:
            return None, seen
        above, up = os.path.dirname(above), os.path.normpath(os.path.join(up, os.pardir))


def _listed(names: list[str]) -> tuple[str, ...]:
    return (f"there are {', '.join(f'`{name}`' for name in names)}",) if names else ()
