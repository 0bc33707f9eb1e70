"""The spec's shape: pydantic models, the one source of ``schemas/experiment.schema.json`` and of the docs' reference.

The compiler itself reads the generated schema (importing pydantic costs more than the whole of ``ratc validate``);
these classes are for generating it, for tools that want a typed spec, and for the test that both accept the same.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from ratc.spec.base import (
    CALLABLE,
    DATASET,
    LOSS,
    MEMORY,
    MODULE,
    OPTIMIZER,
    Arguments,
    ClassName,
    Count,
    Depth,
    Kernel,
    KeyPath,
    Line,
    Name,
    NonNegative,
    Pattern,
    Positive,
    PositiveInt,
    Probability,
    Section,
    Side,
    TaskName,
    Text,
    Variable,
    Width,
    Word,
)
from ratc.spec.compression import Compression
from ratc.spec.keys import LEARNT, Effect, Key
from ratc.spec.tuning import Tuning
from ratc.units import WALLTIME


class Model(Section):
    """The network. Keys beside `name`, `args` and `multi_scale` are arguments of the built-in model `rat`."""

    name: str = Field(
        "rat",
        pattern=f"^rat$|{CALLABLE}",
        description="`rat` (Resolution Aware Transformer) or `package.module:callable`, found from the spec's folder.",
        examples=["rat", "my_package.models:UNet"],
    )
    multi_scale: bool = Field(False, description="Feed image pyramids: one input per entry of `data.scales`.")
    args: Arguments = Field(
        {}, description="Keyword arguments of a `package.module:callable`.", examples=[{"width": 32}]
    )
    output: Name | None = Field(
        None,
        description="Key of the logits in a custom model's output, if that is a mapping.",
        examples=["out"],
    )
    attention_memory: Annotated[
        Literal["full", "fused", "chunked", "auto"],
        Key(
            (Effect.MEMORY, Effect.COST),
            "the same attention computed with other memory and speed",
            memory="decides",
            rate=False,
        ),
    ] = Field(
        "auto",
        description="RAT's dense attention: `full` keeps its maps, `fused` (FlexAttention, compute capability 8.0 and "
        "later) and `chunked` (anywhere, slower) recompute them in a fraction of the memory; `auto` takes `full`, and "
        "`fused` if that raises the micro-batch; without `fused`, `chunked` if `full` does not fit.",
    )
    spatial_dims: Literal[2, 3] = Field(2, description="Spatial dimensions of the input: 2 images, 3 volumes.")
    input_features: PositiveInt | None = Field(
        None, description="Input channels; taken from `data.channels`.", examples=[1, 3]
    )
    feature_dims: Width = Field(128, description="Width of the embedding.", examples=[128])
    num_blocks: Depth = Field(4, description="Pairs of grouping and multi-resolution attention.", examples=[4])
    num_heads: Width = Field(
        16, description="Attention heads; each must get an even share of `feature_dims`.", examples=[16]
    )
    iters: Depth = Field(3, description="Iterations of each grouping attention.", examples=[3])
    proj_kernel_size: Kernel = Field(7, description="Kernel of the first projection.", examples=[7])
    sga_kernel_size: Kernel = Field(7, description="Kernel of the strided convolutions.", examples=[7])
    stride: Side | None = Field(
        None, description="Stride of each grouping attention; half the kernel if absent.", examples=[3]
    )
    sga_attention_type: Literal["dense", "sparse"] = Field(
        "dense", description="`sparse` needs the natten package and CUDA."
    )
    mlp_ratio: Positive = Field(
        4.0, le=1024, description="Hidden width of the MLPs, over the embedding's.", examples=[4]
    )
    mlp_dropout: Probability = Field(0.0, description="Dropout in the MLPs.", examples=[0.1])
    mlp_bias: bool = Field(True, description="Bias in the MLPs.")
    qkv_bias: bool = Field(True, description="Bias in the query, key and value layers.")
    base_theta: Positive = Field(10000.0, description="Base of the rotary embedding's frequencies.", examples=[10000.0])
    learnable_rose: bool = Field(True, description="Learn the rotary frequencies.")
    learnable_rose_scaling: bool = Field(True, description="Learn the rotary scaling.")
    rose_initial_scaling: Literal["log", "rope", "identity", "linear", "power"] = Field(
        "log", description="Initial scaling of the rotary embedding."
    )
    init_jitter_std: NonNegative = Field(0.02, description="Noise on the initial rotary frequencies.", examples=[0.02])
    rotary_ratio: Probability = Field(0.5, description="Share of the embedding that is rotated.", examples=[0.5])
    frequency_scaling: Literal["none", "linear", "sqrt", "adaptive"] = Field(
        "sqrt", description="Scaling of the rotary frequencies with the number of dimensions."
    )
    leading_tokens: Literal[0] = Field(0, description="Context tokens; segmentation uses none.")
    spacing: Positive | None = Field(
        None, description="Pixel spacing of the input, in real-world units.", examples=[1.0]
    )


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
        "others. `package.module:callable` returns a `torch.optim.Optimizer`. With DeepSpeed `adamw` and `adam` "
        "only.",
        examples=["adamw", "my_package.optimizers:Lion"],
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
        [0.9, 0.999], description="Decay rates of the two averages of `adamw`, also beside `muon`, and of `adam`."
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
        list[Annotated[str, Field(pattern=CALLABLE)]],
        Key((Effect.TRAINING,), "other code of your own is called by the loop"),
    ] = Field(
        [],
        description="`package.module:callable`s, each of which returns a `ratc_runtime.callbacks.Callback`.",
        examples=[["my_package.hooks:Freeze"]],
    )


class Data(Section):
    """What is trained on and how it is loaded."""

    dataset: str = Field(
        "isic",
        pattern=DATASET,
        description="`isic` (images in the ISIC 2018 layout), `volumes` (NIfTI, in patches), `coco` (boxes in the COCO "
        "layout), `folders` (images in a folder for each class), `csv` (images and classes in a table) or "
        "`package.module:callable`.",
        examples=["isic", "volumes", "coco", "folders", "csv"],
    )
    args: Arguments = Field(
        {},
        description="Keyword arguments of a `package.module:callable`; `isic` and `volumes` take `mask_threshold`,"
        " `volumes` also `window`, `overlap` and `fill_nan`; `folders` and `csv` take `classes`, `csv` also `file`.",
    )
    data_dir: Annotated[
        Text | None,
        Key(
            (Effect.PLACEMENT,),
            "the data lies elsewhere; whether it is the same data ratc cannot see",
            rate=False,
            option="data-dir",
            order=1,
            path="folder",
        ),
    ] = Field(
        None,
        description="Folder of the data; relative to the spec's folder. Only beside `entrypoint` it may be absent.",
        examples=["/shared/ISIC2018", "data"],
    )
    image_size: Annotated[
        Side | Annotated[list[Side], Field(min_length=2, max_length=3)],
        Key((*LEARNT, Effect.MEMORY), "other images", memory="depends", option="image-size", order=7),
    ] = Field(
        256,
        description="Pixels images are resized to, or voxels of a volume's patches: one number for all sides, "
        "[height, width] or [depth, height, width].",
        examples=[256, [192, 256], [64, 96, 96]],
    )
    channels: Annotated[
        Annotated[int, Field(ge=1, le=1024)],
        Key((*LEARNT, Effect.MEMORY), "other images", memory="depends"),
    ] = Field(3, description="1 grey, 3 RGB; other numbers for `volumes` and your own data.")
    num_classes: Annotated[
        Annotated[int, Field(ge=1, le=256)],
        Key((*LEARNT, Effect.MEMORY), "other classes, and with them another head", memory="depends"),
    ] = Field(
        1,
        description="1: foreground and background. From 2 on a mask holds class numbers from 0, the background. Of "
        "detection: classes of objects; of classification: classes of images, from 2 on.",
        examples=[3],
    )
    class_names: Annotated[list[ClassName] | None, Key((Effect.COSMETIC,), "other words for the same classes")] = Field(
        None,
        description="Names of the classes, `num_classes` of them; numbers if absent.",
        examples=[["background", "grey matter", "white matter"]],
    )
    ignore_index: Annotated[
        Annotated[int, Field(ge=0, le=255)] | None, Key(LEARNT, "other pixels count", memory="depends")
    ] = Field(
        None, description="The number in a mask for pixels that do not count, with several classes.", examples=[255]
    )
    scales: Annotated[
        Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1, max_length=8)] | None,
        Key((*LEARNT, Effect.MEMORY), "another image pyramid", memory="depends"),
    ] = Field(
        None,
        description="Image pyramid for `model.multi_scale`: factors of `image_size`, the first is 1.",
        examples=[[1.0, 0.5]],
    )
    on_bad_sample: Literal["fail", "skip"] = Field("fail", description="Reaction to a missing or corrupt image.")
    augmentations: Annotated[
        list[Annotated[dict[Variable, Arguments], Field(min_length=1, max_length=1)]],
        Key(LEARNT, "other random changes of the training images"),
    ] = Field(
        [],
        description="Random changes of the training images, in order: transforms of torchvision by name, with their "
        "arguments; masks and boxes move along.",
        examples=[[{"RandomHorizontalFlip": {"p": 0.5}}, {"ColorJitter": {"brightness": 0.2}}]],
    )
    cache: Annotated[
        Literal["none", "memory", "disk"],
        Key(
            (Effect.PLACEMENT,),
            "decoded images are kept in another way; what is learnt is the same",
            rate=False,
        ),
    ] = Field(
        "none",
        description="Keep decoded images from epoch to epoch, one copy a node: in memory, or in a file under "
        "`RAT_CACHE_DIR` or the output folder.",
    )
    cache_size: Annotated[
        Annotated[str, Field(pattern=MEMORY)] | PositiveInt | None,
        Key(
            (Effect.PLACEMENT,),
            "decoded images are kept in another way; what is learnt is the same",
            rate=False,
        ),
    ] = Field(
        None,
        description="Most that the cache may hold on a node; a bare number is in GB. If absent, a third of the "
        "host's memory, or 64 GB of disk.",
        examples=["8GB"],
    )
    auto_optimize: bool = Field(
        True, description="Let ratc choose workers, pinning and prefetching if they are absent."
    )
    num_workers: Annotated[
        Annotated[int, Field(ge=0, le=1024)] | None,
        Key(
            (Effect.PLACEMENT,),
            "other loader processes; the order of samples stays",
            rate=False,
            option="num-workers",
            order=8,
        ),
    ] = Field(None, description="Loader processes per GPU.", examples=[4])
    pin_memory: Annotated[bool | None, Key((Effect.PLACEMENT,), "another way to copy to the GPU", rate=False)] = Field(
        None, description="Page-locked host buffers; if absent, on a GPU."
    )
    prefetch_factor: Annotated[
        PositiveInt | None, Key((Effect.PLACEMENT,), "more or fewer batches prepared ahead", rate=False)
    ] = Field(
        None,
        description="Batches each loader process prepares ahead; if absent, one and its share of an optimizer step, "
        "within the host's memory.",
        examples=[2],
    )


class Entrypoint(Section):
    """A program of your own that trains, instead of the built-in loop: one of `script`, `module` and `command`.

    Texts of `args` and `command` may hold placeholders: `${micro_batch_size}` is the number that the plan has.
    """

    script: Text | None = Field(
        None, description="Python script; relative to the spec's folder.", examples=["train.py"]
    )
    module: Annotated[str, Field(max_length=200, pattern=MODULE)] | None = Field(
        None, description="Python module, as `python -m` runs it from the spec's folder.", examples=["my_package.train"]
    )
    command: Annotated[list[Text], Field(min_length=1)] | None = Field(
        None,
        description="Another command: the program and its first arguments, which no shell reads.",
        examples=[["bash", "train.sh"]],
    )
    args: list[str | int | float | bool] = Field(
        [],
        description="Arguments of the program, one an entry; no shell reads them.",
        examples=[["--batch-size", "${micro_batch_size}", "--output", "${output_dir}"]],
    )


class Evaluation(Section):
    """How a model is scored, beside the scores that every run has."""

    hausdorff: bool = Field(
        False,
        description="Also Hausdorff distances on val and test (95th percentile and maximum), in units of "
        "`model.spacing`; they take the CPU's time.",
    )


class Detection(Section):
    """The head of `task_type: detection`: queries that look for one object each."""

    queries: Annotated[int, Field(ge=1, le=2000)] = Field(
        100, description="The most objects that can be found in an image.", examples=[100]
    )
    decoder_layers: Annotated[int, Field(ge=1, le=24)] = Field(3, description="Layers of the decoder.", examples=[3])


class PartData(Section):
    """The data of one of several tasks; sizes, channels, augmentations and loading stand under `data`."""

    folder: Annotated[
        Text,
        Key(
            (Effect.PLACEMENT,),
            "the task's data lie elsewhere; whether it is the same data ratc cannot see",
        ),
    ] = Field(".", description="Folder of the task's data, within `data.data_dir`.", examples=["lesions"])
    dataset: str | None = Field(
        None,
        pattern=DATASET,
        description="As `data.dataset`; the first of the task if absent.",
        examples=["isic", "coco"],
    )
    args: Arguments = Field({}, description="As `data.args`.")
    num_classes: Annotated[
        Annotated[int, Field(ge=1, le=256)],
        Key((*LEARNT, Effect.MEMORY), "other classes, and with them another head"),
    ] = Field(1, description="As `data.num_classes`.", examples=[3])
    class_names: Annotated[list[ClassName] | None, Key((Effect.COSMETIC,), "other words for the same classes")] = Field(
        None, description="As `data.class_names`."
    )
    ignore_index: Annotated[int, Field(ge=0, le=255)] | None = Field(None, description="As `data.ignore_index`.")


class Part(Section):
    """One of several tasks: its head, its loss and its data."""

    task_type: Literal["segmentation", "detection", "classification"] = Field(..., description="The kind of task.")
    weight: Annotated[Positive, Key(LEARNT, "another weight of the task's loss")] = Field(
        1.0, description="Factor of its loss in the sum that is trained on.", examples=[0.5]
    )
    loss: Annotated[str, Field(pattern=LOSS)] | None = Field(None, description="As `training.loss`.")
    loss_args: Arguments = Field({}, description="As `training.loss_args`.")
    data: Annotated[PartData, Key(LEARNT, "other data of the task")] = Field(PartData(), description="Its data.")
    detection: Detection = Field(Detection(), description="The head of `task_type: detection`.")


class Logging(Section):
    """Where the curves go."""

    backend: Annotated[Literal["tensorboard", "none"], Key(plan="logging.tensorboard")] = Field(
        "tensorboard", description="Local event files."
    )
    use_mlflow: Annotated[bool, Key(plan="logging.mlflow")] = Field(
        True, description="Track with MLflow: SQLite in the output folder, or MLFLOW_TRACKING_URI if set."
    )
    mlflow_experiment_name: Annotated[Text | None, Key(memory="apart")] = Field(
        None, description="MLflow experiment; `experiment_name` if absent."
    )
    use_wandb: Annotated[bool, Key(plan="logging.wandb")] = Field(
        False, description="Track with Weights & Biases, which `pip install 'ratc[wandb]'` brings.", examples=[True]
    )
    wandb_project: Annotated[Text | None, Key(memory="apart")] = Field(
        None, description="Weights & Biases project; `experiment_name` if absent."
    )
    wandb_mode: Literal["online", "offline"] = Field(
        "online", description="`offline` keeps runs in the output folder to be sent later; WANDB_MODE comes before it."
    )
    log_every_steps: PositiveInt = Field(10, description="Optimizer steps between points of the training curves.")


class Distributed(Section):
    """How processes talk."""

    auto_detect: bool = Field(True, description="Let ratc choose the backend for the hardware.")
    backend: Annotated[Literal["nccl", "gloo"] | None, Key(plan="parallel.backend")] = Field(
        None, description="Collectives; nccl on GPUs and gloo on CPUs if absent."
    )
    timeout_seconds: Annotated[
        PositiveInt | None,
        Key(
            (Effect.PLACEMENT,),
            "a run that hangs is ended sooner or later",
            plan="parallel.timeout_seconds",
        ),
    ] = Field(
        1800,
        description="Seconds without progress after which a run ends and names the hanging process; null: never.",
        examples=[1800, 600],
    )


class Parallel(Section):
    """How model and optimizer are spread over the processes."""

    strategy: Annotated[
        Literal["auto", "ddp", "fsdp2", "deepspeed"] | None,
        Key(
            (Effect.RESUME, Effect.MEMORY),
            "checkpoints of one strategy are not read by another",
            plan="parallel.strategy",
            memory="decides",
        ),
    ] = Field(
        None,
        description="`ddp` keeps all states on each process, `fsdp2` and `deepspeed` (ZeRO) shard them; `auto` compares "
        "the three by predicted memory and bytes on the wire. If absent, `deepspeed` on several GPUs with Accelerate, "
        "else `ddp`.",
        examples=["fsdp2", "auto"],
    )
    shard: Annotated[
        Literal["full", "grads", "hybrid"],
        Key((Effect.MEMORY, Effect.COST), "other states are sharded", plan="fsdp2.shard", memory="depends"),
    ] = Field(
        "full",
        description="FSDP2: `full` shards weights, gradients and optimizer states; `grads` gathers weights once a step "
        "instead of twice; `hybrid` shards within groups of `shard_size` processes, and the groups hold the same.",
    )
    shard_size: Annotated[
        Annotated[int, Field(ge=2)] | None,
        Key(
            (Effect.MEMORY, Effect.COST),
            "the same states on more or fewer processes",
            plan="fsdp2.shard_size",
            memory="depends",
        ),
    ] = Field(
        None,
        description="FSDP2: processes of a group of `shard: hybrid`; those of a node if absent. It divides the number of "
        "all processes.",
        examples=[8],
    )
    wrap: Annotated[
        list[Text] | Annotated[str, Field(pattern="^auto$")],
        Key((Effect.MEMORY, Effect.COST), "other modules are gathered together", plan="fsdp2.wrap", memory="depends"),
    ] = Field(
        "auto",
        description="FSDP2: classes of the modules that are gathered each by itself; `auto` takes those of repeated "
        "layers.",
        examples=["auto", ["Block"]],
    )
    offload: Annotated[
        bool,
        Key(
            (Effect.MEMORY, Effect.COST),
            "shards lie in the host's memory, or in the GPU's",
            plan="fsdp2.offload",
            memory="depends",
        ),
    ] = Field(False, description="FSDP2: keep shards in host memory, where the optimizer works.")
    mixed_precision: Annotated[
        Literal["fp32", "bf16"],
        Key(
            (Effect.TRAINING, Effect.MEMORY),
            "weights are gathered with another rounding",
            plan="fsdp2.weights",
            memory="depends",
        ),
    ] = Field(
        "fp32",
        description="FSDP2: precision in which weights are gathered. `fp32` computes what `ddp` does; `bf16` halves "
        "the traffic, and needs `precision: bf16`.",
    )


class Resources(Section):
    """Resources of the job. Absent on `local`: all of the machine."""

    cluster: Annotated[Text | None, Key(option="cluster", order=9, path="name")] = Field(
        None,
        description="Cluster facts: a name, found as `clusters/<name>.yaml` beside the spec or above it, or a file.",
        examples=["example-slurm", "../clusters/ours.yaml"],
    )
    nodes: Annotated[
        PositiveInt,
        Key((Effect.COST,), "another number of nodes", plan="parallel.nodes", option="nodes", order=10),
    ] = Field(1, description="Machines.", examples=[1, 4])
    num_gpus: Annotated[
        Count | None,
        Key(
            (Effect.COST,),
            "another number of processes; the order of samples stays",
            plan="parallel.world_size",
            memory="depends",
            option="num-gpus",
            order=11,
        ),
    ] = Field(None, description="GPUs in all; 0 trains on the CPU.", examples=[8])
    gpus_per_node: Annotated[
        Count | None,
        Key((Effect.COST,), "another number of processes on a node", plan="parallel.processes_per_node"),
    ] = Field(None, description="GPUs on each node, instead of `num_gpus`.", examples=[4])
    gpu: Annotated[
        Text | None,
        Key((Effect.COST, Effect.MEMORY), "another card", plan="hardware.card", option="gpu", order=12),
    ] = Field(None, description="Card: a name of the catalogue.", examples=["a100-80", "h100", "v100-32", "rtx4090"])
    cpus: PositiveInt | None = Field(None, description="CPU cores on each node.", examples=[32])
    memory: Annotated[Annotated[str, Field(pattern=MEMORY)] | PositiveInt | None, Key(option="memory", order=13)] = (
        Field(
            None, description="Host memory on each node, more than 0; a bare number is in GB.", examples=["128GB", 128]
        )
    )
    walltime: Annotated[str | None, Key(option="walltime", order=14)] = Field(
        None, pattern=WALLTIME, description="Time limit: HH:MM, HH:MM:SS or D-HH:MM:SS.", examples=["24:00:00"]
    )
    partition: Annotated[Word | None, Key(option="partition", order=15)] = Field(
        None, description="Slurm partition.", examples=["gpu"]
    )
    queue: Annotated[Word | None, Key(option="queue", order=16)] = Field(
        None, description="LSF queue.", examples=["gpu_h100"]
    )
    account: Annotated[Word | None, Key(option="account", order=17)] = Field(
        None, description="Account or project charged.", examples=["imaging"]
    )
    qos: Annotated[Word | None, Key(option="qos", order=18)] = Field(
        None, description="Slurm quality of service.", examples=["normal"]
    )
    node_type: Name | None = Field(
        None, description="Kind of node, if a partition has several; a name of the cluster facts.", examples=["h100"]
    )
    job_name: Line | None = Field(
        None, description="Name of the job in the queue; `experiment_name` if absent.", examples=["RAT on ISIC"]
    )


class Environment(Section):
    """What the job script sets up before it starts. One of `venv`, `conda` and `container`."""

    modules: list[Text] = Field([], description="Environment modules to load, in order.", examples=[["cuda/12.4"]])
    venv: Annotated[Text | None, Key(path="folder")] = Field(
        None, description="Virtual environment; relative to the spec's folder.", examples=[".venv"]
    )
    conda: Annotated[Text | None, Key(path="name")] = Field(
        None, description="Conda environment, by name or path.", examples=["rat"]
    )
    container: Annotated[Text | None, Key(path="name")] = Field(
        None, description="Container image.", examples=["images/rat.sif"]
    )
    variables: dict[Variable, str | int | float] = Field(
        {}, description="Variables to export.", examples=[{"OMP_NUM_THREADS": 4}]
    )
    secrets: list[Variable] = Field(
        [],
        description="Names of variables that must be set when the job starts; their values are never written.",
        examples=[["WANDB_API_KEY"]],
    )
    setup: list[Text] = Field([], description="Shell lines to run first, as they are.", examples=[["ulimit -n 65536"]])


class Checkpoint(Section):
    """What is kept of the model, and when."""

    every_epochs: PositiveInt = Field(1, description="Epochs between checkpoints.")
    every_steps: PositiveInt | None = Field(
        None, description="Optimizer steps between checkpoints, besides those of `every_epochs`.", examples=[500]
    )
    keep_last: PositiveInt = Field(
        2, description="Newest checkpoints to keep; with 2, one that turns out damaged costs an interval, not the run."
    )
    keep_best: PositiveInt = Field(1, description="Best checkpoints to keep, by `best_metric`.")
    asynchronous: Annotated[
        bool | Literal["auto"],
        Key(
            (Effect.PLACEMENT, Effect.MEMORY),
            "checkpoints are written from a copy in host memory, or training waits",
        ),
    ] = Field(
        "auto",
        description="Write checkpoints while training goes on, from a copy in host memory; `auto`: on a GPU, without "
        "DeepSpeed.",
    )
    best_metric: Annotated[Text | None, Key((Effect.TRAINING,), "another epoch is kept as the best")] = Field(
        None,
        description="Validation metric that chooses the best: `loss` or a score of the task; its first if absent.",
        examples=["dice", "iou", "loss"],
    )
    resume: Annotated[Literal["auto", "never"], Key((Effect.PLACEMENT,), "whether an interrupted run is continued")] = (
        Field("auto", description="Continue from the last checkpoint of the same lock.")
    )
    own_code: Annotated[
        Literal["strict", "warn"],
        Key((Effect.PLACEMENT,), "whether own code that changed keeps a run from starting"),
    ] = Field(
        "strict",
        description="If code of your own changed since it was compiled, or since the checkpoint was trained: "
        "`strict` refuses to start, `warn` says so and goes on.",
    )
    requeue: Literal["auto", "never"] = Field(
        "auto",
        description="`auto`: a job that is preempted or out of time saves and is requeued, if the cluster allows it.",
    )
    max_restarts: Count = Field(20, description="Times a job may be requeued.")
    stop_before_seconds: Annotated[int, Field(ge=60, le=65_535)] = Field(
        180, description="Seconds before the walltime at which the job is told to save.", examples=[300]
    )


class Sweep(Section):
    """An array of runs on one cluster, a point each: one of `grid`, `list` and `points`."""

    grid: dict[KeyPath, Annotated[list[Any], Field(min_length=1)]] | None = Field(
        None,
        description="Values to combine, by key: every combination is a point, the last key varies fastest.",
        examples=[{"training.learning_rate": [1e-4, 3e-4], "seed": [1, 2, 3]}],
    )
    entries: list[dict[KeyPath, Any]] | None = Field(
        None, alias="list", description="Points, one after the other.", examples=[[{"seed": 1}, {"seed": 2}]]
    )
    points: dict[Name, dict[KeyPath, Any]] | None = Field(
        None, description="Points by name.", examples=[{"small": {"model.feature_dims": 64}}]
    )
    max_parallel: Annotated[
        PositiveInt | None, Key((Effect.PLACEMENT,), "more or fewer points at a time", script=True)
    ] = Field(None, description="Points that may run at the same time.", examples=[4])


class Spec(Section):
    """What to train. `ratc compile` works out how."""

    model_config = Section.model_config | ConfigDict(
        # The built-in loop needs data; a program of your own finds its own.
        json_schema_extra={
            "if": {"not": {"required": ["entrypoint"], "properties": {"entrypoint": {"type": "object"}}}},
            "then": {
                "required": ["data"],
                "properties": {"data": {"required": ["data_dir"], "properties": {"data_dir": {"type": "string"}}}},
            },
        }
    )

    @model_validator(mode="after")
    def _has_data(self) -> Spec:
        if self.entrypoint is None and self.data.data_dir is None:
            raise ValueError("the key `data.data_dir` is missing")
        return self

    experiment_name: Annotated[
        Name,
        Key(
            (Effect.COSMETIC,),
            "another name",
            memory="apart",
            job=True,
            option="experiment-name",
            order=19,
        ),
    ] = Field(
        ...,
        description="Names the run and its folders: letters, digits, `.`, `_` and `-`.",
        examples=["isic-rat-128"],
    )
    description: Annotated[str, Key((Effect.COSMETIC,), "words only", memory="apart")] = Field(
        "", description="One line for people."
    )
    task_type: Annotated[
        Literal["segmentation", "detection", "classification", "custom", "multi"],
        Key(LEARNT, "another task", memory="depends", rate=True, option="experiment-type", order=20),
    ] = Field(
        "segmentation",
        description="The kind of task. With `custom`, model, data and loss are your own; `multi` has `tasks`.",
    )
    seed: Annotated[
        Annotated[int, Field(ge=0, lt=2**32)],
        Key(
            LEARNT,
            "other initial weights and another order of samples",
            memory="apart",
            option="seed",
            order=21,
        ),
    ] = Field(42, description="Seed of every random number.")
    debug: Annotated[
        bool,
        Key(
            (Effect.TRAINING, Effect.COST),
            "a debug run is short and proves nothing about the whole",
            option="debug",
            order=22,
        ),
    ] = Field(False, description="A short, verbose run: one epoch of a few steps, no loader processes.")
    output_dir: Annotated[
        Text | None,
        Key(
            (Effect.PLACEMENT,),
            "another folder; a run starts from the beginning there",
            memory="apart",
            job=True,
            option="output-dir",
            order=2,
            path="folder",
        ),
    ] = Field(None, description="Folder of the run; `outputs/<experiment_name>` beside the spec if absent.")
    model: Annotated[Model, Key((*LEARNT, Effect.MEMORY), "another model", memory="depends", rate=True)] = Field(
        Model(), description="The network."
    )
    training: Annotated[Training, Key(LEARNT, "other training")] = Field(Training(), description="The training.")
    data: Annotated[Data, Key(LEARNT, "other data", rate=True)] = Field(Data(), description="The data.")
    entrypoint: Annotated[
        Entrypoint | None, Key(LEARNT, "another program trains, or the same one with other arguments", memory="apart")
    ] = Field(None, description="A program of your own, instead of the built-in loop.")
    evaluation: Annotated[Evaluation, Key((Effect.COST,), "other scores of the same model")] = Field(
        Evaluation(), description="The scores."
    )
    detection: Annotated[Detection, Key((*LEARNT, Effect.MEMORY), "another head", memory="depends", rate=True)] = Field(
        Detection(), description="The head of `task_type: detection`."
    )
    tasks: Annotated[
        Annotated[dict[TaskName, Part], Field(min_length=2, max_length=16)] | None,
        Key((*LEARNT, Effect.MEMORY), "another task", memory="depends", rate=True),
    ] = Field(
        None,
        description="The tasks of `task_type: multi`, by names of your choice: they share the model, and each has a "
        "head, a loss and data of its own.",
        examples=[
            {
                "lesions": {"task_type": "segmentation", "data": {"folder": "isic"}},
                "cells": {"task_type": "detection", "weight": 0.5, "data": {"folder": "cells", "num_classes": 3}},
            }
        ],
    )
    logging: Annotated[Logging, Key((Effect.COSMETIC,), "other records of the same run", job=True)] = Field(
        Logging(), description="Tracking."
    )
    parallel: Parallel = Field(Parallel(), description="Sharding.")
    distributed: Distributed = Field(Distributed(), description="Communication.")
    launcher: Annotated[
        Literal["accelerate", "torchrun", "srun", "none"] | None,
        Key((Effect.PLACEMENT,), "another way to start the processes", script=True),
    ] = Field(
        None,
        description="Command that starts the processes of a node; `accelerate` if absent, or `torchrun` with "
        "`use_accelerate: false`. For an `entrypoint` also `srun` (Slurm starts a process per GPU) and `none` (one "
        "process on each node); `torchrun` if absent, for a command `none`.",
    )
    resources: Annotated[
        Resources, Key((Effect.PLACEMENT,), "other hardware, or another job, is asked for", script=True)
    ] = Field(Resources(), description="Resources that the job asks for.")
    environment: Annotated[Environment, Key((Effect.PLACEMENT,), "another environment for the script", script=True)] = (
        Field(Environment(), description="The job's surroundings.")
    )
    checkpoint: Annotated[Checkpoint, Key((Effect.PLACEMENT,), "other checkpoints of the same run")] = Field(
        Checkpoint(), description="Checkpoints."
    )
    sweep: Annotated[Sweep | None, Key((Effect.TRAINING, Effect.COST), "other points in the array", script=True)] = (
        Field(None, description="An array of runs that differ in a few values.")
    )
    compression: Annotated[Compression | None, Key(LEARNT, "other weights are zero or rounded while training")] = Field(
        None, description="A smaller model, while training or after it."
    )
    tuning: Annotated[Tuning | None, Key((Effect.TRAINING, Effect.COST), "another study", script=True)] = Field(
        None, description="A study over values."
    )
