"""The sections of a lock, as frozen pydantic models with the descriptions of their keys."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from ratc_runtime.config import optimizers
from ratc_runtime.tasks import PartType

#: As in a spec, whose limits the lock repeats: a test compares them.
Positive = Annotated[int, Field(gt=0, le=1_000_000_000)]
PositiveFloat = Annotated[float, Field(gt=0)]
_Self = TypeVar("_Self", bound="Section")


class Section(BaseModel):
    """A mapping of known keys, which does not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=(), defer_build=True)

    def replace(self: _Self, **changes: Any) -> _Self:
        """Return a copy with other values, which are not validated. Raises TypeError for a name that is not a field."""
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
        description="How RAT computes its dense attention: `full` keeps the attention maps, `fused` (FlexAttention) "
        "and `chunked` recompute them."
    )
    output: str | None = Field(
        default=None,
        description="Key of the logits if a custom model returns a mapping; null if its output is used unchanged.",
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

    metric: str = Field(description="Validation metric that decides: a score of the task, or `loss`.")
    patience: Positive = Field(description="Number of epochs without an improvement after which training ends.")
    min_delta: Annotated[float, Field(ge=0)] = Field(
        description="Smallest change of the metric that counts as an improvement."
    )


class Extension(Section):
    """Epochs that were added to a plan, with a schedule of their own."""

    after: Positive = Field(description="Number of epochs before the extension.")
    learning_rate: PositiveFloat = Field(description="Learning rate after the warm-up of the extension.")
    warmup_epochs: Annotated[float, Field(ge=0)] = Field(
        description="Length of the linear warm-up of the extension, in epochs."
    )


class InitFrom(Section):
    """The weights that the first start of the run loads. It is there only if the spec has such a section."""

    path: str = Field(
        description="File of the weights, or folder of a DeepSpeed checkpoint, relative to the spec's folder."
    )
    digest: Annotated[str, Field(pattern="^sha256:[0-9a-f]{64}$")] = Field(
        description="Digest of the file. If it differs, the run refuses to start."
    )
    strict: bool = Field(description="Whether the run refuses to start if only the model or only the file has a name.")
    load: list[str] = Field(description="Patterns (`*`, `?`, `[…]`) of the names of weights that are loaded.")
    skip: list[str] = Field(description="Patterns of names among those that are not loaded.")


class ParameterGroup(Section):
    """Weights with a learning rate and a weight decay of their own."""

    match: Annotated[list[str], Field(min_length=1)] = Field(
        description="Patterns (`*`, `?`, `[…]`) of the names of parameters. The first group that matches counts."
    )
    learning_rate_factor: PositiveFloat = Field(description="Factor of the learning rate, in every step.")
    weight_decay: float = Field(ge=0, description="Weight decay of the weights with two or more dimensions.")


class Training(Section):
    """How weights are learnt, and in which pieces a global batch is computed."""

    epochs: Positive = Field(description="Passes over the training data.")
    max_steps_per_epoch: int | None = Field(
        description="Largest number of optimizer steps in an epoch, which debug runs set; null means no limit."
    )
    extensions: list[Extension] = Field(
        default=[],
        description="Epochs that were added to a finished run. Each extension begins the learning-rate schedule again.",
    )
    early_stopping: EarlyStopping | None = None
    learning_rate: float = Field(gt=0, description="Learning rate after the warm-up.")
    optimizer: Annotated[str, Field(pattern=optimizers.PATTERN)] = Field(
        description=f"{', '.join(f'`{name}`' for name in optimizers.OPTIMIZERS)} or `package.module:callable`. `muon` "
        "trains weights with two dimensions except embeddings; `adamw` then trains all others."
    )
    optimizer_args: dict[str, Any] = Field(
        default={}, description="Keyword arguments of the callable, beside `params`, the parameter groups."
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None,
        description=f"Momentum of {' and '.join(f'`{name}`' for name in optimizers.names('momentum'))}; null with "
        "other optimizers.",
    )
    weight_decay: float = Field(
        ge=0,
        description="Weight decay. `adam` and `sgd` add it to the gradient; with the others it is decoupled. Biases "
        "and norms have none.",
    )
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        min_length=2, max_length=2, description="Decay rates of the two averages of Adam, or of Lion's average."
    )
    frozen: list[str] = Field(
        default=[], description="Patterns (`*`, `?`, `[…]`) of the names of parameters that are not trained."
    )
    parameter_groups: list[ParameterGroup] = Field(
        default=[],
        description="Groups of weights with values of their own. All other weights have `learning_rate` and "
        "`weight_decay`.",
    )
    init_from: InitFrom | None = None
    scheduler: Literal["cosine", "step", "none"] = Field(description="Learning-rate schedule after the warm-up.")
    warmup_epochs: float = Field(
        ge=0, description="Length of the linear warm-up in epochs; the rate rises with each optimizer step."
    )
    min_learning_rate: float = Field(ge=0, description="Learning rate at the end of `cosine`.")
    step_epochs: Positive = Field(description="With `step`, epochs between two reductions of the learning rate.")
    step_gamma: float = Field(ge=0, le=1, description="With `step`, the factor of each reduction.")
    gradient_clipping: PositiveFloat | None = Field(description="Largest norm of the gradient; null means no clipping.")
    loss: Loss
    precision: Literal["fp32", "fp16", "bf16"] = Field(description="Precision of the forward and backward passes.")
    tf32: bool = Field(description="Whether products of float32 matrices may be computed in TF32.")
    global_batch_size: Positive = Field(
        description="Samples in an optimizer step: `micro_batch_size` x `gradient_accumulation_steps` x "
        "`parallel.world_size`."
    )
    micro_batch_size: Positive = Field(description="Samples in one forward pass of one process.")
    gradient_accumulation_steps: Positive = Field(description="Forward passes of a process in an optimizer step.")
    last_batch: Literal["drop", "keep"] = Field(
        description="Last samples of an epoch, if they fill no global batch: `drop` leaves them out, `keep` makes a "
        "smaller step of them."
    )
    activation_checkpointing: bool | Annotated[list[str], Field(min_length=1)] = Field(
        description="Whether activations of all blocks are recomputed in the backward pass instead of kept, or the "
        "names of the blocks whose activations are."
    )
    compile: bool = Field(description="Whether `torch.compile` compiles the model.")
    callbacks: list[str] = Field(description="List of `package.module:callable`s, each of which returns a callback.")
    callback_args: list[dict[str, Any]] = Field(
        default=[],
        description="Keyword arguments for each entry of `callbacks`, in the same order; empty if no entry has any.",
    )
    allocator: Literal["native", "expandable_segments"] | None = Field(
        default=None,
        description="How torch's CUDA allocator reserves memory; null on the CPU. Absent in locks of earlier versions.",
    )


