"""A cluster's facts from a login node itself: the module system, the network, the ports. Questions for the rest."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

_PORTS = "/proc/sys/net/ipv4/ip_local_port_range"
_NETWORKS = "/sys/class/net"


def site(environment: Mapping[str, str], known: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return top-level keys of cluster facts that hold here, and questions that only the site's people can answer."""
    keys: dict[str, Any] = {"modules_init": _modules(environment)}
    questions = []
    if keys["modules_init"] is None:
        questions.append("modules_init: which shell file must a job source to have the command `module`, if any?")
    if "container" not in known:
        questions.append("container: which container runtime do jobs use: apptainer, pyxis or none?")
    fast = [name for name in _listed(_NETWORKS) if re.match(r"(ib|hsn|roce)", name)]
    seen = f" (this machine has {', '.join(fast)})" if fast else ""
    questions.append(f"interface: which network interface connects the nodes{seen}?")
    questions.append("scratch: which folder is on fast storage that all nodes see?")
    keys["ephemeral_ports"] = _ports()
    return {key: value for key, value in keys.items() if value is not None}, tuple(questions)


def _modules(environment: Mapping[str, str]) -> str | None:
    """The bash initialisation of Lmod or of Environment Modules, if this shell knows one."""
    folders = [environment.get(name) for name in ("LMOD_PKG", "MODULESHOME")]
    return next((path for folder in folders if folder and os.path.isfile(path := f"{folder}/init/bash")), None)


def _listed(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _ports() -> list[int] | None:
    try:
        with open(_PORTS, encoding="ascii") as file:
            first, last = map(int, file.read().split())
    except (OSError, ValueError):
        return None
    return [first, last]
