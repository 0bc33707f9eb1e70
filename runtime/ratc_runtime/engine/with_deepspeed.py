"""DeepSpeed, ZeRO stages 0 to 3: alone, or under Accelerate. Both read the same deepspeed.json.

Every computation is DeepSpeed's in both, and so are the checkpoints: each continues the other's.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ratc_runtime.checkpoint import universal
from ratc_runtime.config.lock import Lock
from ratc_runtime.data import pytree
from ratc_runtime.distributed.world import World, check_world, group_timeout, local_device
from ratc_runtime.engine.base import AUTOCAST, BaseEngine
from ratc_runtime.engine.optimizer import innermost, make_optimizer
from ratc_runtime.errors import RuntimeFinding

#: The folder of the shards inside a checkpoint, as Accelerate names it.
TAG = "pytorch_model"


class DeepSpeedEngine(BaseEngine):
    """DeepSpeed without Accelerate, started by torchrun."""

    deepspeed = sharded = True

    def __init__(self, lock: Lock, model: nn.Module, folder: Path, reduced: bool) -> None:
        device = local_device(lock)
        configuration = _configuration(lock, folder, reduced)
        self._join(lock, configuration)
        size, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        check_world(lock, size)
        super().__init__(lock, World(rank, size, device))
        optimizer = make_optimizer(model, lock)
        if lock.training.compile:
            model.compile()
        self._engine, self.optimizer = self._wrap(model, optimizer, configuration)
        # DeepSpeed's own object evaluates too: under ZeRO-3 its hooks bring the weights together.
        self.module, self.model = self._engine, self._forward
        self._dtype = None  # DeepSpeed turns the weights themselves to the lock's precision
        self._weights_dtype = AUTOCAST.get(lock.training.precision, torch.float32)
        self._check(lock)

    def _join(self, lock: Lock, configuration: Any) -> None:
        limit = group_timeout(lock)
        options = {} if limit is None else {"timeout": limit}
        _deepspeed().init_distributed(lock.parallel.backend, verbose=False, **options)

    def _wrap(self, model: nn.Module, optimizer: Any, configuration: Any) -> tuple[Any, Any]:
        engine, optimizer, _, _ = _deepspeed().initialize(
            model=model, optimizer=optimizer, config=configuration, dist_init_required=False
        )
        return engine, optimizer

    @property
    def skipped_steps(self) -> int:
        return int(self._engine.skipped_steps)

    def _forward(self, image: Any) -> Any:
        return self._engine(self._cast(image))

    def _cast(self, image: Any) -> Any:
        dtype = self._weights_dtype
        return pytree.apply(lambda level: level.to(dtype) if level.is_floating_point() else level, image)

    @property
    def local_module(self) -> Callable[[Any], Any] | None:
        # Under ZeRO-3 every layer is gathered from all ranks.
        return None if self._engine.zero_optimization_stage() == 3 else self._bare

    def _bare(self, image: Any) -> Any:
        return self._engine.module(self._cast(image))

    def set_split(self, lock: Lock) -> None:
        """Change micro-batch and accumulation, before the first step. ZeRO's optimizers keep a copy."""
        training = lock.training
        self.accumulation = training.gradient_accumulation_steps
        self._engine.set_train_micro_batch_size(training.micro_batch_size)
        self._engine.set_train_batch_size(training.global_batch_size)
        if hasattr(self._engine.optimizer, "gradient_accumulation_steps"):
            self._engine.optimizer.gradient_accumulation_steps = self.accumulation
        self._check(lock)

    def _check(self, lock: Lock) -> None:
        engine, training = self._engine, lock.training
        found = {
            "micro-batch": (engine.train_micro_batch_size_per_gpu(), training.micro_batch_size),
            "accumulation": (engine.gradient_accumulation_steps(), training.gradient_accumulation_steps),
            "global batch": (engine.train_batch_size(), training.global_batch_size),
            "ZeRO stage": (engine.zero_optimization_stage(), lock.engine.zero_stage),
            "gradient clipping": (engine.gradient_clipping() or None, training.gradient_clipping),
            "offload of the optimizer": (bool(engine.zero_use_cpu_optimizer()), lock.engine.offload_optimizer),
        }
        wrong = [f"{name} {has}, lock {wants}" for name, (has, wants) in found.items() if has != wants]
        if engine.get_data_types()[0] != self._weights_dtype:
            wrong.append(f"precision {engine.get_data_types()[0]}, lock {training.precision}")
        if wrong:
            raise RuntimeFinding("R503", "DeepSpeed runs with other values than the lock", "\n".join(wrong))

    def effective(self) -> dict[str, Any]:
        weights = self._engine.get_data_types()[0]
        named = {dtype: name for name, dtype in AUTOCAST.items()}
        return super().effective() | {
            "gradient accumulation": self._engine.gradient_accumulation_steps(),
            "precision": named.get(weights, "fp32" if weights == torch.float32 else str(weights)),
        }

    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        # DeepSpeed's counter would go on where a failed step left it; said outright, the last one is always the last.
        self._engine.set_gradient_accumulation_boundary(last)
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        self._engine.backward(loss)  # divides by the accumulation steps

    def update(self, max_norm: float | None) -> torch.Tensor | None:
        # Clips with the norm of deepspeed.json, which _check has held against the lock.
        self.updating = True
        self._engine.step()
        self.updating = False
        return self._norm(max_norm)

    def _norm(self, max_norm: float | None) -> torch.Tensor | None:
        norm = self._engine.get_global_grad_norm() if max_norm is not None else None
        return norm if norm is None else torch.as_tensor(norm).detach()

    def predict(self, image: Any) -> Any:
        with self.predicting():
            return pytree.to_float(self._forward(image))

    def save_shards(self, folder: Path) -> None:
        """Write each rank's part into `folder`. Every rank calls this. Raises OSError or RuntimeError.

        A rank whose write failed still takes part in DeepSpeed's barrier, so that the others do not wait for it.
        """
        writer = self._engine.checkpoint_engine
        write, failed = writer.save, []

        def save(*arguments: Any, **named: Any) -> None:
            try:
                write(*arguments, **named)
            except (OSError, RuntimeError) as error:
                failed.append(error)

        writer.save = save
        # A copy of DeepSpeed's own converter beside every checkpoint: ratc_runtime export does the same.
        self._engine._copy_recovery_script = lambda *_: None
        try:
            # DeepSpeed's `latest` file is written by one rank alone, and a full disk would stop only that one.
            self._engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)
        finally:
            writer.save = write
        if failed:
            raise failed[0]

    def load_shards(self, folder: Path) -> None:
        """Read a checkpoint of as many ranks, or of any number if it was converted for that. Every rank calls this.
        Raises OSError.
        """
        wrote = universal.writers(folder / TAG)
        if wrote in (0, self.world.size):
            self._load(folder, TAG)
            return
        whole = folder.with_name(f".{folder.name}.universal.new")  # a name that `CheckpointStore` cleans up
        failed = None
        if self.world.main:
            try:
                shutil.rmtree(whole, ignore_errors=True)
                universal.convert(folder / TAG, whole)
            except OSError as error:
                failed = error
        failed = self.world.gather(failed)[0]
        try:
            if failed is not None:
                raise failed
            self._load_universal(whole)
            self.world.barrier()
        finally:
            if self.world.main:
                shutil.rmtree(whole, ignore_errors=True)

    def _load(self, folder: Path, tag: str) -> None:
        path, _ = self._engine.load_checkpoint(str(folder), tag=tag)
        if path is None:
            raise OSError(f"DeepSpeed finds no shards in {folder / tag}")

    def _load_universal(self, whole: Path) -> None:
        """Load whole tensors. DeepSpeed 0.19 gives all groups the values of the first one, and with ZeRO-3 all weights
        one count of steps, which each then increases.
        """
        groups = self._engine.optimizer.param_groups
        own = [{key: value for key, value in group.items() if key != "params"} for group in groups]
        self._engine._config.load_universal_checkpoint = True
        try:
            self._load(whole.parent, whole.name)
        finally:
            self._engine._config.load_universal_checkpoint = False
        for group, values in zip(self._engine.optimizer.param_groups, own, strict=True):
            group.update(values)
        for weight, state in innermost(self._engine.optimizer).state.items():
            if isinstance(step := state.get("step"), torch.Tensor):
                state["step"] = step.clone().to(weight.device)


