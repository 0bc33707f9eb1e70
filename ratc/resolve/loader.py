"""The data, its augmentations and cache, and its loader processes. Code: R314.

A process keeps one core for itself; its loader processes share the rest of what the job asks for, which is not what the
node has.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from ratc.catalog.tasks import class_names
from ratc.diagnostics import Diagnostic, Severity
from ratc.memory.images import sides
from ratc.parts import kinds
from ratc.plan import Value
from ratc.resolve.context import Context
from ratc.units import memory_bytes, size_text

#: Transforms whose `size` is the image's if the spec does not say it.
SIZED = ("RandomCrop", "RandomResizedCrop")
#: What a cache may take if the spec does not say it: a third of the host's memory; so much if that is not known,
#: and so much of a disk.
CACHE_SHARE, CACHE_UNKNOWN_BYTES, CACHE_DISK_BYTES = 3, 4 << 30, 64 << 30
#: Batches ahead of each loader process: enough to bridge batches that take longer, and no more than helps.
LEAST_AHEAD, MOST_AHEAD = 2, 8
#: Batches that wait may take one of so many parts of the host's memory.
AHEAD_SHARE = 8
#: More loader processes than this per GPU cost memory and seldom speed.
MOST_WORKERS = 8


def derive(context: Context) -> Iterator[Diagnostic]:
    """Workers, pinning and prefetching, within the cores asked for."""
    settings = context.settings
    if settings["task_type"].value == "multi":
        context.derive("data.dataset", "joint", "a sample of each of `tasks` at every position", "spec:tasks")
    else:
        context.keep("data.dataset")
    context.keep("data.data_dir", "data.channels", "data.on_bad_sample", "data.num_classes")
    _classes(context)
    context.keep_arguments("data.args")
    size = settings["data.image_size"]
    if isinstance(size.value, list):
        context.keep("data.image_size")
    else:
        context.values["data.image_size"] = Value(
            sides(settings), size.origin, size.reason, ("spec:data.image_size",), size.span
        )
    if settings["data.scales"].value is None:
        context.derive("data.scales", [1.0], "the image itself", "spec:data.scales")
    else:
        context.keep("data.scales")
    _augmentations(context)
    _cache(context)
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
    _prefetch(context, workers)


def _augmentations(context: Context) -> None:
    """As the spec says, with the size of the image if a crop needs one."""
    given = context.settings["data.augmentations"]
    size = context.value("data.image_size")[-2:]  # in the plane, also of a volume
    entries = [
        {name: {"size": size, **arguments} if name in SIZED else arguments for name, arguments in entry.items()}
        for entry in given.value
    ]
    if entries == given.value:
        context.keep("data.augmentations")
    else:
        inputs = ("spec:data.augmentations", "data.image_size")
        context.derive("data.augmentations", entries, "crops have the size of the image", *inputs)


def _cache(context: Context) -> None:
    """What a cache may take of a node: as asked, else a share of the host's memory or a fixed part of a disk."""
    context.keep("data.cache")
    path, kind, asked = "data.cache_size_bytes", context.value("data.cache"), context.settings["data.cache_size"]
    if kind == "none":
        context.derive(path, None, "no cache", "data.cache")
    elif asked.value is not None:
        size = memory_bytes(asked.value)
        context.values[path] = Value(size, asked.origin, asked.reason, ("spec:data.cache_size",), asked.span)
    elif kind == "disk":
        why = f"{size_text(CACHE_DISK_BYTES)} of disk where `cache_size` is absent"
        context.derive(path, CACHE_DISK_BYTES, why, "data.cache")
    else:
        memory, source = _memory(context)
        if memory is None:
            why = f"{size_text(CACHE_UNKNOWN_BYTES)}: the host's memory is not known"
            context.derive(path, CACHE_UNKNOWN_BYTES, why, "data.cache")
        else:
            why = f"a third of the host's {size_text(memory)}"
            context.derive(path, memory // CACHE_SHARE, why, "data.cache", source)


def _prefetch(context: Context, workers: int) -> None:
    """Batches each loader process prepares ahead: one and its share of an optimizer step, within the host's memory."""
    path, asked = "data.prefetch_factor", context.settings["data.prefetch_factor"]
    if not workers:
        context.derive(path, None, "no loader processes", "data.num_workers")
        return
    if asked.value is not None:
        context.keep(path)
        return
    if not context.settings["data.auto_optimize"].value:
        context.derive(path, LEAST_AHEAD, "auto_optimize is false", "spec:data.auto_optimize")
        return
    steps = int(context.value("training.gradient_accumulation_steps"))
    wanted = min(MOST_AHEAD, LEAST_AHEAD - 1 + -(-steps // workers))
    inputs = ["data.num_workers", "training.gradient_accumulation_steps"]
    why = f"{wanted * workers} micro-batches ahead of steps of {steps}"
    memory, source = _memory(context)
    if memory is not None:
        processes = int(context.value("parallel.processes_per_node"))
        batch = _batch_bytes(context)
        room = memory // AHEAD_SHARE // (batch * workers * processes)
        inputs += ["training.micro_batch_size", "data.image_size", "data.channels", source]
        if room < wanted:
            wanted = max(1, room)
            ahead = wanted * workers * processes
            why = f"{ahead} micro-batches of {batch / 2**20:.0f} MiB ahead on a node of {size_text(memory)}"
    context.derive(path, wanted, why, *inputs)


def _batch_bytes(context: Context) -> int:
    """Bytes of a micro-batch in host memory: images of all scales and a mask, as float32."""
    sides = context.value("data.image_size")
    pixels = prod(sides)
    scales = context.value("data.scales")
    images = sum(pixels * scale ** len(sides) * context.value("data.channels") for scale in scales)
    tasks = max(1, len(kinds(context.settings)))
    return int(context.value("training.micro_batch_size") * tasks * (images + pixels) * 4)


def _memory(context: Context) -> tuple[int | None, str]:
    """The memory of a node that is the job's, and the path that says so."""
    if "job.memory_bytes_per_node" in context.values:
        return context.value("job.memory_bytes_per_node"), "job.memory_bytes_per_node"
    return context.facts["memory_bytes"].value, "facts:memory_bytes"


def _classes(context: Context) -> None:
    """What the classes are called, and which pixels do not count."""
    classes = context.settings.get_as(int, "data.num_classes")
    if context.settings["task_type"].value == "multi":
        context.derive("data.class_names", ["of each task"], "each of `tasks` has its own", "spec:tasks")
    elif context.settings["data.class_names"].value is not None:
        context.keep("data.class_names")
    else:
        names = class_names(context.settings.get_as(str, "task_type"), classes)
        inputs = ("spec:data.num_classes", "spec:task_type")
        context.derive("data.class_names", names, "the spec names no classes", *inputs)
    context.keep("data.ignore_index")


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
