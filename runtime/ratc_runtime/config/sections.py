"""The sections of a lock, as frozen pydantic models with the descriptions of their keys."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
_Self = TypeVar("_Self", bound="Section")


class Section(BaseModel):
    """A mapping of known keys, which does not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=(), defer_build=True)

    def replace(self: _Self, **changes: Any) -> _Self:
        """Return a copy with other values, which are not validated. Raises TypeError for a name that is no field."""
        unknown = changes.keys() - type(self).model_fields.keys()
        if unknown:
            raise TypeError(f"{type(self).__name__} has no {', '.join(sorted(unknown))}")
        return self.model_copy(update=changes)


class Model(Section):
    """The model."""

    name: str = Field(description="`rat`, or `package.module:callable`.")
    multi_scale: bool = Field(description="Whether the model takes an image pyramid (`data.scales`).")
    args: dict[str, Any] = Field(description="Keyword arguments of the callable.")
    attention_memory: Literal["full", "fused", "chunked"] = Field(
        description="How RAT computes its dense attention: `full` keeps its maps, `fused` (FlexAttention) "
        "and `chunked` compute them again."
    )
    output: str | None = Field(
        default=None,
        description="Key of the logits if a custom model returns a mapping; null if its output is used as it is.",
    )


class Loss(Section):
    """The loss."""

    name: str = Field(
        description="`bce`, `cross_entropy`, `dice`, `combined`, `set_prediction` (detection), or "
        "`package.module:callable`."
    )
    args: dict[str, Any] = Field(description="Keyword arguments of the loss.")


class EarlyStopping(Section):
    """The end of a training that no longer gets better. It is there only if the spec has such a section."""

    metric: str = Field(description="Validation metric that is watched: a score of the task, or `loss`.")
    patience: Positive = Field(description="Epochs without an improvement that end the training.")
    min_delta: Annotated[float, Field(ge=0)] = Field(
        description="Smallest change of the metric that is an improvement."
    )


class Extension(Section):
    """Epochs that were added to a plan, with a schedule of their own."""

    after: Positive = Field(description="Epochs before it.")
    learning_rate: PositiveFloat = Field(description="Learning rate after its warm-up.")
    warmup_epochs: Annotated[float, Field(ge=0)] = Field(description="Length of its linear warm-up.")


class InitFrom(Section):
    """The weights that the first start of the run loads. It is there only if the spec has such a section."""

    path: str = Field(
        description="File of the weights, or folder of a DeepSpeed checkpoint, relative to the spec's folder."
    )
    digest: Annotated[str, Field(pattern="^sha256:[0-9a-f]{64}$")] = Field(
        description="Digest of the file. The run is refused if it differs."
    )
    strict: bool = Field(description="Whether names that only the model or only the file has are refused.")
    load: list[str] = Field(description="Patterns of the names that are loaded: `*`, `?`, `[…]`.")
    skip: list[str] = Field(description="Patterns of names among these that are not loaded.")


