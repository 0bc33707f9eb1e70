"""The commands for a run's output folder: `python -m ratc_runtime COMMAND …`."""

from __future__ import annotations

import sys
from importlib import import_module

from ratc_runtime.errors import visible

COMMANDS = {
    "evaluate": ("ratc_runtime.commands.evaluate", "score a checkpoint on one split of the data"),
    "predict": ("ratc_runtime.commands.predict", "write predicted masks, boxes or classes for a folder of images"),
    "summary": (
        "ratc_runtime.commands.summary",
        "print mean and standard deviation of the scores of several runs, such as folds",
    ),
    "export": (
        "ratc_runtime.commands.export",
        "write the weights of a checkpoint as safetensors, or its model as ONNX",
    ),
    "compress": (
        "ratc_runtime.extras.compress",
        "prune and quantize a checkpoint, and measure the model before and after",
    ),
    "sync": ("ratc_runtime.commands.sync", "send curves that wait in the output folder to MLflow or Weights & Biases"),
}


def main() -> int:
    """Run the command named by the first argument; return 2 if there is no such command."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        del sys.argv[1]
        return int(import_module(COMMANDS[name][0]).main())
    asked = name in ("-h", "--help")
    lines = [f"  {command:<9} {text}" for command, (_, text) in COMMANDS.items()]
    if not asked:
        lines = [visible(f"there is no command `{name}`"), *lines]
    print("usage: python -m ratc_runtime COMMAND …\n", *lines, sep="\n", file=sys.stdout if asked else sys.stderr)
    return 0 if asked else 2


if __name__ == "__main__":
    raise SystemExit(main())
