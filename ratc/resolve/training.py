"""Length, rates and numerics of the training; a debug run is cut short."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from ratc.catalog import optimizers
from ratc.catalog.tasks import default_loss
from ratc.diagnostics import Diagnostic
from ratc.own_code import callables
from ratc.resolve.context import Context
from ratc.units import counted, size_text

DEBUG_STEPS = 4
_AS_GIVEN = (
    "weight_decay",
    "betas",
    "scheduler",
    "warmup_epochs",
    "min_learning_rate",
    "step_epochs",
    "step_gamma",
    "gradient_clipping",
)


def derive(context: Context) -> Iterator[Diagnostic]:
    """Derive the values of the optimizer, and the weights that it starts from. Codes: R313, R367, R368."""
    settings = context.settings
    debug = bool(settings["debug"].value)
    if debug:
        context.derive("training.epochs", 1, "debug", "spec:debug")
        context.derive("training.max_steps_per_epoch", DEBUG_STEPS, "debug", "spec:debug")
        context.derive("logging.log_every_steps", 1, "debug", "spec:debug")
    else:
        context.keep("training.epochs", "logging.log_every_steps")
        context.derive("training.max_steps_per_epoch", None, "the whole split", "spec:debug")
    if "training.early_stopping.patience" in settings:
        _early_stopping(context)
    # Derived before; it stands among the numbers of the optimizer.
    context.values["training.learning_rate"] = context.values.pop("training.learning_rate")
    if settings["training.extensions"].value and not debug:
        yield from _extensions(context)
    used = optimizers.of(settings.get_as(str, "training.optimizer"))
    if used.about:
        context.derive(
            "training.optimizer", settings["training.optimizer"].value, used.about, "spec:training.optimizer"
        )
    else:
        context.keep("training.optimizer")
    if ":" in context.value("training.optimizer"):
        context.keep_arguments("training.optimizer_args")
    context.keep(*(f"training.{key}" for key in _AS_GIVEN))
    if used.betas is not None and not settings.given("training.betas"):
        _betas(context, used)
    if settings["training.frozen"].value:
        context.keep("training.frozen")
    if settings["training.parameter_groups"].value:
        _parameter_groups(context)
    if "training.init_from.path" in settings:
        yield from _init_from(context)
    if used.momentum is not None and settings["training.momentum"].value is None:
        why = f"the usual one of {used.title}"
        context.derive("training.momentum", used.momentum, why, "spec:training.optimizer")
    elif used.momentum is not None:
        context.keep("training.momentum")
    context.keep("training.last_batch")
    _checkpointing(context)
    if debug and settings["training.compile"].value:
        context.derive("training.compile", False, "debug: compiled code has no modules to name", "spec:debug")
    else:
        context.keep("training.compile")
    _callbacks(context)
    if settings["task_type"].value == "multi":
        context.derive("training.loss.name", "weighted_sum", "of the losses of `tasks`", "spec:tasks")
    elif settings["training.loss"].value is None:
        task = settings.get_as(str, "task_type")
        context.derive("training.loss.name", default_loss(task), f"the loss of {task}", "spec:task_type")
    else:
        context.keep("training.loss", under="training.loss.name")
    context.keep_arguments("training.loss_args", under="training.loss.args")
    if settings.number("training.min_learning_rate") > context.value("training.learning_rate"):
        span = settings["training.min_learning_rate"].span or settings["training.learning_rate"].span
        yield Diagnostic("R313", "`min_learning_rate` is above `learning_rate`", span)
    warmup, epochs = settings["training.warmup_epochs"], settings.get_as(int, "training.epochs")
    if warmup.value >= epochs and warmup.value and not debug:
        message = f"{warmup.value:g} epochs of warm-up leave nothing of {epochs}"
        yield Diagnostic(
            "R313",
            message,
            warmup.span or settings["training.epochs"].span,
            helps=("warm up for less than the whole run",),
        )


def _callbacks(context: Context) -> None:
    """Derive the names of the callbacks and, if one has any, their arguments."""
    path = "training.callbacks"
    found = callables.callbacks(context.settings[path])
    names = [name for name, _ in found]
    if names == context.settings[path].value:
        context.keep(path)
        return
    context.derive(path, names, "the names", f"spec:{path}")
    if not any(arguments for _, arguments in found):
        return
    context.derive("training.callback_args", [arguments for _, arguments in found], "of each", f"spec:{path}")


def _early_stopping(context: Context) -> None:
    path = "training.early_stopping"
    if context.settings[f"{path}.metric"].value is None:
        best = context.value("checkpoint.best_metric")
        context.derive(f"{path}.metric", best, "the score that chooses the best epoch", "checkpoint.best_metric")
    else:
        context.keep(f"{path}.metric")
    context.keep(f"{path}.patience", f"{path}.min_delta")


def _extensions(context: Context) -> Iterator[Diagnostic]:
    """Derive the added epochs, with the learning rate of each."""
    path = "training.extensions"
    given, epochs = context.settings[path], context.settings["training.epochs"]
    rate = context.value("training.learning_rate")
    made = [
        {
            "after": one["after"],
            "learning_rate": one.get("learning_rate"),
            "warmup_epochs": one.get("warmup_epochs", 0.0),
        }
        for one in given.value
    ]
    bounds = [0, *(one["after"] for one in made), epochs.value]
    warmups = [context.settings["training.warmup_epochs"].value, *(one["warmup_epochs"] for one in made)]
    for warmup, (start, end) in zip(warmups, pairwise(bounds), strict=True):
        if end <= start and end == epochs.value:
            message = f"an extension that begins after epoch {start} has no epochs: the plan ends after {end}"
            helps = (f"set `epochs` to more than {start}",)
            yield Diagnostic("R368", message, given.span or epochs.span, helps=helps)
            return
        if end <= start:
            yield Diagnostic("R368", "each extension begins after the one before it", given.span)
            return
        if warmup and warmup >= end - start:
            message = f"{warmup:g} epochs of warm-up leave nothing of the {end - start} after epoch {start}"
            yield Diagnostic("R368", message, given.span, helps=("warm up for less than these epochs",))
            return
    if any(name.startswith("compression.") for name in context.settings):
        message = "a run with `compression` cannot be extended: its weights are pruned by a plan of all epochs"
        yield Diagnostic("R368", message, given.span, helps=("start a new run from its weights: `training.init_from`",))
        return
    value = [{**one, "learning_rate": rate if one["learning_rate"] is None else one["learning_rate"]} for one in made]
    if any(one["learning_rate"] is None for one in made):
        why = "peaks at `learning_rate` if nothing else is said"
        context.derive(path, value, why, f"spec:{path}", "training.learning_rate")
    else:
        context.derive(path, value, "as given", f"spec:{path}")


def _parameter_groups(context: Context) -> None:
    """Derive the groups of weights, each with its own weight decay."""
    path, decay = "training.parameter_groups", context.value("training.weight_decay")
    given = context.settings[path].value
    value = [
        {
            "match": one["match"],
            "learning_rate_factor": one.get("learning_rate_factor", 1.0),
            "weight_decay": decay if one.get("weight_decay") is None else one["weight_decay"],
        }
        for one in given
    ]
    if any(one.get("weight_decay") is None for one in given):
        why = "decay as all others if nothing else is said"
        context.derive(path, value, why, f"spec:{path}", "training.weight_decay")
    else:
        context.derive(path, value, "as given", f"spec:{path}")


def _init_from(context: Context) -> Iterator[Diagnostic]:
    """Derive the file with the first weights, and its digest, which identifies the weights in the lock."""
    at = "training.init_from"
    path, asked = context.settings[f"{at}.path"], context.settings.maybe(str, f"{at}.sha256")
    found = context.facts.get(f"weights:{path.value}")
    if found is None and asked is None:
        message = f"the weights of `{at}` are not there: `{path.value}`"
        notes = ("the lock has the digest of the weights that a run starts from",)
        helps = ("correct the path, which is relative to the spec's folder", "or give the digest of the file, `sha256`")
        yield Diagnostic("R367", message, path.span, notes, helps)
        return
    file, digest = found.value if found is not None else (path.value, None)
    if asked is not None and digest not in (None, f"sha256:{asked}"):
        span = context.settings[f"{at}.sha256"].span
        yield Diagnostic("R367", f"`{file}` has another digest than `sha256`", span, (f"it has `{digest[7:]}`",))
        return
    if file == path.value:
        context.keep(f"{at}.path")
    else:
        context.derive(f"{at}.path", file, "the checkpoint of that folder", f"spec:{at}.path")
    if asked is None:
        context.derive(f"{at}.digest", digest, "of the file, when this was compiled", f"spec:{at}.path")
    else:
        why = "given" if digest is None else "given, and found"
        context.derive(f"{at}.digest", f"sha256:{asked}", why, f"spec:{at}.sha256")
    context.keep(*(f"{at}.{key}" for key in ("strict", "load", "skip")))


def _betas(context: Context, used: optimizers.Optimizer) -> None:
    """Derive an optimizer's usual decay rates if they differ from the defaults of the spec."""
    usual = list(used.betas or ())
    if usual != context.value("training.betas"):
        context.derive("training.betas", usual, f"the usual ones of {used.title}", "spec:training.optimizer")


