"""R211, R212 and R214: the classes, their names, a loss for their number, and a best score that is computed."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.catalog.tasks import DATASETS, WITHOUT_BACKGROUND
from ratc.diagnostics import Diagnostic
from ratc.plan import Values


def check(settings: Values) -> Iterator[Diagnostic]:
    """Check keys against `num_classes`, and scores that must be enabled."""
    classes = settings.get_as(int, "data.num_classes")
    yield from _names(settings, classes)
    if settings["task_type"].value == "classification":
        yield from _lists(settings, classes)
    if settings["task_type"].value in WITHOUT_BACKGROUND:
        return
    ignored = settings["data.ignore_index"]
    if ignored.value is not None and classes == 1:
        message = "`ignore_index` needs `num_classes` of 2 or more: a mask of one class is divided at half its range"
        helps = ("set `num_classes: 2` for masks of 0 and 1, or remove it",)
        yield Diagnostic("R211", message, ignored.span, helps=helps)
    elif ignored.value is not None and ignored.value < classes:
        message = f"`ignore_index` {ignored.value} is one of the {classes} classes, which are 0 to {classes - 1}"
        helps = (f"use a number of {classes} or more, such as 255",)
        yield Diagnostic("R211", message, ignored.span, helps=helps)
    loss = settings["training.loss"]
    given = settings["data.num_classes"].span
    if loss.value == "bce" and classes > 1:
        message = f"the loss `bce` is for one class, and `num_classes` is {classes}"
        yield Diagnostic("R212", message, loss.span or given, helps=("use `cross_entropy`, `dice` or `combined`",))
    if loss.value == "cross_entropy" and classes == 1:
        message = "the loss `cross_entropy` is for several classes, and `num_classes` is 1"
        helps = ("use `bce`, `dice` or `combined`, or set `data.num_classes`",)
        yield Diagnostic("R212", message, loss.span or given, helps=helps)
    for path in ("checkpoint.best_metric", "training.early_stopping.metric"):
        score = settings.get(path)
        if score and str(score.value).startswith("hausdorff") and not settings["evaluation.hausdorff"].value:
            message = f"`{path.rpartition('.')[2]}: {score.value}` is a score that the run does not compute"
            yield Diagnostic("R214", message, score.span, helps=("set `evaluation.hausdorff: true`",))


def _lists(settings: Values, classes: int) -> Iterator[Diagnostic]:
    """Check the arguments of built-in parts of classification that have one value for each class."""
    loss, dataset, names = settings["training.loss"], settings["data.dataset"], settings["data.class_names"]
    built_in = {
        "training.loss_args": "class_weights" if ":" not in str(loss.value) else None,
        "data.args": "classes" if dataset.value in DATASETS["classification"] else None,
    }
    for path, key in built_in.items():
        given = settings[path].value.get(key)
        if given is not None and (not isinstance(given, list) or len(given) != classes):
            number = f"{len(given)} value{'s' if len(given) != 1 else ''}" if isinstance(given, list) else f"`{given}`"
            message = f"`{key}` has {number} for {classes} class{'es' if classes > 1 else ''}"
            yield Diagnostic("R211", message, settings[path].span, helps=("give a list of one value for each class",))
        elif (
            key == "classes" and given is not None and names.value is not None and names.value != list(map(str, given))
        ):
            message = "`data.class_names` and `classes` in `data.args` give different names of classes"
            yield Diagnostic(
                "R211", message, names.span, helps=("write the same names in the same order, or remove one of them",)
            )


def _names(settings: Values, classes: int) -> Iterator[Diagnostic]:
    names = settings["data.class_names"]
    if names.value is None:
        return
    if len(names.value) != classes:
        several = f"{len(names.value)} class name{'s' if len(names.value) != 1 else ''}"
        message = f"{several} for {classes} class{'es' if classes > 1 else ''}"
        if settings["task_type"].value in WITHOUT_BACKGROUND:
            note = f"{settings['task_type'].value} has no background among its classes"
        else:
            note = (
                "of one class the foreground has a name" if classes == 1 else "class 0, the background, has a name too"
            )
        yield Diagnostic(
            "R211", message, names.span, (note,), (f"give {classes}, or `num_classes: {len(names.value)}`",)
        )
    looks = [" ".join(name.split()) for name in names.value]
    double = next((look for number, look in enumerate(looks) if look in looks[:number]), None)
    if double is not None:
        message = f"two classes have the name `{double}`"
        yield Diagnostic("R211", message, names.span, helps=("give each class a name of its own",))