class Training(Section):
    """How weights are learnt, and in which pieces a global batch is computed."""

    epochs: Positive = Field(description="Passes over the training data.")
    max_steps_per_epoch: int | None = Field(
        description="Most optimizer steps of an epoch; null is no limit. Debug runs set it."
    )
    extensions: list[Extension] = Field(
        default=[],
        description="Epochs that were added to a finished run: each begins the schedule of the learning rate again.",
    )
    early_stopping: EarlyStopping | None = None
    learning_rate: float = Field(description="Learning rate after the warm-up.")
    optimizer: Annotated[str, Field(pattern="^(adamw|adam|sgd|adafactor|muon)$|:")] = Field(
        description="`adamw`, `adam`, `sgd`, `adafactor`, `muon` (which trains weights with two dimensions that are no "
        "embeddings, and `adamw` all others) or `package.module:callable`."
    )
    optimizer_args: dict[str, Any] = Field(
        default={}, description="Keyword arguments of the callable beside the parameter groups, `params`."
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="Momentum of `sgd` and `muon`; null with other optimizers."
    )
    weight_decay: float = Field(
        description="Weight decay: added to the gradient with `adam` and `sgd`, else decoupled. Biases and norms have "
        "none."
    )
    betas: list[float] = Field(
        min_length=2, max_length=2, description="Decay rates of the two moments of `adamw` and `adam`."
    )
    frozen: list[str] = Field(
        default=[], description="Patterns of the names of parameters that are not trained: `*`, `?`, `[…]`."
    )
    init_from: InitFrom | None = None
    scheduler: Literal["cosine", "step", "none"] = Field(description="Learning rate schedule after the warm-up.")
    warmup_epochs: float = Field(description="Length of the linear warm-up, counted in optimizer steps.")
    min_learning_rate: float = Field(description="Learning rate at the end of `cosine`.")
    step_epochs: Positive = Field(description="With `step`, epochs between two reductions of the learning rate.")
    step_gamma: float = Field(description="With `step`, the factor of each reduction.")
    gradient_clipping: float | None = Field(description="Largest norm of the gradient; null is no clipping.")
    loss: Loss
    precision: Literal["fp32", "fp16", "bf16"] = Field(description="Arithmetic of the forward and backward passes.")
    tf32: bool = Field(description="Whether products of float32 matrices may be computed in TF32.")
    global_batch_size: Positive = Field(
        description="Samples in an optimizer step: `micro_batch_size` x `gradient_accumulation_steps` x "
        "`parallel.world_size`."
    )
    micro_batch_size: Positive = Field(description="Samples in one forward pass of one process.")
    gradient_accumulation_steps: Positive = Field(description="Forward passes of a process in an optimizer step.")
    last_batch: Literal["drop", "keep"] = Field(
        description="Treatment of the samples of an epoch that fill no global batch."
    )
    activation_checkpointing: bool = Field(
        description="Whether activations are computed again in the backward pass instead of kept."
    )
    compile: bool = Field(description="Whether `torch.compile` compiles the model.")
    callbacks: list[str] = Field(description="`package.module:callable`s, each of which makes a callback.")
    callback_args: list[dict[str, Any]] = Field(
        default=[], description="Keyword arguments of each of `callbacks`, in their order; empty if none has any."
    )
    allocator: Literal["native", "expandable_segments"] | None = Field(
        default=None,
        description="How torch's CUDA allocator takes memory; null on the CPU. Locks of earlier versions lack it.",
    )


class Engine(Section):
    """The engine: the library that carries out the training step."""

    use_accelerate: bool = Field(description="Whether Accelerate places and launches the run.")
    deepspeed: bool = Field(description="Whether DeepSpeed does the step, as `deepspeed.json` says.")
    zero_stage: int = Field(description="DeepSpeed's ZeRO stage: the states partitioned over processes, 0 to 3.")
    offload_optimizer: bool = Field(description="Whether the optimizer's states lie in host memory.")


class Fsdp2(Section):
    """How FSDP2 shards the model over processes. It is there only if FSDP2 does the step."""

    shard: Literal["full", "grads", "hybrid"] = Field(
        description="`full`: weights, gradients and the optimizer's states; `grads`: weights stay whole from the "
        "forward pass to the end of the backward one; `hybrid`: as `full`, within groups of `shard_size` processes."
    )
    shard_size: Annotated[int, Field(ge=2)] = Field(
        description="Processes over which one copy of the model is sharded; it divides `parallel.world_size`."
    )
    wrap: list[str] | None = Field(
        description="Classes of the modules that are gathered each by itself; null: those of repeated layers, found "
        "at the start."
    )
    offload: bool = Field(description="Whether shards lie in host memory, where the optimizer works.")
    weights: Literal["fp32", "bf16"] = Field(
        description="Precision in which weights are gathered. Gradients are reduced in fp32."
    )


class Folds(Section):
    """The fold of a cross-validation. It is there only if the spec has such a section."""

    number: Annotated[int, Field(ge=2)] = Field(description="Folds into which train and val are divided together.")
    index: Annotated[int, Field(ge=0)] = Field(
        description="The fold that validates, from 0; the others are trained on."
    )
    seed: Annotated[int, Field(ge=0)] = Field(description="Seed of the division.")
    group: str | None = Field(
        description="Regular expression of names: samples with equal matches are in one fold; null if each sample, or "
        "each volume, is by itself."
    )