class Engine(Section):
    """The engine: the library that carries out the training step."""

    use_accelerate: bool = Field(
        description="Whether Accelerate launches the processes and moves the model to its device."
    )
    deepspeed: bool = Field(
        description="Whether DeepSpeed does the optimizer step, with the settings of `deepspeed.json`."
    )
    zero_stage: int = Field(description="DeepSpeed's ZeRO stage, 0 to 3: which states are split over the processes.")
    offload_optimizer: bool = Field(description="Whether optimizer states are kept in host memory.")


class Fsdp2(Section):
    """How FSDP2 shards the model over processes. It is there only if FSDP2 does the step."""

    shard: Literal["full", "grads", "hybrid"] = Field(
        description="`full` shards weights, gradients and optimizer states. `grads` keeps weights whole from the "
        "forward pass to the end of the backward pass. `hybrid` is `full` within groups of `shard_size` processes."
    )
    shard_size: Annotated[int, Field(ge=2)] = Field(
        description="Number of processes over which one copy of the model is sharded; it divides `parallel.world_size`."
    )
    wrap: list[str] | None = Field(
        description="Names of the module classes whose weights are gathered as one unit; null means the classes of "
        "repeated layers, found at the start."
    )
    offload: bool = Field(description="Whether shards are kept in host memory; the optimizer then runs on the CPU.")
    weights: Literal["fp32", "bf16"] = Field(
        description="Precision in which weights are gathered. Gradients are reduced in fp32."
    )


