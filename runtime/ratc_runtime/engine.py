"""The engines behind a training step: plain torch (one process or DDP), Accelerate, DeepSpeed through it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ratc_runtime import nested
from ratc_runtime.distributed import World, check_world, group_timeout, local_device
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.lock import Lock

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def make_optimizer(model: nn.Module, lock: Lock) -> torch.optim.Optimizer:
    """Return AdamW; biases, norms and other parameters of fewer than two dimensions are not decayed."""
    training = lock.training
    wanted = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in wanted if p.dim() >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in wanted if p.dim() < 2], "weight_decay": 0.0},
    ]
    beta1, beta2 = training.betas
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=training.learning_rate, betas=(beta1, beta2)
    )


class _Base:
    """What the engines share: precision around the forward pass, train and eval mode."""

    deepspeed = False
    model: Any
    optimizer: Any
    module: nn.Module
    #: True while the optimizer changes weights: what fails then leaves some changed and some not.
    updating = False
    #: Optimizer steps that were left out because gradients were not finite (fp16's loss scale), in this process.
    skipped_steps = 0

    def __init__(self, lock: Lock, world: World) -> None:
        self.world = world
        self.accumulation = lock.training.gradient_accumulation_steps
        self._dtype = AUTOCAST.get(lock.training.precision)

    @property
    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups  # type: ignore[no-any-return]

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the autocast of the lock's precision, or nothing for fp32."""
        if self._dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.world.device.type, dtype=self._dtype)

    @property
    def alone(self) -> Callable[[Any], torch.Tensor] | None:
        """The model without what makes processes meet; None where there is no such thing."""
        return self.module

    def set_split(self, lock: Lock) -> None:
        """Take over another micro-batch and accumulation, at a step boundary."""
        self.accumulation = lock.training.gradient_accumulation_steps
        self.module.zero_grad(set_to_none=True)

    def train(self) -> None:
        self.module.train()

    def predict(self, image: Any) -> Any:
        """Return the model's output, float32, without gradients; every rank makes as many calls (ZeRO-3)."""
        self.module.eval()
        # Not inference_mode: RAT caches position tensors, and cached inference tensors break training.
        with torch.no_grad(), self.autocast():
            return nested.to_float(self.module(image))


