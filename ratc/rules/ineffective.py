"""R207: a given key without effect, because another key decides."""

from __future__ import annotations

from collections.abc import Iterator

from ratc.catalog import optimizers
from ratc.diagnostics import Diagnostic, Severity
from ratc.plan import Values


def check(settings: Values) -> Iterator[Diagnostic]:
    """Yield a finding for each key that has no effect because of another one."""
    strategy = settings["parallel.strategy"].value
    deepspeed = settings["training.deepspeed"].value is not False and strategy not in ("ddp", "fsdp2")
    other = f"`strategy` is {strategy}" if strategy in ("ddp", "fsdp2") else "`deepspeed` is false"
    sharded = strategy in ("auto", "fsdp2")
    optimizer = settings.get_as(str, "training.optimizer")
    known = optimizers.of(optimizer)
    patience = settings.get("training.early_stopping.patience")
    scheduler = settings["training.scheduler"].value
    sparse = settings["model.sga_attention_type"].value == "sparse"
    cases = (
        (not deepspeed, "training.zero_stage", other),
        (
            not deepspeed and settings["training.offload_optimizer"].value,
            "training.offload_optimizer",
            other,
        ),
        *(
            (not sharded, f"parallel.{key}", f"`strategy` is {strategy or 'not given'}")
            for key in ("shard", "shard_size", "wrap", "offload", "mixed_precision")
        ),
        (
            sharded and settings["parallel.shard"].value != "hybrid",
            "parallel.shard_size",
            f"`shard` is {settings['parallel.shard'].value}",
        ),
        (not known.betas, "training.betas", f"the optimizer is `{optimizer}`"),
        (
            ":" not in optimizer and settings["training.optimizer_args"].value,
            "training.optimizer_args",
            f"the optimizer is `{optimizer}`, whose arguments are keys of `training`",
        ),
        (known.momentum is None, "training.momentum", f"the optimizer is `{optimizer}`"),
        (
            patience is not None and patience.value >= settings.get_as(int, "training.epochs"),
            "training.early_stopping.patience",
            "it is not smaller than `epochs`",
        ),
        (scheduler != "cosine", "training.min_learning_rate", f"the schedule is `{scheduler}`"),
        (scheduler != "step", "training.step_epochs", f"the schedule is `{scheduler}`"),
        (scheduler != "step", "training.step_gamma", f"the schedule is `{scheduler}`"),
        (
            sparse and settings["model.attention_memory"].value != "auto",
            "model.attention_memory",
            "`sga_attention_type` is sparse",
        ),
        (settings["data.cache"].value == "none", "data.cache_size", "`cache` is none"),
        (not settings["logging.use_mlflow"].value, "logging.mlflow_experiment_name", "`use_mlflow` is false"),
        (not settings["logging.use_wandb"].value, "logging.wandb_project", "`use_wandb` is false"),
        (not settings["logging.use_wandb"].value, "logging.wandb_mode", "`use_wandb` is false"),
    )
    for applies, path, why in cases:
        if applies and settings.given(path) and settings[path].value is not None:
            message = f"`{path.rpartition('.')[2]}` has no effect: {why}"
            yield Diagnostic("R207", message, settings[path].span, severity=Severity.WARNING)