class Data(Section):
    """The data set, and how samples are decoded, kept and loaded."""

    dataset: str = Field(
        description="`isic`, `volumes`, `coco`, `folders`, `csv`, or `package.module:callable`; `joint` with "
        "`task_type: multi`."
    )
    args: dict[str, Any] = Field(description="Keyword arguments of the data set.")
    data_dir: str = Field(
        description="Folder of the data, relative to the spec's folder, which run.sh changes to. `--data-dir` or "
        "`RAT_DATA_DIR` replaces it when the script runs."
    )
    image_size: list[Annotated[int, Field(gt=0, le=65_536)]] = Field(
        min_length=2, max_length=3, description="Height and width; for patches of volumes depth, height and width."
    )
    channels: Annotated[int, Field(ge=1, le=1024)] = Field(description="1 for grey images, 3 for RGB.")
    num_classes: Annotated[int, Field(ge=1, le=256)] = Field(
        description="1 means foreground and background. From 2 on masks hold class numbers, and 0 is the background. "
        "For detection, the classes of objects; for classification, those of images."
    )
    class_names: list[str] = Field(description="Names of the classes, `num_classes` of them.")
    ignore_index: int | None = Field(description="Class number of pixels that do not count; null if all count.")
    scales: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        min_length=1, max_length=8, description="Image pyramid; more than one scale needs `model.multi_scale`."
    )
    folds: Folds | None = None
    on_bad_sample: Literal["fail", "skip"] = Field(description="Reaction to a sample that cannot be read.")
    augmentations: list[dict[str, Any]] = Field(
        description="Augmentations of the training split in their order, such as `{RandomHorizontalFlip: {p: 0.5}}`."
    )
    cache: Literal["none", "memory", "disk"] = Field(description="Place in which decoded images are kept.")
    cache_size_bytes: int | None = Field(description="Largest size of the cache on a node; null without a cache.")
    num_workers: int = Field(ge=0, le=1024, description="Loader processes of each training process.")
    pin_memory: bool = Field(description="Whether batches are copied to pinned host memory.")
    persistent_workers: bool = Field(description="Whether loader processes live on from epoch to epoch.")
    prefetch_factor: Positive | None = Field(
        description="Batches that each loader process prepares ahead; null if `num_workers` is 0."
    )


class Evaluation(Section):
    """Scores on the val and test splits beside those of the task."""

    hausdorff: bool = Field(description="Whether Hausdorff distances are computed on val and test, too.")
    scores: dict[str, str] = Field(
        default={}, description="Scores of your own by name: `package.module:callable`s, each of which returns one."
    )


class Detection(Section):
    """The detection head. It is there with `task_type: detection`, and only with it."""

    queries: Annotated[int, Field(ge=1, le=2000)] = Field(description="Object queries: the most objects in an image.")
    decoder_layers: Annotated[int, Field(ge=1, le=24)] = Field(description="Layers of the decoder.")


class PartData(Section):
    """Data of one of several tasks; `data` has the sizes, channels and loading of all."""

    folder: str = Field(description="Folder of the task's data in `data.data_dir`.")
    dataset: str = Field(description="As `data.dataset`.")
    args: dict[str, Any] = Field(description="Keyword arguments of the data set.")
    num_classes: Annotated[int, Field(ge=1, le=256)] = Field(description="As `data.num_classes`.")
    class_names: list[str] = Field(description="Names of the classes, `num_classes` of them.")
    ignore_index: int | None = Field(description="As `data.ignore_index`.")


class Part(Section):
    """One of several tasks of a run."""

    task_type: Literal["segmentation", "detection", "classification"] = Field(description="The kind of task.")
    weight: PositiveFloat = Field(description="Factor of the task's loss in the sum of all.")
    loss: Loss
    data: PartData
    detection: Detection | None = None


class Logging(Section):
    """Trackers, and how often they are told."""

    tensorboard: bool = Field(description="Whether TensorBoard files are written.")
    mlflow: bool = Field(description="Whether the run is logged to MLflow.")
    mlflow_experiment_name: str = Field(description="Experiment of MLflow.")
    wandb: bool = Field(description="Whether the run is logged to Weights & Biases.")
    wandb_project: str = Field(description="Project of Weights & Biases.")
    wandb_mode: Literal["online", "offline"] = Field(
        description="Mode of Weights & Biases; the variable `WANDB_MODE` comes before it when the run starts."
    )
    log_every_steps: Positive = Field(description="Optimizer steps between two points of the training curves.")