def _checkpointing(context: Context) -> None:
    """Derive activation checkpointing; for `auto`, of as few blocks as a prediction needs."""
    path, decision = "training.activation_checkpointing", context.decision
    inputs = [f"spec:{path}", "hardware.card"]
    inputs += ["training.micro_batch_size"] if decision and decision.is_given else []
    if context.settings[path].value != "auto":
        context.keep(path)
    elif decision is None:
        context.derive(path, False, "no prediction says that it is needed", f"spec:{path}")
    elif decision.plain_need_bytes is None:
        context.derive(path, False, f"{decision.where}it fits without", *inputs)
    else:
        chosen, which = decision.fewest or decision, decision.activation_checkpointing
        found, why = chosen.choice.estimate, decision.where
        why += "" if isinstance(which, bool) else f"{len(which)} of {counted(decision.blocks, 'block')}: "
        why += "" if decision.is_given else "nothing fits without: "
        why += f"micro-batch {decision.plain_micro_batch} needs {size_text(decision.plain_need_bytes)}"
        why += " without, with it " if decision.is_given else f", with it micro-batch {found.micro_batch} takes "
        why += f"{size_text(found.predicted_bytes)} of {size_text(found.device.memory_bytes)}"
        why += f"; a step takes {decision.longer} more" if decision.longer else ""
        value = which if isinstance(which, bool) else list(which)
        context.derive(path, value, why, *inputs)
