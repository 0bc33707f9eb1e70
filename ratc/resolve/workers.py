"""Loader processes and threads, within the cores of the job. Codes: R314, R361.

A process keeps one core for itself. Its loader processes share the rest of the job's cores, not of the node's.
"""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic, Severity, Span
from ratc.resolve.context import Context

#: Loader processes per GPU, at most: each costs memory. Chosen, not measured.
MOST_WORKERS = 8


def derive(context: Context) -> Iterator[Diagnostic]:
    """Derive the number of loader processes and of threads for a process."""
    yield from _loaders(context)
    _threads(context)


def _loaders(context: Context) -> Iterator[Diagnostic]:
    settings = context.settings
    processes = int(context.value("parallel.processes_per_node"))
    asked, (cpus, source) = settings["data.num_workers"], _cores(context)
    if settings["debug"].value:
        context.derive("data.num_workers", 0, "debug: errors show in the main process", "spec:debug")
    elif asked.value is not None:
        context.keep("data.num_workers")
        if cpus is None and asked.value:
            message = f"{processes} x (1 + {asked.value} workers) share an unknown number of cores"
            yield _unknown_cores(message, asked.value, processes, asked.span)
        if cpus is not None and asked.value and (asked.value + 1) * processes > cpus:
            need = (asked.value + 1) * processes
            message = f"{processes} x (1 + {asked.value} workers) need {need} cores, and there are {cpus}"
            most = max(0, cpus // processes - 1)
            yield Diagnostic(
                "R314",
                message,
                asked.span,
                helps=(f"use `num_workers: {most}`, or ask for more `cpus`",),
                severity=Severity.WARNING,
            )
    elif not settings["data.auto_optimize"].value:
        context.derive("data.num_workers", 0, "auto_optimize is false", "spec:data.auto_optimize")
    elif cpus is None:
        context.derive("data.num_workers", 0, "the number of cores is not known", "parallel.processes_per_node")
        message = "the number of cores is not known, so the training process loads its data itself"
        yield _unknown_cores(message, MOST_WORKERS, processes)
    else:
        share = cpus // processes
        workers = min(MOST_WORKERS, max(0, share - 1))
        limit = f", at most {MOST_WORKERS}" if share - 1 > MOST_WORKERS else ""
        why = f"{cpus} cores / {processes} process{'es' if processes > 1 else ''} - 1{limit}"
        context.derive("data.num_workers", workers, why, source, "parallel.processes_per_node")


def _unknown_cores(message: str, workers: int, processes: int, span: Span | None = None) -> Diagnostic:
    each = "the process" if processes == 1 else f"each of {processes} processes"
    why = f"{each} of a node needs a core, and {workers} for loading"
    return Diagnostic(
        "R361",
        message,
        span,
        ("without `cpus` a scheduler gives a job its default, often one core",),
        (f"write `cpus: {(workers + 1) * processes}` under `resources`: {why}",),
        Severity.WARNING,
    )


def _threads(context: Context) -> None:
    """Derive the threads: all cores of the process on the CPU; beside a GPU, those not used by loader processes."""
    (cores, _), processes = _cores(context), context.value("parallel.processes_per_node")
    path = "parallel.threads_per_process"
    if cores is None:
        context.derive(path, None, "the number of cores is not known", "parallel.processes_per_node")
        return
    share = max(1, cores // processes)
    if context.value("hardware.device") == "cuda":
        threads, why = (
            max(1, share - context.value("data.num_workers")),
            f"{share} cores per process, less its loader's",
        )
    else:
        threads, why = share, f"{cores} cores / {processes} process{'es' if processes > 1 else ''}"
    context.derive(path, threads, why, "parallel.processes_per_node", "data.num_workers")


def _cores(context: Context) -> tuple[int | None, str]:
    """Return the job's cores on a node, and the path of that value."""
    if "job.cpus_per_node" in context.values:
        return context.value("job.cpus_per_node"), "job.cpus_per_node"
    asked = context.settings["resources.cpus"].value
    return (asked, "spec:resources.cpus") if asked is not None else (context.facts["cpus"].value, "facts:cpus")