class Checkpoint(Section):
    """When checkpoints are written, which are kept, and how a run is resumed."""

    every_epochs: Positive = Field(description="Epochs between two checkpoints.")
    every_steps: Positive | None = Field(
        description="Optimizer steps between two further checkpoints, counted over the whole run; null is none."
    )
    keep_last: Positive = Field(description="Newest checkpoints that are kept.")
    keep_best: Positive = Field(description="Best checkpoints that are kept.")
    best_metric: str = Field(description="Score of the task that ranks checkpoints, or `loss`.")
    resume: Literal["auto", "never"] = Field(description="Whether a start continues the newest checkpoint.")
    asynchronous: bool = Field(
        description="Whether checkpoints are written in the background, from a copy in host memory; not with DeepSpeed."
    )
    own_code: Literal["strict", "warn"] = Field(
        default="strict", description="Whether own code that differs from `own_code` refuses a start or is a warning."
    )


class Parallel(Section):
    """The processes of the run."""

    strategy: Literal["ddp", "fsdp2", "deepspeed"] | None = Field(
        default=None, description="How states are spread over the processes; it is there only if the spec has the key."
    )
    world_size: Positive = Field(description="Processes in all: `nodes` x `processes_per_node`.")
    nodes: int = Field(description="Machines.")
    processes_per_node: int = Field(description="Processes on each machine; on GPUs, one for each card.")
    backend: Literal["gloo", "nccl"] = Field(description="How processes exchange tensors.")
    threads_per_process: int | None = Field(description="`OMP_NUM_THREADS`; null if the cores are not known.")
    timeout_seconds: Positive | None = Field(
        description="Time without progress after which the watchdog ends the run; null is never."
    )


class ProgramSize(Section):
    """The split of the global batch on one number of nodes."""

    world_size: Positive = Field(description="Processes in all.")
    micro_batch_size: Positive = Field(description="Samples in one forward pass of one process.")
    gradient_accumulation_steps: Positive = Field(description="Forward passes of a process in an optimizer step.")


class Size(ProgramSize):
    """The split of the global batch on one number of nodes, and the memory predicted for it."""

    prefetch_factor: int | None = Field(description="As in `data`.")
    peak_allocated_bytes: int | None = Field(description="As in `memory`.")
    peak_reserved_bytes: int | None = Field(description="As in `memory`.")


class Hardware(Section):
    """The device that the lock was compiled for."""

    device: Literal["cpu", "cuda"] = Field(description="Kind of device.")
    card: str | None = Field(description="The card's name in the catalogue; null on the CPU or if it is unknown.")
    compute_capability: str | None = Field(description="The card's compute capability, such as `8.0`.")
    memory_bytes: int | None = Field(description="Memory of each card.")


class Memory(Section):
    """Predicted memory of one process on the card; null if nothing was predicted."""

    peak_allocated_bytes: int | None = Field(description="Peak of the memory that tensors take.")
    peak_reserved_bytes: int | None = Field(description="Peak of the memory that torch's allocator reserves for them.")
    margin: float | None = Field(description="Stated relative error of the prediction; 0.05 is 5 %.")


class Compression(Section):
    """How the model is made smaller. It is there only if the spec has such a section."""

    sparsity: float = Field(
        ge=0, lt=1, description="Share of each linear and convolution layer's weights that is zero in the end."
    )
    structured: bool = Field(description="Whether whole output channels are pruned instead of single weights.")
    begin_epoch: int | None = Field(
        description="Epochs that are trained before pruning begins; null if weights are pruned after training."
    )
    end_epoch: int | None = Field(description="Epochs by which all of `sparsity` is reached; null as `begin_epoch`.")
    quantization: Literal["none", "weight_only", "dynamic"] = Field(
        description="int8 weights of linear layers; with `dynamic`, activations in int8, too."
    )
    aware: bool = Field(description="Whether weights are rounded in training as `quantization` will round them.")
    metric: str = Field(description="Score that may not get worse by more than `tolerance`.")
    tolerance: float = Field(description="How much worse `metric` may be than before; beyond it, compressing fails.")

    def learnt(self) -> dict[str, Any]:
        """Return the values that decide the trained weights."""
        return {key: getattr(self, key) for key in ("sparsity", "structured", "begin_epoch", "end_epoch", "aware")}


class OwnModule(Section):
    """A module of your own."""

    digest: str = Field(description="`sha256:` and the digest of the file.")
    parts: dict[str, str] = Field(
        description="A short digest of each function and class in it, without comments; `<module>` is the rest."
    )
