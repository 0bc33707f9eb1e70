"""The section `training` of a spec: the length, the batches, the optimizer and the numbers of a training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ratc.spec.base import (
    CALLABLE,
    LOSS,
    OPTIMIZER,
    Arguments,
    Decay,
    NonNegative,
    Pattern,
    Positive,
    PositiveInt,
    Probability,
    Section,
    Text,
)
from ratc.spec.keys import LEARNT, Effect, Key


class EarlyStopping(Section):
    """The end of a training that no longer gets better. The learning rate's schedule stays that of all `epochs`."""

    metric: Text | None = Field(
        None,
        description="Validation metric that decides: `loss` or a score of the task; if absent, "
        "`checkpoint.best_metric`.",
        examples=["loss", "dice"],
    )
    patience: PositiveInt = Field(
        ..., description="Number of epochs without an improvement after which training ends.", examples=[10]
    )
    min_delta: NonNegative = Field(
        0.0, description="Smallest change of the metric that counts as an improvement.", examples=[0.001]
    )


class InitFrom(Section):
    """Weights of another run or file, with which the first start of a run begins."""

    path: Annotated[Text, Key((Effect.PLACEMENT,), "the weights lie in another file or folder", path="folder")] = Field(
        ...,
        description="Weights to start from: the output folder of a run (its best checkpoint), a checkpoint, a "
        "`.safetensors` file, or a state dict that `torch.save` wrote. Relative to the spec's folder.",
        examples=["outputs/pretrained", "weights/backbone.safetensors"],
    )
    sha256: Annotated[
        Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None,
        Key(LEARNT, "training starts from other weights", plan="training.init_from.digest"),
    ] = Field(
        None,
        description="SHA-256 digest of the file. Give it if the file is not on the machine that compiles, or to be "
        "sure of the file; if absent, ratc computes it.",
    )
    strict: bool = Field(
        True,
        description="Refuse to start if only the model or only the file has a name; with false, such names are "
        "listed and skipped.",
    )
    load: list[Pattern] = Field(
        ["*"], description="Patterns (`*`, `?`, `[…]`) of the names of weights to load.", examples=[["encoder.*"]]
    )
    skip: list[Pattern] = Field(
        [], description="Patterns of names in `load` that are not loaded.", examples=[["head.*"]]
    )


class Extension(Section):
    """More epochs after those of a finished run, with a learning-rate schedule of their own."""

    after: PositiveInt = Field(
        ..., description="Number of epochs of the finished run that these extend: its `epochs`.", examples=[100]
    )
    learning_rate: Positive | None = Field(
        None,
        description="Peak learning rate of the added epochs; if absent, `training.learning_rate`.",
        examples=[1e-5],
    )
    warmup_epochs: NonNegative = Field(0.0, description="Linear warm-up, in epochs.")


class ParameterGroup(Section):
    """Weights with a learning rate or a weight decay of their own."""

    match: list[Pattern] = Field(
        ...,
        min_length=1,
        description="Patterns (`*`, `?`, `[…]`) of the names of parameters. A parameter belongs to the first group "
        "that matches it.",
        examples=[["backbone.*"]],
    )
    learning_rate_factor: Positive = Field(
        1.0,
        description="Factor of the learning rate, in every step of the schedule.",
        examples=[0.1],
    )
    weight_decay: NonNegative | None = Field(
        None,
        description="Weight decay of the group's weights with two or more dimensions; if absent, "
        "`training.weight_decay`.",
        examples=[0],
    )


