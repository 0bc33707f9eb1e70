"""The data and its loader processes. Code: R314.

A process keeps one core for itself; its loader processes share the rest of what the job asks for, which is not what the
node has.
"""

from __future__ import annotations

from collections.abc import Iterator

from ratc.diagnostics import Diagnostic, Severity
from ratc.plan import Value
from ratc.resolve.context import Context

#: More loader processes than this per GPU cost memory and seldom speed.
MOST_WORKERS = 8


def derive(context: Context) -> Iterator[Diagnostic]:
    """Workers, pinning and prefetching, within the cores asked for."""
    settings = context.settings
    context.keep("data.dataset", "data.data_dir", "data.channels", "data.on_bad_sample")
    args = settings["data.args"]
    if not args.value:
        context.keep("data.args")
    for key, value in args.value.items():
        context.values[f"data.args.{key}"] = Value(value, args.origin, args.reason, ("spec:data.args",), args.span)
    size = settings["data.image_size"]
    if isinstance(size.value, list):
        context.keep("data.image_size")
    else:
        context.values["data.image_size"] = Value(
            [size.value] * 2, size.origin, size.reason, ("spec:data.image_size",), size.span
        )
    if settings["data.scales"].value is None:
        context.derive("data.scales", [1.0], "the image itself", "spec:data.scales")
    else:
        context.keep("data.scales")
    yield from _workers(context)
    _threads(context)
    workers = int(context.value("data.num_workers"))
    cuda = context.value("hardware.device") == "cuda"
    if settings["data.pin_memory"].value is None:
        pin = cuda and bool(settings["data.auto_optimize"].value)
        why = "speeds copies to the GPU" if pin else ("auto_optimize is false" if cuda else "no GPU to copy to")
        context.derive("data.pin_memory", pin, why, "hardware.device")
    else:
        context.keep("data.pin_memory")
    context.derive(
        "data.persistent_workers",
        workers > 0,
        "loader processes live from epoch to epoch" if workers else "no loader processes",
        "data.num_workers",
    )
    if workers:
        context.keep("data.prefetch_factor")
    else:
        context.derive("data.prefetch_factor", None, "no loader processes", "data.num_workers")


def _threads(context: Context) -> None:
    """On the CPU a process computes with all its cores; beside a GPU it leaves those of its loader processes alone."""
    (cores, _), processes = _cores(context), context.value("parallel.processes_per_node")
    path = "parallel.threads_per_process"
    if cores is None:
        context.derive(path, None, "the number of cores is not known")
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
    """The cores of a node that are the job's, and the path that says so."""
    if "job.cpus_per_node" in context.values:
        return context.value("job.cpus_per_node"), "job.cpus_per_node"
    asked = context.settings["resources.cpus"].value
    return (asked, "spec:resources.cpus") if asked is not None else (context.facts["cpus"].value, "facts:cpus")


def _workers(context: Context) -> Iterator[Diagnostic]:
    settings = context.settings
    processes = int(context.value("parallel.processes_per_node"))
    asked, (cpus, source) = settings["data.num_workers"], _cores(context)
    if settings["debug"].value:
        context.derive("data.num_workers", 0, "debug: errors show in the main process", "spec:debug")
    elif asked.value is not None:
        context.keep("data.num_workers")
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
    else:
        share = cpus // processes
        workers = min(MOST_WORKERS, max(0, share - 1))
        limit = f", at most {MOST_WORKERS}" if share - 1 > MOST_WORKERS else ""
        why = f"{cpus} cores / {processes} process{'es' if processes > 1 else ''} - 1{limit}"
        context.derive("data.num_workers", workers, why, source, "parallel.processes_per_node")
