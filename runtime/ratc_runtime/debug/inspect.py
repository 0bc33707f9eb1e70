"""Inspects each training step of a debug run: a readable block on stdout and in `debug.log`, a line of `debug.jsonl`.

It wraps `training_step` and the `backward` and `update` of this engine, so the step itself is that of every run. If the
loss is not finite, it names the first module with a non-finite output (R526); if a gradient is NaN, the line of its
forward pass (R527). Both end the run on every rank.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from torch import nn

from ratc_runtime.debug import describe
from ratc_runtime.errors import RuntimeFinding, warn
from ratc_runtime.output.results import finite
from ratc_runtime.training.step import StepResult, training_step

if TYPE_CHECKING:
    from ratc_runtime.training.run import Run

LOG, LINES = "debug.log", "debug.jsonl"
#: Names in one line of a list that may be long.
_NAMED = 8
#: Our own files through which each forward pass goes. A custom model's folder may be called `debug` too.
_PACKAGE = Path(__file__).parents[1]
_OWN_FILES = (f"{_PACKAGE / 'debug'}/", str(_PACKAGE / "training/loop.py"), str(_PACKAGE / "training/step.py"))
#: Warnings that a backward pass has given before.
_warned: dict[Any, Any] = {}


class Inspector:
    """The inspector of one debug run. Only the main process writes; every rank takes part."""

    def __init__(self, run: Run) -> None:
        self.run = run
        # NaN within backward is not an error while fp16's loss scale adapts.
        torch.autograd.set_detect_anomaly(True, check_nan=run.lock.training.precision != "fp16")
        torch.use_deterministic_algorithms(True, warn_only=True)
        self._looking = False
        self._first: dict[str, Any] | None = None  # the first module with a non-finite output
        self._parts: dict[str, Any] = {}
        self._micro: list[dict[str, Any]] = []
        self._update: dict[str, Any] = {}
        self._names: list[list[str]] = []
        # DeepSpeed's own object stands around the model.
        self._model: nn.Module = run.engine._engine.module if run.engine.deepspeed else run.engine.module
        self._depth = describe.depth(name for name, _ in self._model.named_parameters())
        for name, module in self._model.named_modules():
            module.register_forward_hook(self._on_forward(name))
        if isinstance(run.criterion, nn.Module):
            for name, module in run.criterion.named_children():
                module.register_forward_hook(self._on_part(name))
        self._wrap_backward(run.engine)
        for path in (LOG, LINES):
            self._write(path, "", truncate=True)

    def around(self, names: list[list[str]]) -> Callable[..., StepResult]:
        """Return the inspected training step. `names` are those of the samples, one list per micro-batch."""
        self._names = names
        return self._step

    def _step(
        self,
        engine: Any,
        criterion: Callable[..., torch.Tensor],
        micro_batches: Iterable[Any],
        accumulation: int,
        learning_rate: float,
        max_norm: float | None,
        weights: Sequence[float] | None = None,
    ) -> StepResult:
        self._micro, self._update = [], {}
        result = training_step(
            engine,
            self._criterion(criterion),
            self._inputs(micro_batches),
            accumulation,
            learning_rate,
            max_norm,
            weights,
        )
        found = {
            "epoch": self.run.progress.epoch + 1,
            "step": self.run.progress.step + 1,
            "rank": self.run.world.rank,
            "learning_rate": learning_rate,
            "clipped_at": max_norm,
            "micro_batches": self._micro,
            **self._update,
        }
        self._report(found)
        return result

    # Forward

    def _inputs(self, micro_batches: Iterable[Any]) -> Iterator[Any]:
        for batch in micro_batches:
            image, target = batch
            self._micro.append(
                {
                    "samples": list(self._names[-1]) if self._names else [],
                    "input": _records(image, "input"),
                    "target": _records(target, "target"),
                }
            )
            self._first, self._parts, self._looking = None, {}, True
            if not describe.is_finite(image):
                self._first = {"module": "", "what": "the input of the model is not finite"}
            yield batch

    def _criterion(self, criterion: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def judged(output: Any, target: Any) -> torch.Tensor:
            loss = criterion(output, target)
            self._looking = False  # activation checkpointing recomputes modules, which are not inspected twice
            micro = self._micro[-1]
            micro["output"] = _records(output, "output")
            micro["loss"], micro["loss_parts"] = float(loss.detach()), dict(self._parts)
            micro["first_not_finite"] = self._first
            self._raise_together(bool(torch.isfinite(loss.detach()).all()))
            return loss

        return judged

    def _raise_together(self, good: bool) -> None:
        """Raise R526 on every rank if the loss of one of them is not finite."""
        first = self._first or {"module": "", "what": "the outputs of all modules are finite, but the loss is not"}
        bad = None if good else {**first, "samples": self._micro[-1]["samples"]}
        everywhere = self.run.world.gather(bad)
        if not any(everywhere):
            return
        run, several = self.run, self.run.world.size > 1
        self._report({"epoch": run.progress.epoch + 1, "step": run.progress.step + 1, "micro_batches": self._micro})
        lines = []
        for rank, found in enumerate(everywhere):
            if found is not None:
                lines.append((f"rank {rank}: " if several else "") + found["what"])
                lines.append(f"samples of the micro-batch: {', '.join(found['samples'])}")
        last = run.checkpoints.newest()
        lines.append(f"the last good checkpoint is kept: {last}" if last else "no checkpoint was made before")
        raise RuntimeFinding(
            "R526",
            f"the loss is not finite in epoch {run.progress.epoch + 1}, step {run.progress.step + 1}"
            + (f", on rank {', '.join(str(r) for r, found in enumerate(everywhere) if found)}" if several else ""),
            "\n".join(lines),
            f"{run.output_dir / LOG} has shapes, ranges and norms of every step up to here",
        )

    def _on_forward(self, name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            if not self._looking or self._first is not None or describe.is_finite(output):
                return
            what = f"the first output that is not finite is that of `{name or 'the model'}` ({type(module).__name__})"
            own = dict(module.named_parameters(recurse=False))
            wrong = [key for key, value in own.items() if not describe.is_finite(value)]
            what += "; its input is finite" if describe.is_finite(inputs) else "; its input is not finite either"
            what += f", its {', '.join(wrong)} not" if wrong else ", and so are its weights" if own else ""
            self._first = {"module": name, "what": what}

        return look

    def _on_part(self, name: str) -> Callable[..., None]:
        def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if self._looking and isinstance(output, torch.Tensor) and output.numel() == 1:
                self._parts[name] = float(output.detach())

        return look

    # Backward and update

    def _wrap_backward(self, engine: Any) -> None:
        backward = engine.backward
        engine.backward = lambda loss: _explained(backward, loss)
        if engine.deepspeed:
            inner = engine._engine  # DeepSpeed clips and updates within backward
            step = inner.step
            inner.step = lambda *a, **k: self._around_update(step, *a, **k) if _at_boundary(inner) else step(*a, **k)
        else:
            update = engine.update
            engine.update = lambda max_norm: self._around_update(update, max_norm)

    def _around_update(self, update: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        named = [(name, p) for name, p in self._model.named_parameters() if p.requires_grad]
        gradients = [(name, self._gradient(p)) for name, p in named]
        by_module = describe.norms(gradients, self._depth, self._scale())
        # On the CPU: a copy of the weights may not fit beside them on a card.
        before = {name: self._weight(p).to("cpu", copy=True) for name, p in named}
        missing = [name for name, gradient in gradients if gradient is None]
        del gradients
        done = update(*args, **kwargs)
        weights = describe.norms(before.items(), self._depth)
        changes = describe.norms(((name, self._weight(p).cpu() - before[name]) for name, p in named), self._depth)
        self._update = {
            "gradient_norm": describe.total(by_module),
            "gradient_norms": by_module,
            "without_gradient": missing,
            "weight_norms": weights,
            "update_to_weight": {name: changes[name] / weights[name] if weights[name] else None for name in weights},
        }
        return done

    def _scale(self) -> float:
        """Return the current fp16 loss scale of the gradients."""
        engine = self.run.engine
        scaler = getattr(engine, "scaler", None) or getattr(getattr(engine, "accelerator", None), "scaler", None)
        return float(scaler.get_scale()) if scaler is not None and scaler.is_enabled() else 1.0

    def _gradient(self, parameter: torch.Tensor) -> torch.Tensor | None:
        if not self.run.engine.deepspeed:
            return None if parameter.grad is None else _whole(parameter.grad)
        from deepspeed.utils import safe_get_full_grad

        return safe_get_full_grad(parameter)

    def _weight(self, parameter: torch.Tensor) -> torch.Tensor:
        found = None
        if self.run.engine.deepspeed:
            from deepspeed.utils import safe_get_full_fp32_param

            found = safe_get_full_fp32_param(parameter)
        return _whole((parameter if found is None else found).detach())

    # Output

    def _report(self, found: dict[str, Any]) -> None:
        if not self.run.world.main:
            return
        block = _block(found, self.run)
        self.run.reporter.say(block)
        self._write(LOG, block + "\n\n")
        self._write(LINES, json.dumps(finite(found)) + "\n")

    def _write(self, name: str, text: str, truncate: bool = False) -> None:
        if not self.run.world.main:
            return
        path: Path = self.run.output_dir / name
        try:
            file: IO[str]
            with path.open("w" if truncate else "a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            warn(f"{path} not written: {error.strerror or error}")


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of which each rank may hold a shard (FSDP2). Every rank calls this."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _at_boundary(engine: Any) -> bool:
    return bool(engine.is_gradient_accumulation_boundary())


def _records(value: Any, name: str) -> dict[str, Any]:
    return {place: describe.record(tensor) for place, tensor in describe.tensors(value, name)}


def _explained(backward: Callable[[torch.Tensor], None], loss: torch.Tensor) -> None:
    """Run a backward pass. Raise R527 with the line of the forward pass if anomaly detection finds NaN."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            backward(loss)
            error = None
        except RuntimeError as caught:
            error = caught
    forward = [str(warning.message) for warning in seen if "Traceback of forward call" in str(warning.message)]
    for warning in seen:
        if str(warning.message) not in forward:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno, registry=_warned
            )
    if error is None:
        return
    if "returned nan values" not in str(error):
        if forward:
            print(forward[-1], file=sys.stderr, flush=True)
        raise error
    told = forward[-1].partition("(Triggered internally")[0] if forward else ""
    frames = [frame for frame in told.split('  File "')[1:] if not _is_dull(frame)]
    raise RuntimeFinding(
        "R527",
        # The rest is torch's own stack.
        f"a gradient is NaN: {str(error).partition(chr(10))[0].partition(' Exception raised from')[0].strip()}",
        "it belongs to this line of the forward pass, innermost last:\n"
        + "".join(f'  File "{line.rstrip()}\n' for line in frames[-4:]).rstrip(),
        "look for a root, a division or a logarithm at zero: its value may be finite and its gradient not",
        everywhere=False,
    ) from None


