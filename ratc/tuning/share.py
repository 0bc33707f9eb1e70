"""The share of each trial of a study on Ray: GPUs and CPU cores, all of one node."""

from __future__ import annotations

from dataclasses import dataclass

from ratc.diagnostics import Diagnostic
from ratc.plan import Values


@dataclass(frozen=True, slots=True)
class Share:
    """``gpus`` and ``cpus`` of each trial; ``node_gpus`` and ``node_cpus`` are the study's on each node."""

    gpus: int
    cpus: int
    node_gpus: int
    node_cpus: int

    def settings(self, container: bool) -> tuple[str, ...]:
        """Return the words behind ``--set`` that turn the study's spec into a run on one node. If the study itself runs
        in a ``container``, a trial starts no other one.
        """
        words = (
            "resources.nodes=1",
            "resources.num_gpus=null",
            f"resources.gpus_per_node={self.gpus}",
            f"resources.cpus={self.cpus}",
        )
        return (*words, "environment.container=null", "environment.modules=[]") if container else words


def share(settings: Values, gpus: int, cpus: int | None) -> tuple[Share | None, tuple[Diagnostic, ...]]:
    """Return a trial's share of a node, of which the study has ``gpus`` and ``cpus``. Code: R343."""
    asked_gpus, asked_cpus = settings["tuning.gpus_per_trial"], settings["tuning.cpus_per_trial"]
    if cpus is None:
        helps = ("set `resources.cpus`",)
        return None, (Diagnostic("R343", "the CPU cores of a node are not known", asked_cpus.span, helps=helps),)
    wanted = asked_gpus.value if asked_gpus.value is not None else min(gpus, 1)
    if wanted > gpus:
        message = f"a trial of {wanted} GPU{'s' if wanted > 1 else ''} does not fit: the study has {gpus} on a node"
        return None, (Diagnostic("R343", message, asked_gpus.span, helps=("a trial runs on one node",)),)
    if asked_cpus.value is not None:
        if asked_cpus.value > cpus:
            message = f"a trial of {asked_cpus.value} CPU cores does not fit: the study has {cpus} on a node"
            return None, (Diagnostic("R343", message, asked_cpus.span, helps=("a trial runs on one node",)),)
        return Share(wanted, asked_cpus.value, gpus, cpus), ()
    nodes, parallel = settings.get_as(int, "resources.nodes"), settings.maybe(int, "tuning.max_parallel")
    at_once = gpus // wanted if wanted else -(-parallel // nodes) if parallel else 1
    return Share(wanted, max(1, cpus // at_once), gpus, cpus), ()