class Training(Section):
    """How long, how fast, in what batches and with what numbers."""

    epochs: Annotated[
        PositiveInt,
        Key(
            (*LEARNT, Effect.COST),
            "the training has another length, and so the learning rate another schedule",
            memory="apart",
            option="epochs",
            order=6,
        ),
    ] = Field(100, description="Passes over the training split.", examples=[100])
    extensions: Annotated[
        list[Extension],
        Key((*LEARNT, Effect.COST), "the learning rate follows another schedule", memory="apart", rate=False),
    ] = Field(
        [],
        max_length=100,
        description="Epochs that are added to a finished run; the run goes on in its output folder. The "
        "learning-rate schedule begins again for them.",
        examples=[[{"after": 100, "learning_rate": 1e-5}]],
    )
    early_stopping: Annotated[
        EarlyStopping | None,
        Key((*LEARNT, Effect.COST), "training ends after another number of epochs", memory="apart", rate=False),
    ] = Field(
        None,
        description="End before `epochs` if the validation metric no longer improves.",
        examples=[{"metric": "loss", "patience": 10}],
    )
    auto_batch_size: bool = Field(True, description="Let ratc choose the micro-batch size if `batch_size` is absent.")
    batch_size: Annotated[
        PositiveInt | None,
        Key(
            (Effect.MEMORY,),
            "the same step in other pieces; batch statistics and rounding may differ",
            plan="training.micro_batch_size",
            memory="decides",
            option="batch-size",
            order=3,
        ),
    ] = Field(None, description="Micro-batch size: samples per GPU and forward pass.", examples=[8])
    target_batch_size: Annotated[
        PositiveInt | None,
        Key(
            LEARNT,
            "another number of samples in each optimizer step",
            plan="training.global_batch_size",
            memory="depends",
            option="target-batch-size",
            order=4,
        ),
    ] = Field(
        None,
        description="Global batch size: samples per optimizer step over all GPUs. Never changed silently.",
        examples=[32],
    )
    gradient_accumulation_steps: Annotated[
        PositiveInt | None,
        Key((Effect.COST,), "the same step in more or fewer pieces", memory="decides"),
    ] = Field(
        None,
        description="Forward passes per optimizer step; if absent, ratc computes it from the batch sizes.",
        examples=[4],
    )
    last_batch: Annotated[
        Literal["drop", "keep"],
        Key(
            (*LEARNT, Effect.COST),
            "the last samples of an epoch, which fill no global batch, are trained on, or not",
            rate=True,
        ),
    ] = Field(
        "drop",
        description="Last samples of an epoch, if they fill no global batch: `drop` leaves them out, `keep` makes a "
        "smaller step of them.",
    )
    learning_rate: Annotated[
        Positive | Annotated[str, Field(pattern="^auto$")], Key(memory="apart", option="learning-rate", order=5)
    ] = Field(
        1e-4,
        description="Peak learning rate; `auto` takes the rate that `ratc tune lr` measured for this spec.",
        examples=[1e-4],
    )
    learning_rate_scaling: Literal["none", "linear", "sqrt"] = Field(
        "none",
        description="Rule that scales `learning_rate` with the global batch size: by the ratio of the global batch "
        "size to `base_batch_size` (`linear`), or by its square root (`sqrt`).",
    )
    base_batch_size: PositiveInt | None = Field(
        None,
        description="Reference batch size for `learning_rate_scaling`; if absent, the batch size of the measured "
        "learning rate.",
        examples=[256],
    )
    optimizer: Annotated[
        Annotated[str, Field(pattern=OPTIMIZER)],
        Key((*LEARNT, Effect.MEMORY), "another optimizer, with another state", memory="depends", rate=True),
    ] = Field(
        "adamw",
        description="Optimizer. `muon` trains weights with two dimensions except embeddings; `adamw` then trains all "
        "others. `adamw_8bit` and `lion_8bit` keep their averages in 8 bits, with bitsandbytes, which `pip install "
        "'ratc[8bit]'` brings. `package.module:callable` returns a `torch.optim.Optimizer`. With DeepSpeed `adamw` "
        "and `adam` only, with FSDP2 also `sgd` and `lion`.",
        examples=["adamw", "my_package.optimizers:Sophia"],
    )
    optimizer_args: Annotated[
        Arguments, Key((*LEARNT, Effect.MEMORY), "the optimizer gets other arguments", memory="depends", rate=True)
    ] = Field(
        {},
        description="Keyword arguments of an optimizer that is a `package.module:callable`.",
        examples=[{"momentum": 0.95}],
    )
    momentum: Annotated[
        Annotated[float, Field(ge=0, lt=1)] | None,
        Key((*LEARNT, Effect.MEMORY), "another momentum, or none", memory="depends", rate=True),
    ] = Field(
        None, description="Momentum of `sgd` (0.9 if absent; 0 needs no memory) and `muon` (0.95).", examples=[0.9]
    )
    weight_decay: Annotated[NonNegative, Key(memory="apart", rate=True)] = Field(
        0.01,
        description="Weight decay of weights with two or more dimensions (biases and norms have none). `adam` and "
        "`sgd` add it to the gradient; with the others it is decoupled.",
        examples=[0.01],
    )
    betas: Annotated[Annotated[list[Decay], Field(min_length=2, max_length=2)], Key(rate=True)] = Field(
        [0.9, 0.999],
        description="Decay rates of the two moment averages of `adam` and `adamw` (also of the `adamw` beside `muon`). "
        "Those of `lion`, `[0.9, 0.99]` if absent, are for its update and its average.",
    )
    frozen: Annotated[
        list[Pattern],
        Key((*LEARNT, Effect.MEMORY, Effect.COST), "other weights are trained", memory="depends", rate=True),
    ] = Field(
        [],
        description="Patterns (`*`, `?`, `[…]`) of the names of parameters that are not trained. Buffers, such as "
        "the running means of batch norm, are still updated.",
        examples=[["backbone.*"]],
    )
    parameter_groups: Annotated[
        list[ParameterGroup],
        Key((*LEARNT, Effect.MEMORY), "some weights get another learning rate or decay", memory="depends", rate=True),
    ] = Field(
        [],
        max_length=100,
        description="Groups of weights with a learning rate or a weight decay of their own. All other weights have "
        "`learning_rate` and `weight_decay`.",
        examples=[[{"match": ["backbone.*"], "learning_rate_factor": 0.1}]],
    )
    init_from: Annotated[
        InitFrom | None,
        Key(LEARNT, "training starts from other weights", memory="apart", rate=True),
    ] = Field(
        None,
        description="Start from the weights of another run or of a file.",
        examples=[{"path": "outputs/pretrained", "skip": ["head.*"]}],
    )
    scheduler: Annotated[Literal["cosine", "step", "none"], Key(memory="apart")] = Field(
        "cosine", description="Learning-rate schedule after the warm-up."
    )
    warmup_epochs: Annotated[NonNegative, Key(memory="apart")] = Field(
        0.0,
        description="Length of the linear warm-up in epochs; it is counted in optimizer steps, so 0.5 is half "
        "an epoch.",
        examples=[1],
    )
    min_learning_rate: NonNegative = Field(0.0, description="Learning rate at the end of the cosine schedule.")
    step_epochs: PositiveInt = Field(30, description="Schedule `step`: epochs between reductions.")
    step_gamma: Probability = Field(0.1, description="Schedule `step`: factor of each reduction.")
    gradient_clipping: Annotated[Positive | None, Key(rate=True)] = Field(
        1.0,
        description="Largest norm of the gradient; a larger one is clipped. null means no clipping.",
        examples=[1.0],
    )
    loss: Annotated[Annotated[str, Field(pattern=LOSS)] | None, Key(plan="training.loss.name", rate=True)] = Field(
        None,
        description="Loss. Segmentation: `bce` (one class), `cross_entropy` (several classes), `dice` or `combined` "
        "(if absent: the mean of `dice` and of `bce` or `cross_entropy`, by the number of classes). Detection: "
        "`set_prediction`. Classification: `cross_entropy`. Any task: `package.module:callable`.",
        examples=["combined", "bce", "dice", "cross_entropy", "set_prediction", "my_package.losses:Focal"],
    )
    loss_args: Annotated[Arguments, Key(rate=True)] = Field(
        {}, description="Keyword arguments of the loss; built-in losses take weights, `smooth` and `label_smoothing`."
    )
    mixed_precision: Annotated[bool, Key(plan="training.precision")] = Field(
        True, description="Take bf16 from compute capability 8.0 on, fp16 with a loss scaler on 7.x, otherwise fp32."
    )
    precision: Annotated[
        Literal["auto", "fp32", "fp16", "bf16"],
        Key(
            (*LEARNT, Effect.MEMORY),
            "results are rounded in another way: losses are not the same to the last digit",
            memory="depends",
        ),
    ] = Field("auto", description="Train in this precision, instead of the one that `mixed_precision` chooses.")
    deepspeed: Annotated[
        bool | None,
        Key(
            (Effect.RESUME, Effect.MEMORY),
            "a run with DeepSpeed cannot read the checkpoints of one without it, nor the other way round",
            plan="engine.deepspeed",
            memory="depends",
        ),
    ] = Field(None, description="true is the same as `parallel.strategy: deepspeed`; false excludes DeepSpeed.")
    zero_stage: Annotated[
        Annotated[int, Field(ge=0, le=3)] | None,
        Key(
            (Effect.RESUME, Effect.MEMORY),
            "states are split over the ranks in another way; a run cannot read the shards of another stage",
            plan="engine.zero_stage",
            memory="decides",
        ),
    ] = Field(
        None,
        description="ZeRO stage of DeepSpeed. If absent, 2; if ratc also chooses the micro-batch, the lowest stage "
        "that needs no further gradient accumulation.",
        examples=[2],
    )
    offload_optimizer: Annotated[
        bool,
        Key(
            (Effect.MEMORY, Effect.COST),
            "the optimizer works in the host's memory, or in the GPU's",
            plan="engine.offload_optimizer",
            memory="depends",
        ),
    ] = Field(False, description="Keep optimizer states in host memory (DeepSpeed).")
    use_accelerate: Annotated[
        bool,
        Key((Effect.PLACEMENT,), "another launcher for the same step", plan="engine.use_accelerate"),
    ] = Field(True, description="Train with HuggingFace Accelerate; with false, with torch or DeepSpeed alone.")
    activation_checkpointing: Annotated[
        bool | Literal["auto"],
        Key(
            (Effect.MEMORY, Effect.COST),
            "activations are recomputed in the backward pass, or kept",
            memory="decides",
        ),
    ] = Field(
        False,
        description="Recompute activations in the backward pass, to save memory; `auto` does so for as few blocks of "
        "the model as are needed for the micro-batch to fit.",
    )
    allocator: Annotated[
        Literal["auto", "native", "expandable_segments"],
        Key(
            (Effect.MEMORY,),
            "the same tensors lie in other segments of the card's memory",
            memory="decides",
        ),
    ] = Field(
        "auto",
        description="How PyTorch's CUDA allocator reserves memory; `auto` takes expandable segments if a larger "
        "micro-batch or a lower ZeRO stage fits with them.",
    )
    compile: Annotated[bool, Key((Effect.COST,), "other kernels for the same step")] = Field(
        False, description="Compile the model with `torch.compile`."
    )
    callbacks: Annotated[
        list[
            Annotated[str, Field(pattern=CALLABLE)]
            | Annotated[dict[Annotated[str, Field(pattern=CALLABLE)], Arguments], Field(min_length=1, max_length=1)]
        ],
        Key((Effect.TRAINING,), "other code of your own is called by the loop"),
    ] = Field(
        [],
        description="List of `package.module:callable`s, each of which returns a `ratc_runtime.callbacks.Callback`. "
        "To pass arguments, write the entry as a mapping from the callable to its arguments.",
        examples=[["my_package.hooks:Report", {"my_package.hooks:Average": {"decay": 0.999}}]],
    )