class AccelerateDeepSpeedEngine(DeepSpeedEngine):
    """DeepSpeed under Accelerate, started by `accelerate launch`."""

    def _join(self, lock: Lock, configuration: Any) -> None:
        _deepspeed()
        from accelerate import DeepSpeedPlugin

        from ratc_runtime.engine.with_accelerate import make_accelerator

        self.accelerator = make_accelerator(lock, deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=configuration))

    def _wrap(self, model: nn.Module, optimizer: Any, configuration: Any) -> tuple[Any, Any]:
        engine, optimizer = self.accelerator.prepare(model, optimizer)
        return engine, optimizer

    def set_split(self, lock: Lock) -> None:
        self.accelerator.gradient_accumulation_steps = lock.training.gradient_accumulation_steps
        self.accelerator.step = 0  # counts micro-batches; some of a failed step are among them
        super().set_split(lock)

    def effective(self) -> dict[str, Any]:
        from ratc_runtime.engine.with_accelerate import accelerator_facts

        own, found = super().effective(), accelerator_facts(self.accelerator)
        # The precision of the weights; Accelerate's value is that of deepspeed.json.
        return own | found | {"precision": own["precision"]}

    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        return self.accelerator.accumulate(self._engine)

    def backward(self, loss: torch.Tensor) -> None:
        self.updating = self.accelerator.sync_gradients  # with the last micro-batch DeepSpeed clips and steps in here
        self.accelerator.backward(loss)
        self.updating = False

    def update(self, max_norm: float | None) -> torch.Tensor | None:
        return self._norm(max_norm)


def _deepspeed() -> Any:
    try:
        import deepspeed
    except ImportError as error:
        raise RuntimeFinding(
            "R529",
            "the lock trains with DeepSpeed, which cannot be imported here",
            f"{type(error).__name__}: {error}",
            "install it: pip install -c constraints.txt 'ratc[runtime]'; or set `training.deepspeed: false` and compile"
            " again",
        ) from error
    # Building the shared-memory op takes 20 s of compiling, for a gain that small CPU runs do not see.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _configuration(lock: Lock, folder: Path, reduced: bool) -> Any:
    """Return DeepSpeed's configuration: the file's path, or its content with the split of this start."""
    path = folder / (lock.file("deepspeed.json") or "deepspeed.json")
    if not reduced and lock.elastic is None:
        return str(path)
    # Preflight has held the file against the reviewed lock; this start has a smaller micro-batch, or other nodes.
    content = json.loads(path.read_bytes())
    content["train_micro_batch_size_per_gpu"] = lock.training.micro_batch_size
    content["gradient_accumulation_steps"] = lock.training.gradient_accumulation_steps
    return content
