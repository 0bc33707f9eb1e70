"""What the tests of the trace share: requests, running the tracer as a process, and replaying a trace."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ratc.tracing import warm
from tests.places import RUNTIME

#: What a request may name: `zoo`, `hostile`, `recurrent_models`.
MODELS = Path(__file__).with_name("models")

BASE: dict[str, Any] = {
    "model": {
        "name": "rat",
        "multi_scale": False,
        "args": {"feature_dims": 16, "num_blocks": 1, "num_heads": 2, "iters": 1, "mlp_dropout": 0.1},
    },
    "training": {
        "precision": "fp32",
        "tf32": True,
        "optimizer": "adamw",
        "betas": [0.9, 0.999],
        "weight_decay": 0.01,
        "learning_rate": 0.0001,
        "gradient_clipping": 1.0,
        "loss": {"name": "combined", "args": {}},
        "activation_checkpointing": False,
        "compile": False,
    },
    "data": {"image_size": [32, 32], "channels": 3, "scales": [1.0]},
    "engine": "torch",
    "accumulation": 1,
    "compute_capability": "8.0",
}
ZOO_LOSS = {"name": "zoo:mean_loss", "args": {}}


def request(**changes: Any) -> dict[str, Any]:
    """Return a request; keys are dotted with `__`, as training__precision="bf16"."""
    content = copy.deepcopy(BASE)
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        target = content
        for parent in parents:
            target = target[parent]
        target[last] = value
    return content


def zoo(name: str, **changes: Any) -> dict[str, Any]:
    """Return a request for a model of zoo.py (or `module:name`) with a loss that only averages."""
    arguments = changes.pop("args", {})
    model = {"name": name if ":" in name else f"zoo:{name}", "multi_scale": False, "args": arguments}
    return request(model=model, training__loss=ZOO_LOSS, **changes)


def run(arguments: list[str], content: Any, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run Python with a request on standard input, where the zoo can be imported; torch is imported already.

    ``arguments`` are those of Python: `-m MODULE`, `-c PROGRAM` or a file, and what follows.
    """
    text = content if isinstance(content, str) else json.dumps(content)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(RUNTIME), str(MODELS)])}
    with tempfile.TemporaryDirectory() as place:
        streams = [Path(place, name) for name in ("in", "out", "errors")]
        streams[0].write_text(text)
        program = Path(place, "program.py")
        first, *others = arguments
        if first == "-c":
            program.write_text(others.pop(0))
        work = {"module": others.pop(0)} if first == "-m" else {"file": str(program) if first == "-c" else first}
        job = warm.start(work, others, str(MODELS), environment, {}, tuple(map(str, streams)))  # type: ignore[arg-type]
        try:
            status = job.wait(timeout)
        finally:
            if job.returncode is None:
                os.killpg(job.pid, signal.SIGKILL)
                job.wait()
        return subprocess.CompletedProcess(arguments, status, streams[1].read_text(), streams[2].read_text())


def trace(content: Any, folder: Path) -> dict[str, Any]:
    """Return the trace of a request; fail with what the tracer says."""
    output = folder / "trace.json"
    done = run(["-m", "ratc_runtime.trace", str(output)], content)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(output.read_text())
    return result


def traces(contents: list[Any], folder: Path) -> list[dict[str, Any]]:
    """Return the traces of many requests, which share the import of torch; none is confirmed at a third micro-batch."""
    outputs = [folder / f"{number}.json" for number in range(len(contents))]
    asked = [[content, str(output)] for content, output in zip(contents, outputs, strict=True)]
    done = run([str(Path(__file__).with_name("tracing_many.py"))], asked)
    assert done.returncode == 0, done.stderr
    return [json.loads(output.read_text()) for output in outputs]


def failure(content: Any, folder: Path) -> dict[str, Any]:
    """Return the finding of a request that cannot be traced."""
    output = folder / "trace.json"
    done = run(["-m", "ratc_runtime.trace", str(output)], content)
    assert (done.returncode, done.stdout, output.exists()) == (1, "", False), done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    found: dict[str, Any] = json.loads(lines[0])
    return found


def replay(made: dict[str, Any], batch: int) -> tuple[float, float, dict[str, float]]:
    """Return the peak of live bytes, those alive at the end, and what the peak consists of, by kind."""
    products = {block: lines for block, rule, *lines in made["scratch"] if rule == "product"}
    sizes: dict[int, tuple[float, str]] = {}
    live = peak = 0.0
    kinds: dict[str, float] = {}
    for event in made["events"]:
        if len(event) == 1:
            live -= sizes.pop(event[0])[0]
            continue
        block, fixed, per_sample, _, _, kind = event
        size = math.prod(a + b * batch for a, b in products.get(block, [(fixed, per_sample)]))
        sizes[block] = (size, made["kinds"][kind])
        live += sizes[block][0]
        if live > peak:
            peak, kinds = live, {}
            for size, name in sizes.values():
                kinds[name] = kinds.get(name, 0) + size
    return peak, live, kinds


def counted(content: Any, batch: int) -> tuple[int, int]:
    """Return the same two numbers as the CPU's allocator saw them, for the same step on real tensors."""
    done = run([str(Path(__file__).with_name("counting.py")), str(batch)], content)
    assert done.returncode == 0, done.stderr
    peak, live = json.loads(done.stdout.splitlines()[-1])
    return peak, live


def allocations(made: dict[str, Any], **wanted: str) -> Iterator[tuple[int, float, float, str, str, str]]:
    """Yield (index, fixed, per sample, phase, module, kind) of the allocations with the wanted names."""
    for index, event in enumerate(made["events"]):
        if len(event) == 1:
            continue
        names = {
            "phase": made["phases"][event[3]],
            "module": made["modules"][event[4]],
            "kind": made["kinds"][event[5]],
        }
        if all(names[key] == value for key, value in wanted.items()):
            yield index, event[1], event[2], names["phase"], names["module"], names["kind"]