class TorchEngine(_Base):
    """Plain torch."""

    def __init__(self, lock: Lock, model: nn.Module) -> None:
        device = local_device(lock)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            dist.init_process_group(lock.parallel.backend, timeout=group_timeout(lock))
        ready = dist.is_initialized()
        size, rank = (dist.get_world_size(), dist.get_rank()) if ready else (1, 0)
        check_world(lock, size)
        super().__init__(lock, World(rank, size, device))
        self.module = model.to(device)
        self.optimizer = make_optimizer(self.module, lock)
        if lock.training.compile:
            self.module.compile()
        self.model: Any = self.module
        if size > 1:
            self.model = nn.parallel.DistributedDataParallel(
                self.module,
                device_ids=[device.index] if device.type == "cuda" else None,
                find_unused_parameters=True,  # RAT has weights that only masked inputs use
            )
        self.scaler = torch.amp.GradScaler(device.type, enabled=lock.training.precision == "fp16")

    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        """Keep gradients local until the last micro-batch."""
        if last or self.world.size == 1:
            return contextlib.nullcontext()
        return self.model.no_sync()  # type: ignore[no-any-return]

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss / self.accumulation).backward()  # type: ignore[no-untyped-call]

    def update(self, max_norm: float | None) -> torch.Tensor | None:
        norm = None
        if max_norm is not None:
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.module.parameters(), max_norm).detach()
        self.updating = True
        self.scaler.step(self.optimizer)
        self.updating = False
        before = self.scaler.get_scale()
        self.scaler.update()
        # It is lowered only after a step that was left out. Without fp16 it is 1, and nothing is waited for.
        self.skipped_steps += self.scaler.get_scale() < before
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def state(self) -> dict[str, Any]:
        """Return the weights and the state of optimizer and loss scale."""
        return {
            "model": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


class AccelerateEngine(_Base):
    """Hugging Face Accelerate; with `engine.deepspeed`, DeepSpeed below it."""

    def __init__(self, lock: Lock, model: nn.Module, folder: Path, reduced: bool) -> None:
        device = local_device(lock)
        self.deepspeed, self._skipped = lock.engine.deepspeed, 0
        self.accelerator = _accelerator(lock, _configuration(lock, folder, reduced))
        check_world(lock, self.accelerator.num_processes)
        super().__init__(lock, World(self.accelerator.process_index, self.accelerator.num_processes, device))
        optimizer = make_optimizer(model, lock)
        if lock.training.compile:
            model.compile()
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        # DeepSpeed's own object evaluates too: under ZeRO-3 its hooks bring the weights together.
        self.module = self.model if self.deepspeed else self.accelerator.unwrap_model(self.model)
        if self.deepspeed:
            self._dtype = None  # DeepSpeed turns the weights themselves to the lock's precision
            self._engine, self.model = self.model, self._forward
            self._check_deepspeed(lock)

    def _forward(self, image: Any) -> torch.Tensor:
        return self._engine(self._cast(image))  # type: ignore[no-any-return]

    def _cast(self, image: Any) -> Any:
        dtype = AUTOCAST.get(self._precision, torch.float32)
        return nested.apply(lambda level: level.to(dtype), image)

    @property
    def alone(self) -> Callable[[Any], torch.Tensor] | None:
        """The model without what makes processes meet; None under ZeRO-3, where every layer is gathered."""
        if not self.deepspeed:
            return self.module
        return None if self._engine.zero_optimization_stage() == 3 else self._bare

    def _bare(self, image: Any) -> torch.Tensor:
        return self._engine.module(self._cast(image))  # type: ignore[no-any-return]

    @property
    def skipped_steps(self) -> int:  # type: ignore[override]
        """Optimizer steps left out so far; DeepSpeed's count goes on where its checkpoint is continued."""
        return int(self._engine.skipped_steps) if self.deepspeed else self._skipped

    def set_split(self, lock: Lock) -> None:
        """Take over another micro-batch and accumulation, at a step boundary; with DeepSpeed before the first step."""
        training = lock.training
        self.accumulation = training.gradient_accumulation_steps
        self.accelerator.gradient_accumulation_steps = self.accumulation
        self.accelerator.step = 0  # counts micro-batches; some of a failed step are among them
        if not self.deepspeed:
            # Not the optimizer's: in the middle of a step Accelerate makes that do nothing.
            self.module.zero_grad(set_to_none=True)
        else:
            self._engine.set_train_micro_batch_size(training.micro_batch_size)
            self._engine.set_train_batch_size(training.global_batch_size)
            # ZeRO's optimizers keep a copy.
            if hasattr(self._engine.optimizer, "gradient_accumulation_steps"):
                self._engine.optimizer.gradient_accumulation_steps = self.accumulation
            self._check_deepspeed(lock)

    def _check_deepspeed(self, lock: Lock) -> None:
        self._precision = lock.training.precision
        engine, training = self._engine, lock.training
        found = {
            "micro-batch": (engine.train_micro_batch_size_per_gpu(), training.micro_batch_size),
            "accumulation": (engine.gradient_accumulation_steps(), training.gradient_accumulation_steps),
            "global batch": (engine.train_batch_size(), training.global_batch_size),
            "ZeRO stage": (engine.zero_optimization_stage(), lock.engine.zero_stage),
        }
        wrong = [f"{name} {has}, lock {wants}" for name, (has, wants) in found.items() if has != wants]
        dtype = AUTOCAST.get(training.precision, torch.float32)
        if engine.get_data_types()[0] != dtype:
            wrong.append(f"precision {engine.get_data_types()[0]}, lock {training.precision}")
        if wrong:
            raise RuntimeFinding("R503", "DeepSpeed runs with other values than the lock", "\n".join(wrong))

    def accumulate(self, last: bool) -> AbstractContextManager[Any]:
        """Let Accelerate count; every step has all its micro-batches, so its count and `last` agree."""
        return self.accelerator.accumulate(self._engine if self.deepspeed else self.model)  # type: ignore[no-any-return]

    def backward(self, loss: torch.Tensor) -> None:
        # Accelerate, or DeepSpeed, divides by the accumulation steps. DeepSpeed clips and steps in here.
        self.accelerator.backward(loss)

    def update(self, max_norm: float | None) -> torch.Tensor | None:
        norm = None
        if max_norm is not None:
            norm = self.accelerator.clip_grad_norm_(self.module.parameters(), max_norm)
        self.updating = True
        self.optimizer.step()
        self.updating = False
        self._skipped += self.accelerator.optimizer_step_was_skipped
        self.optimizer.zero_grad()
        return norm if norm is None else torch.as_tensor(norm).detach()

    def predict(self, image: Any) -> Any:
        if not self.deepspeed:
            return super().predict(image)
        self.module.eval()
        with torch.no_grad():
            return nested.to_float(self._forward(image))

    def state(self) -> dict[str, Any]:
        """Return the weights and the state of optimizer and loss scale (not for DeepSpeed)."""
        scaler = self.accelerator.scaler
        return {
            "model": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def save_shards(self, folder: Path) -> None:
        """Write each rank's part into `folder` (DeepSpeed); every rank calls this, and raises OSError or RuntimeError.

        A rank whose disk fails must not leave before the barrier in which DeepSpeed has the others wait.
        """
        writer = self._engine.checkpoint_engine
        write, failed = writer.save, []

        def save(*arguments: Any, **named: Any) -> None:
            try:
                write(*arguments, **named)
            except (OSError, RuntimeError) as error:
                failed.append(error)

        writer.save = save
        # A copy of DeepSpeed's own converter beside every checkpoint: ratc_runtime.export does the same.
        self._engine._copy_recovery_script = lambda *_: None
        try:
            # The name of the newest is a small file, written where a full disk would keep only one rank.
            self.accelerator.save_state(str(folder), save_latest=False)
        finally:
            writer.save = write
        if failed:
            raise failed[0]

    def load_shards(self, folder: Path) -> None:
        """Read back what `save_shards` wrote; every rank calls this."""
        self.accelerator.load_state(str(folder))


def _configuration(lock: Lock, folder: Path, reduced: bool) -> Any:
    """Return DeepSpeed's configuration: the file, or what it says with the smaller micro-batch."""
    path = folder / (lock.file("deepspeed.json") or "deepspeed.json")
    if not (lock.engine.deepspeed and reduced):
        return str(path)
    # Preflight has held the file against the reviewed lock; this start takes less than that.
    content = json.loads(path.read_bytes())
    content["train_micro_batch_size_per_gpu"] = lock.training.micro_batch_size
    content["gradient_accumulation_steps"] = lock.training.gradient_accumulation_steps
    return content


def _accelerator(lock: Lock, configuration: Any) -> Any:
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

    handlers: list[Any] = [DistributedDataParallelKwargs(find_unused_parameters=True)]
    if lock.parallel.world_size > 1 or lock.engine.deepspeed:
        # Without a name CPU processes stay apart; with one a single process looks for a group it has not.
        handlers.append(InitProcessGroupKwargs(backend=lock.parallel.backend, timeout=group_timeout(lock)))
    common: dict[str, Any] = {
        "gradient_accumulation_steps": lock.training.gradient_accumulation_steps,
        "kwargs_handlers": handlers,
    }
    if not lock.engine.deepspeed:
        precision = lock.training.precision
        return Accelerator(
            cpu=lock.hardware.device == "cpu", mixed_precision="no" if precision == "fp32" else precision, **common
        )
    import deepspeed
    from accelerate import DeepSpeedPlugin

    # Building the shared-memory op takes 20 s of compiling, for a gain that small CPU runs do not see.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=configuration), **common)


def make_engine(lock: Lock, model: nn.Module, folder: Path, reduced: bool = False) -> TorchEngine | AccelerateEngine:
    """Start the lock's engine on a model; `folder` holds deepspeed.json.

    `reduced` tells that the lock's micro-batch is smaller than the reviewed one, and so than deepspeed.json's.
    Raises R502 where the process group is not the lock's, R503 where the engine's batch is not, R504 where
    torch has no such device.
    """
    return AccelerateEngine(lock, model, folder, reduced) if lock.engine.use_accelerate else TorchEngine(lock, model)
