"""The section `training` of a spec: the length, the batches, the optimizer and the numbers of a training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ratc.spec.base import (
    CALLABLE,
    LOSS,
    OPTIMIZER,
    Arguments,
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
        description="Validation metric that is watched: `loss` or a score of the task; `checkpoint.best_metric` if "
        "absent.",
        examples=["loss", "dice"],
    )
    patience: PositiveInt = Field(
        ..., description="Epochs without an improvement that end the training.", examples=[10]
    )
    min_delta: NonNegative = Field(
        0.0, description="Smallest change of the metric that is an improvement.", examples=[0.001]
    )


class InitFrom(Section):
    """Weights of another run or file, with which the first start of a run begins."""

    path: Annotated[Text, Key((Effect.PLACEMENT,), "the weights lie in another place", path="folder")] = Field(
        ...,
        description="Output folder of a run (its best checkpoint), a checkpoint, `.safetensors`, or a state dict that "
        "`torch.save` wrote; relative to the spec's folder.",
        examples=["outputs/pretrained", "weights/backbone.safetensors"],
    )
    sha256: Annotated[
        Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None,
        Key(LEARNT, "training starts from other weights", plan="training.init_from.digest"),
    ] = Field(
        None,
        description="SHA-256 of the file, if it is not on the machine that compiles, or to be sure of it; otherwise "
        "it is computed.",
    )
    strict: bool = Field(
        True,
        description="Refuse names that only the model or only the file has; otherwise they are listed and left out.",
    )
    load: list[Pattern] = Field(["*"], description="Patterns of the names that are loaded.", examples=[["encoder.*"]])
    skip: list[Pattern] = Field(
        [], description="Patterns of names among these that are not loaded.", examples=[["head.*"]]
    )


class Extension(Section):
    """More epochs after those of a finished run, with a learning-rate schedule of their own."""

    after: PositiveInt = Field(
        ..., description="Epochs before it: the `epochs` of the plan that it extends.", examples=[100]
    )
    learning_rate: Positive | None = Field(
        None, description="Peak learning rate; `training.learning_rate` if absent.", examples=[1e-5]
    )
    warmup_epochs: NonNegative = Field(0.0, description="Linear warm-up, in epochs.")


class Training(Section):
    """How long, how fast, in what batches and with what numbers."""

    epochs: Annotated[
        PositiveInt,
        Key(
            (*LEARNT, Effect.COST),
            "another length, and with it another schedule",
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
        description="Epochs that were added to a finished run, each with the schedule of the rest: the output folder "
        "of the run before is continued.",
        examples=[[{"after": 100, "learning_rate": 1e-5}]],
    )
    early_stopping: Annotated[
        EarlyStopping | None,
        Key((*LEARNT, Effect.COST), "training ends after other epochs", memory="apart", rate=False),
    ] = Field(
        None,
        description="End before `epochs` if the validation metric no longer improves.",
        examples=[{"metric": "loss", "patience": 10}],
    )
    auto_batch_size: bool = Field(True, description="Let ratc choose the micro-batch if `batch_size` is absent.")
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
        description="Forward passes per optimizer step; worked out from the batch sizes if absent.",
        examples=[4],
    )
    last_batch: Annotated[
        Literal["drop", "keep"],
        Key(
            (*LEARNT, Effect.COST),
            "the rest of an epoch that fills no global batch is learnt from, or not",
            rate=True,
        ),
    ] = Field(
        "drop",
        description="The rest of an epoch that fills no global batch: left out, or made into a smaller step.",
    )
    learning_rate: Annotated[
        Positive | Annotated[str, Field(pattern="^auto$")], Key(memory="apart", option="learning-rate", order=5)
    ] = Field(
        1e-4,
        description="Peak learning rate; `auto`: the rate that `ratc tune lr` measured for this spec.",
        examples=[1e-4],
    )
    learning_rate_scaling: Literal["none", "linear", "sqrt"] = Field(
        "none",
        description="Rule that scales `learning_rate` by the global batch size over `base_batch_size`: `linear`, "
        "or `sqrt`, by the square root of that.",
    )
    base_batch_size: PositiveInt | None = Field(
        None,
        description="Reference batch size for `learning_rate_scaling`; if absent, that of a measured rate.",
        examples=[256],
    )
    optimizer: Annotated[
        Annotated[str, Field(pattern=OPTIMIZER)],
        Key((*LEARNT, Effect.MEMORY), "another optimizer, with other state", memory="depends", rate=True),
    ] = Field(
        "adamw",
        description="Optimizer. `muon` trains weights with two dimensions that are no embeddings, and `adamw` all "
        "others. `adamw_8bit` and `lion_8bit` keep their averages in 8 bits, with bitsandbytes, which `pip install "
        "'ratc[8bit]'` brings. `package.module:callable` returns a `torch.optim.Optimizer`. With DeepSpeed `adamw` "
        "and `adam` only, with FSDP2 also `sgd` and `lion`.",
        examples=["adamw", "my_package.optimizers:Sophia"],
    )
    optimizer_args: Annotated[
        Arguments, Key((*LEARNT, Effect.MEMORY), "other arguments of the optimizer", memory="depends", rate=True)
    ] = Field({}, description="Keyword arguments of an optimizer of your own.", examples=[{"momentum": 0.95}])
    momentum: Annotated[
        Annotated[float, Field(ge=0, lt=1)] | None,
        Key((*LEARNT, Effect.MEMORY), "other momentum, or none", memory="depends", rate=True),
    ] = Field(
        None, description="Momentum of `sgd` (0.9 if absent; 0 needs no memory) and `muon` (0.95).", examples=[0.9]
    )
    weight_decay: Annotated[NonNegative, Key(memory="apart", rate=True)] = Field(
        0.01,
        description="Weight decay of weights with two or more dimensions, so not of biases and norms. Added to "
        "the gradient with `adam` and `sgd`, decoupled with the others.",
        examples=[0.01],
    )
    betas: Annotated[Annotated[list[Probability], Field(min_length=2, max_length=2)], Key(rate=True)] = Field(
        [0.9, 0.999],
        description="Decay rates of the two averages of `adamw`, also beside `muon`, and of `adam`. Those of `lion`, "
        "`[0.9, 0.99]` if absent, are for its update and its average.",
    )
    frozen: Annotated[
        list[Pattern],
        Key((*LEARNT, Effect.MEMORY, Effect.COST), "other weights are trained", memory="depends", rate=True),
    ] = Field(
        [],
        description="Patterns (`*`, `?`, `[…]`) of the names of parameters that are not trained. Buffers, as the "
        "running means of batch norm, go on.",
        examples=[["backbone.*"]],
    )
    init_from: Annotated[
        InitFrom | None,
        Key(LEARNT, "training starts from other weights", memory="apart", rate=True),
    ] = Field(
        None,
        description="Start from the weights of another run or file.",
        examples=[{"path": "outputs/pretrained", "skip": ["head.*"]}],
    )
    scheduler: Annotated[Literal["cosine", "step", "none"], Key(memory="apart")] = Field(
        "cosine", description="Learning-rate schedule after warm-up."
    )
    warmup_epochs: Annotated[NonNegative, Key(memory="apart")] = Field(
        0.0, description="Linear warm-up, in epochs; counted in optimizer steps.", examples=[1]
    )
    min_learning_rate: NonNegative = Field(0.0, description="Learning rate at the end of the cosine schedule.")
    step_epochs: PositiveInt = Field(30, description="Schedule `step`: epochs between reductions.")
    step_gamma: Probability = Field(0.1, description="Schedule `step`: factor of each reduction.")
    gradient_clipping: Annotated[Positive | None, Key(rate=True)] = Field(
        1.0, description="Largest gradient norm; null is no clipping.", examples=[1.0]
    )
    loss: Annotated[Annotated[str, Field(pattern=LOSS)] | None, Key(plan="training.loss.name", rate=True)] = Field(
        None,
        description="`bce` (of one class), `cross_entropy` (of several), `dice`, `combined` (the mean of Dice and the "
        "other; of segmentation, if absent), `set_prediction` (of detection), `cross_entropy` (of classification) or "
        "`package.module:callable`.",
        examples=["combined", "my_package.losses:Focal"],
    )
    loss_args: Annotated[Arguments, Key(rate=True)] = Field(
        {}, description="Keyword arguments of the loss; built-in ones take weights, `smooth` and `label_smoothing`."
    )
    mixed_precision: Annotated[bool, Key(plan="training.precision")] = Field(
        True, description="bf16 from compute capability 8.0, fp16 with a scaler on 7.x, else fp32."
    )
    precision: Annotated[
        Literal["auto", "fp32", "fp16", "bf16"],
        Key(
            (*LEARNT, Effect.MEMORY),
            "other rounding: losses are not the same to the digit",
            memory="depends",
        ),
    ] = Field("auto", description="Ask for one precision instead.")
    deepspeed: Annotated[
        bool | None,
        Key(
            (Effect.RESUME, Effect.MEMORY),
            "checkpoints of the one engine are not read by the other",
            plan="engine.deepspeed",
            memory="depends",
        ),
    ] = Field(None, description="As `parallel.strategy: deepspeed`; false excludes it.")
    zero_stage: Annotated[
        Annotated[int, Field(ge=0, le=3)] | None,
        Key(
            (Effect.RESUME, Effect.MEMORY),
            "states are split over the ranks in another way; shards of another stage are not read",
            plan="engine.zero_stage",
            memory="decides",
        ),
    ] = Field(
        None,
        description="ZeRO stage. If absent, 2; or if ratc chooses the micro-batch, the lowest stage that needs no more "
        "accumulation.",
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
    ] = Field(True, description="Train through HuggingFace Accelerate; otherwise by torch or DeepSpeed alone.")
    activation_checkpointing: Annotated[
        bool | Literal["auto"],
        Key(
            (Effect.MEMORY, Effect.COST),
            "activations are computed again instead of kept, or kept",
            memory="decides",
        ),
    ] = Field(
        False,
        description="Recompute activations in backward, to save memory; `auto` does if nothing fits without.",
    )
    allocator: Annotated[
        Literal["auto", "native", "expandable_segments"],
        Key(
            (Effect.MEMORY,),
            "the same tensors in other segments of the card's memory",
            memory="decides",
        ),
    ] = Field(
        "auto",
        description="How PyTorch's CUDA allocator takes memory; `auto` takes expandable segments if a larger "
        "micro-batch or a lower ZeRO stage fits with them.",
    )
    compile: Annotated[bool, Key((Effect.COST,), "other kernels for the same step")] = Field(
        False, description="Compile the model with torch.compile."
    )
    callbacks: Annotated[
        list[
            Annotated[str, Field(pattern=CALLABLE)]
            | Annotated[dict[Annotated[str, Field(pattern=CALLABLE)], Arguments], Field(min_length=1, max_length=1)]
        ],
        Key((Effect.TRAINING,), "other code of your own is called by the loop"),
    ] = Field(
        [],
        description="`package.module:callable`s, each of which returns a `ratc_runtime.callbacks.Callback`; with "
        "arguments, a mapping of one to them.",
        examples=[["my_package.hooks:Report", {"my_package.hooks:Average": {"decay": 0.999}}]],
    )