class Folds(Section):
    """The fold of a cross-validation. It is there only if the spec has such a section."""

    number: Annotated[int, Field(ge=2, le=1000)] = Field(
        description="Number of folds into which train and val together are divided."
    )
    index: Annotated[int, Field(ge=0, le=999)] = Field(
        description="Number of the fold for validation, from 0; the other folds are for training."
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(description="Seed of the division into folds.")
    group: str | None = Field(
        description="Regular expression for names: samples with the same match are in one fold; null if each sample, "
        "or each volume, is a group of its own."
    )


class Data(Section):
    """The data set, and how samples are decoded, kept and loaded."""

    dataset: str = Field(
        description="`isic`, `volumes`, `coco`, `folders`, `csv`, or `package.module:callable`; `joint` with "
        "`task_type: multi`."
    )
    args: dict[str, Any] = Field(description="Keyword arguments of the data set.")
    data_dir: str = Field(
        description="Folder of the data, relative to the spec's folder, in which run.sh works. `--data-dir` or "
        "`RAT_DATA_DIR` replaces it when the script runs."
    )
    image_size: list[Annotated[int, Field(gt=0, le=65_536)]] = Field(
        min_length=2,
        max_length=3,
        description="Height and width of the images; depth, height and width for patches of volumes.",
    )
    channels: Annotated[int, Field(ge=1, le=1024)] = Field(description="Channels of an image: 1 for grey, 3 for RGB.")
    num_classes: Annotated[int, Field(ge=1, le=256)] = Field(
        description="Number of classes. Segmentation: 1 means foreground and background; with 2 or more, masks hold "
        "class numbers, and 0 is the background. Detection: classes of objects. Classification: classes of images."
    )
    class_names: list[str] = Field(description="Names of the classes, `num_classes` of them.")
    ignore_index: int | None = Field(
        description="Number in a mask for pixels that loss and scores ignore; null if no pixel is ignored."
    )
    scales: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        min_length=1, max_length=8, description="Scales of the image pyramid; more than one needs `model.multi_scale`."
    )
    folds: Folds | None = None
    on_bad_sample: Literal["fail", "skip"] = Field(description="Reaction to a sample that cannot be read.")
    augmentations: list[dict[str, Any]] = Field(
        description="Augmentations of the training split, in this order, such as `{RandomHorizontalFlip: {p: 0.5}}`."
    )
    cache: Literal["none", "memory", "disk"] = Field(description="Where decoded images are kept from epoch to epoch.")
    cache_size_bytes: int | None = Field(description="Largest size of the cache on a node; null without a cache.")
    num_workers: int = Field(ge=0, le=1024, description="Number of loader processes for each training process.")
    pin_memory: bool = Field(description="Whether batches are copied to pinned host memory.")
    persistent_workers: bool = Field(description="Whether loader processes are kept from epoch to epoch.")
    prefetch_factor: Positive | None = Field(
        description="Batches that each loader process prepares ahead; null if `num_workers` is 0."
    )


class Evaluation(Section):
    """Scores on the val and test splits beside those of the task."""

    hausdorff: bool = Field(description="Whether Hausdorff distances are computed on val and test, too.")
    scores: dict[str, str] = Field(
        default={},
        description="Scores of your own by name: `package.module:callable`s, each of which returns a score function.",
    )


class Detection(Section):
    """The detection head. It is there with `task_type: detection`, and only with it."""

    queries: Annotated[int, Field(ge=1, le=2000)] = Field(
        description="Number of object queries: the largest number of objects that can be found in an image."
    )
    decoder_layers: Annotated[int, Field(ge=1, le=24)] = Field(description="Number of layers of the decoder.")


class PartData(Section):
    """Data of one of several tasks; `data` has the sizes, channels and loading of all."""

    folder: str = Field(description="Folder of the task's data, within `data.data_dir`.")
    dataset: str = Field(description="As `data.dataset`.")
    args: dict[str, Any] = Field(description="Keyword arguments of the data set.")
    num_classes: Annotated[int, Field(ge=1, le=256)] = Field(description="As `data.num_classes`.")
    class_names: list[str] = Field(description="Names of the classes, `num_classes` of them.")
    ignore_index: int | None = Field(description="As `data.ignore_index`.")


class Part(Section):
    """One of several tasks of a run."""

    task_type: PartType = Field(description="Kind of task.")
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
        description="Mode of Weights & Biases; if the variable `WANDB_MODE` is set when the run starts, it wins."
    )
    log_every_steps: Positive = Field(description="Optimizer steps between two points of the training curves.")


class Checkpoint(Section):
    """When checkpoints are written, which are kept, and how a run is resumed."""

    every_epochs: Positive = Field(description="Epochs between two checkpoints.")
    every_steps: Positive | None = Field(
        description="Optimizer steps between two further checkpoints, counted over the whole run; null means no "
        "further ones."
    )
    keep_last: Positive = Field(description="Number of newest checkpoints that are kept.")
    keep_best: Positive = Field(description="Number of best checkpoints that are kept.")
    best_metric: str = Field(description="Score of the task that ranks checkpoints, or `loss`.")
    resume: Literal["auto", "never"] = Field(
        description="Whether a run continues from the newest checkpoint when it starts."
    )
    asynchronous: bool = Field(
        description="Whether checkpoints are written in the background, from a copy in host memory; not with DeepSpeed."
    )
    own_code: Literal["strict", "warn"] = Field(
        default="strict",
        description="Reaction if your own code differs from `own_code`: `strict` refuses to start, "
        "`warn` prints a warning.",
    )


