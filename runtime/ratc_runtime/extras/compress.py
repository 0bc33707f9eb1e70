"""Compress a checkpoint after training, and measure the effect: `python -m ratc_runtime compress CHECKPOINT -o DIR`.

Weights are pruned by torch's own utilities and quantized by torchao (extra `compress`). The report holds size,
sparsity, latency and the score before and after. If the score drops by more than the tolerance, the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ratc_runtime import inference
from ratc_runtime.checkpoint.files import fault_of, write_file
from ratc_runtime.checkpoint.header import UNREADABLE
from ratc_runtime.commands.evaluate import score
from ratc_runtime.config import option_types
from ratc_runtime.config.lock import lock_from
from ratc_runtime.data.folders import SPLITS
from ratc_runtime.errors import RuntimeFinding, say
from ratc_runtime.extras.pruning import PRUNED, prune_weights
from ratc_runtime.extras.quantizing import MODES, quantize, torchao
from ratc_runtime.inference import OpenCheckpoint
from ratc_runtime.models.build import build_model
from ratc_runtime.output.atomic import replacing, write_text
from ratc_runtime.output.results import finite, prepare_output, unwritable
from ratc_runtime.training.memory_rehearsal import noise

MODEL, REPORT = "model.pt", "report.json"
_WARM, _TIMED = 3, 15


def load_compressed(path: Path, trust: bool = False) -> nn.Module:
    """Return the model of a `model.pt` from this module, in evaluation mode on the CPU.

    An own model is built only if it is trusted, as by `open_checkpoint` (R584). Raises R508 if the file is damaged or
    of another kind, R545 if it is quantized and torchao is not installed.
    """
    try:
        fault = fault_of(path)
        if fault is None:
            # torchao makes its tensors known to torch's safe reader when it is imported.
            _known_tensors()
            content = torch.load(path, map_location="cpu", weights_only=True)
            lock = lock_from(json.loads(content["lock"]))
            inference.check_trust([lock.model.name], path, trust)
            model = build_model(lock)
            model.load_state_dict(content["compressed"], assign=True)
            return model.eval()
    except UNREADABLE as error:
        fault = f"{type(error).__name__}: {error}"[:600]
    raise RuntimeFinding("R508", f"compressed model {path} cannot be read", fault)


def _known_tensors() -> None:
    try:
        import torchao.quantization  # noqa: F401
    except ImportError:
        return  # a model that was pruned alone needs none


def sparsity_of(model: nn.Module) -> dict[str, float]:
    """Return the share of zeros in the weights of each linear and convolution layer, by name."""
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, PRUNED):
            weight: Any = layer.weight
            weight = (
                weight.dequantize() if hasattr(weight, "dequantize") and type(weight) is not nn.Parameter else weight
            )
            found[name] = float((weight == 0).float().mean())
    return found


def latency(model: OpenCheckpoint, count: int) -> dict[str, float]:
    """Return median, minimum and maximum of the seconds for a prediction of `count` samples, after a warm-up."""
    image, _ = noise(model.task, model.lock, count, model.engine.world.device)
    seconds = []
    for turn in range(_WARM + _TIMED):
        begun = time.perf_counter()
        model.engine.predict(image)
        if turn >= _WARM:
            seconds.append(time.perf_counter() - begun)
    return {
        "batch": count,
        "runs": _TIMED,
        "median": statistics.median(seconds),
        "least": min(seconds),
        "most": max(seconds),
    }


def _measure(model: OpenCheckpoint, split: str, data_dir: Path, file: Path) -> dict[str, Any]:
    found, _ = score(model, split, data_dir)
    counts = sorted({1, model.lock.training.micro_batch_size})
    layers = sparsity_of(model.engine.module)
    content = {"lock": json.dumps(model.lock.model_dump(), default=str)}
    write_file(file, {**content, "compressed": model.engine.module.state_dict()})
    return {
        "bytes": file.stat().st_size,
        "scores": {**found.scores, "loss": found.loss},
        "sparsity": layers,
        "latency_seconds": [latency(model, count) for count in counts],
    }


def loss_of_score(before: float, after: float | None, larger_is_better: bool) -> float:
    """Return by how much a score got worse, in its unit (below 0: better); infinite if it is undefined afterwards."""
    if after is None or math.isnan(after):
        return math.inf
    return before - after if larger_is_better else after - before


def _run(arguments: argparse.Namespace) -> int:
    output: Path = arguments.output
    if (output / MODEL).exists() and not arguments.force:
        raise RuntimeFinding("R546", f"{output / MODEL} exists", help="name another folder, or add --force")
    model = inference.open_checkpoint(
        arguments.checkpoint, arguments.lock, "cpu", arguments.batch_size, arguments.trust
    )
    _from_lock(arguments, model)
    if arguments.quantize:
        torchao()  # before anything takes time
    name = arguments.metric or model.lock.checkpoint.best_metric
    if name not in {*model.task.metrics, "loss"}:
        raise RuntimeFinding("R547", f"there is no score `{name}`", f"there are {', '.join(model.task.metrics)}, loss")
    data_dir = arguments.data_dir or Path(os.environ.get("RAT_DATA_DIR") or model.lock.data.data_dir)
    prepare_output(output)
    # Under a hidden name until it is the reported model.
    with replacing(output / MODEL) as work:
        before = _measure(model, arguments.split, data_dir, work)
        score_before = before["scores"][name]
        if score_before is None or math.isnan(score_before):
            raise RuntimeFinding(
                "R547", f"`{name}` has no value before the compression: there is nothing to compare with"
            )
        if arguments.sparsity:
            prune_weights(model.engine.module, arguments.sparsity, arguments.structured)
        if arguments.quantize:
            quantize(model.engine.module, arguments.quantize)
        after = _measure(model, arguments.split, data_dir, work)
    metric = model.task.metrics.get(name)
    worse = loss_of_score(before["scores"][name], after["scores"][name], bool(metric and metric.larger_is_better))
    report = {
        "checkpoint": str(model.path),
        "fingerprint": model.fingerprint,
        "split": arguments.split,
        "sparsity": arguments.sparsity,
        "structured": arguments.structured,
        "quantization": arguments.quantize,
        "metric": name,
        "tolerance": arguments.tolerance,
        "worse_by": worse,
        "before": before,
        "after": after,
    }
    write_text(output / REPORT, json.dumps(finite(report), indent=2) + "\n")
    say(_table(name, before, after))
    say(f"written: {output / MODEL}, {output / REPORT}")
    if worse > arguments.tolerance:
        raise RuntimeFinding(
            "R548",
            f"`{name}` is worse by {worse:.4g}, more than the tolerance of {arguments.tolerance:g}",
            help="prune less, quantize weights only, or allow more with --tolerance",
        )
    return 0


def _from_lock(arguments: argparse.Namespace, model: OpenCheckpoint) -> None:
    """Fill missing arguments from the lock's section `compression`, if it has one."""
    asked = model.lock.compression
    if arguments.sparsity is None:
        # Weights pruned in training are pruned already.
        arguments.sparsity = 0.0 if asked is None or asked.begin_epoch is not None else asked.sparsity
    if arguments.structured is None:
        arguments.structured = asked is not None and asked.structured
    if arguments.quantize is None and asked is not None:
        arguments.quantize = asked.quantization
    if arguments.quantize == "none":
        arguments.quantize = None
    if arguments.metric is None and asked is not None:
        arguments.metric = asked.metric
    if arguments.tolerance is None:
        arguments.tolerance = 0.01 if asked is None else asked.tolerance