def _is_dull(frame: str) -> bool:
    """Return whether a frame belongs to code that every model and loss runs, and so does not help to find an error."""
    file = frame.partition('"')[0]
    return file.startswith(_OWN_FILES) or file == "<frozen runpy>" or "/torch/nn/" in file or "/deepspeed/" in file


def _block(found: dict[str, Any], run: Run) -> str:
    """Return a readable block for a step."""
    lines = [f"debug: epoch {found['epoch']}, step {found['step']}/{run.steps}, rank {run.world.rank}"]
    for number, micro in enumerate(found["micro_batches"], start=1):
        lines.append(f"  micro-batch {number}: {_some(micro['samples'])}")
        for kind in ("input", "target", "output"):
            for place, one in micro.get(kind, {}).items():
                lines.append(f"    {place:<10} {describe.sentence(one)}")
        if "loss" in micro:
            parts = "".join(f"  {name} {value:.6g}" for name, value in micro["loss_parts"].items())
            lines.append(f"    {'loss':<10} {micro['loss']:.6g}{parts}")
        if micro.get("first_not_finite"):
            lines.append(f"    {micro['first_not_finite']['what']}")
    if "gradient_norm" in found:
        clipped = f", clipped at {found['clipped_at']:g}" if found["clipped_at"] is not None else ""
        lines.append(
            f"  gradient norm {found['gradient_norm']:.4g}{clipped}; learning rate {found['learning_rate']:.3g}"
        )
        lines.append(f"    {'module':<32} {'gradient':>11} {'weight':>11} {'update/weight':>14}")
        for name, weight in found["weight_norms"].items():
            gradient, ratio = found["gradient_norms"].get(name), found["update_to_weight"][name]
            shown = (f"{gradient:.4g}" if gradient is not None else "none", "none" if ratio is None else f"{ratio:.3g}")
            lines.append(f"    {name:<32} {shown[0]:>11} {weight:>11.4g} {shown[1]:>14}")
        if found["without_gradient"]:
            lines.append(f"  {len(found['without_gradient'])} without a gradient: {_some(found['without_gradient'])}")
    return "\n".join(lines)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