class Parallel(Section):
    """The processes of the run."""

    strategy: Literal["ddp", "fsdp2", "deepspeed"] | None = Field(
        default=None,
        description="How processes hold weights, gradients and optimizer states; present only if the spec has the key.",
    )
    world_size: Positive = Field(description="Number of all processes: `nodes` x `processes_per_node`.")
    nodes: int = Field(description="Machines.")
    processes_per_node: int = Field(description="Number of processes on each node; on GPUs, one for each card.")
    backend: Literal["gloo", "nccl"] = Field(description="Library with which processes exchange tensors.")
    threads_per_process: int | None = Field(description="`OMP_NUM_THREADS`; null if the cores are not known.")
    timeout_seconds: Positive | None = Field(
        description="Time without progress after which the watchdog ends the run; null means never."
    )


class ProgramSize(Section):
    """The split of the global batch on one number of nodes."""

    world_size: Positive = Field(description="Processes in all.")
    micro_batch_size: Positive = Field(description="Samples in one forward pass of one process.")
    gradient_accumulation_steps: Positive = Field(description="Forward passes of a process in an optimizer step.")
    peak_allocated_bytes: int | None = Field(default=None, description="As in `memory`. Absent without that section.")
    peak_reserved_bytes: int | None = Field(default=None, description="As in `memory`. Absent without that section.")


class Size(ProgramSize):
    """The split of the global batch on one number of nodes, and the memory predicted for it."""

    prefetch_factor: int | None = Field(description="As in `data`.")
    peak_allocated_bytes: int | None = Field(description="As in `memory`.")
    peak_reserved_bytes: int | None = Field(description="As in `memory`.")


class Hardware(Section):
    """The device that the lock was compiled for."""

    device: Literal["cpu", "cuda"] = Field(description="Kind of device.")
    card: str | None = Field(description="Name of the card in ratc's catalogue; null on the CPU or if it is unknown.")
    compute_capability: str | None = Field(description="Compute capability of the card, such as `8.0`.")
    memory_bytes: int | None = Field(description="Memory of each card.")
    cpu_architecture: str | None = Field(
        default=None, description="Processor of the nodes, as `uname -m` gives it there. Absent if it is not known."
    )


class Health(Section):
    """The check of the nodes before training. It is there only if nodes are checked. Rates are those of the card's data
    sheet and of the cluster's facts; null if they are not known.
    """

    matrix_tflops: PositiveFloat | None = Field(description="10^12 operations a second of a matrix product.")
    memory_gb_s: PositiveFloat | None = Field(description="Bandwidth of the card's memory, in GB/s.")
    network_gb_s: PositiveFloat | None = Field(description="GB/s that a node sends to the others.")
    max_excluded_nodes: Annotated[int, Field(ge=0)] = Field(description="Nodes that one job may leave out.")


class Memory(Section):
    """Predicted memory of one process on the card; null if nothing was predicted."""

    peak_allocated_bytes: int | None = Field(description="Peak of the memory that tensors take, as predicted.")
    peak_reserved_bytes: int | None = Field(description="Peak of the memory that torch's allocator reserves for them.")
    margin: float | None = Field(description="Relative error of the prediction; 0.05 means 5 %.")


class Compression(Section):
    """How the model is made smaller. It is there only if the spec has such a section."""

    sparsity: float = Field(
        ge=0, lt=1, description="Share of the weights of each linear and convolution layer that is zero in the end."
    )
    structured: bool = Field(description="Whether whole output channels are pruned instead of single weights.")
    begin_epoch: int | None = Field(
        description="Number of epochs before pruning begins; null if weights are pruned after training."
    )
    end_epoch: int | None = Field(
        description="Number of epochs after which `sparsity` is reached; null if `begin_epoch` is null."
    )
    quantization: Literal["none", "weight_only", "dynamic"] = Field(
        description="Store the weights of linear layers in int8; with `dynamic`, activations are int8, too."
    )
    aware: bool = Field(description="Whether weights are rounded in training as `quantization` rounds them.")
    metric: str = Field(description="Score that may not get worse by more than `tolerance`.")
    tolerance: float = Field(
        ge=0, description="How much worse `metric` may be than before; beyond it, compressing fails."
    )

    def learnt(self) -> dict[str, Any]:
        """Return the values that decide the trained weights."""
        return {key: getattr(self, key) for key in ("sparsity", "structured", "begin_epoch", "end_epoch", "aware")}


class OwnModule(Section):
    """A module of your own."""

    digest: str = Field(description="`sha256:` and the digest of the file.")
    parts: dict[str, str] = Field(
        description="A short digest of each function and class of the file, without comments; `<module>` is the rest "
        "of the file."
    )
