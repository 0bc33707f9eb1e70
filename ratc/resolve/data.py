"""The data: the form of a sample, its augmentations, and the cache of a node."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.catalog.tasks import class_names
from ratc.diagnostics import Diagnostic
from ratc.memory.images import sides
from ratc.plan import Value
from ratc.resolve.context import Context
from ratc.units import memory_bytes, size_text

#: Transforms with a `size` that defaults to the image's.
SIZED = ("RandomCrop", "RandomResizedCrop")
#: The default size of a cache: the divisor of the host's memory, bytes if that memory is unknown, bytes on a disk.
#: Chosen, not measured.
CACHE_SHARE, CACHE_UNKNOWN_BYTES, CACHE_DISK_BYTES = 3, 4 << 30, 64 << 30


def derive(context: Context) -> Iterator[Diagnostic]:
    """Take most values from the spec; derive names of classes, sizes of crops and of the cache."""
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
    if "data.folds.number" in settings:
        context.keep(*(f"data.folds.{key}" for key in ("number", "index", "seed", "group")))
    _augmentations(context)
    _cache(context)
    yield from ()


def _augmentations(context: Context) -> None:
    """Take the augmentations of the spec, with the image's size for a crop without one."""
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
    """Derive the cache's size per node: as given, else a share of the host's memory or a fixed part of a disk."""
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
        memory, source = context.node_memory()
        if memory is None:
            why = f"{size_text(CACHE_UNKNOWN_BYTES)}: the host's memory is not known"
            context.derive(path, CACHE_UNKNOWN_BYTES, why, "data.cache")
        else:
            why = f"a third of the host's {size_text(memory)}"
            context.derive(path, memory // CACHE_SHARE, why, "data.cache", source)


def _classes(context: Context) -> None:
    """Derive the names of the classes, and the label of ignored pixels."""
    classes = context.settings.get_as(int, "data.num_classes")
    if context.settings["task_type"].value == "multi":
        context.derive("data.class_names", ["of each task"], "each of `tasks` has its own", "spec:tasks")
    elif context.settings["data.class_names"].value is not None:
        context.keep("data.class_names")
    else:
        names = class_names(context.settings.get_as(str, "task_type"), classes)
        inputs = ("spec:data.num_classes", "spec:task_type")
        context.derive("data.class_names", names, "the spec gives no names", *inputs)
    context.keep("data.ignore_index")