def _table(name: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    rows: list[tuple[str, ...]] = [("", "before", "after"), ("bytes", f"{before['bytes']:,}", f"{after['bytes']:,}")]
    zeros = (f"{_mean_sparsity(side['sparsity']):.1%}" for side in (before, after))
    rows.append(("zeros", *zeros))
    rows.append((name, *(str(side["scores"][name])[:8] for side in (before, after))))
    for one, other in zip(before["latency_seconds"], after["latency_seconds"], strict=True):
        label = f"ms, batch {one['batch']}"
        rows.append((label, *(f"{1000 * side['median']:.2f}" for side in (one, other))))
    return "\n".join(f"{label:<16}{left:>16}{right:>16}" for label, left, right in rows)


def _mean_sparsity(layers: dict[str, float]) -> float:
    return statistics.fmean(layers.values()) if layers else 0.0


def main(argv: list[str] | None = None) -> int:
    """Compress, measure and write; return 0, or 1 after a finding or if the score is beyond the tolerance."""
    parser = argparse.ArgumentParser(
        prog="python -m ratc_runtime compress",
        description="Prune and quantize a checkpoint, and measure the model before and after.",
    )
    parser.add_argument("checkpoint", type=Path, help="what `ratc_runtime evaluate` takes")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the folder to write into")
    parser.add_argument("--lock", type=Path, help="the lock, if the file holds none (.safetensors)")
    parser.add_argument(
        "--batch-size", type=option_types.count, help="samples in a batch (default: the micro-batch of the lock)"
    )
    group = parser.add_argument_group("how to compress, instead of the lock's section `compression`")
    group.add_argument("--sparsity", type=option_types.share, help="share of each layer's weights set to zero")
    group.add_argument(
        "--structured", action=argparse.BooleanOptionalAction, help="whole output channels instead of single weights"
    )
    group.add_argument("--quantize", choices=(*MODES, "none"), help="int8 for weights, or for activations, too")
    parser.add_argument("--split", choices=SPLITS, default="val", help="split to score (default: val)")
    parser.add_argument(
        "--data-dir", type=Path, help="folder of the data (default: RAT_DATA_DIR, or the folder in the lock)"
    )
    group.add_argument(
        "--metric", help="the score that may not get worse (without such a section: the lock's best_metric)"
    )
    group.add_argument("--tolerance", type=float, help="how much worse it may be (without such a section: 0.01)")
    parser.add_argument("--force", action="store_true", help="overwrite an existing model")
    parser.add_argument(
        "--trust", action="store_true", help="run code that the checkpoint's lock names, `package.module:callable`"
    )
    arguments = parser.parse_args(argv)
    try:
        return _run(arguments)
    except (RuntimeFinding, OSError) as error:
        finding = error if isinstance(error, RuntimeFinding) else unwritable(arguments.output, error)
        print(finding.render(), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
