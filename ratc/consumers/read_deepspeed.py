"""Run by itself: has DeepSpeed's own classes read JSON texts. On standard input: a JSON list of [text, world size].

Prints a JSON list: its words about each text that it refuses, nothing about the others.
"""

import contextlib
import io
import json
import sys
import tempfile
from unittest.mock import patch

if not getattr(sys.flags, "safe_path", False):
    sys.path.pop(0)  # this folder is not a place to import from

# DeepSpeed imports MLflow if it is installed, for its autotuner. That takes longer than all the rest together.
sys.modules["mlflow"] = None  # type: ignore[assignment]  # how Python is told that a module is missing

with contextlib.redirect_stdout(io.StringIO()):
    from deepspeed.runtime.config import DeepSpeedConfig


class World:
    """Stands for the process group that is not there when compiling."""

    def __init__(self, size: int) -> None:
        self.size = size

    def get_data_parallel_world_size(self) -> int:
        return self.size


def problem(text: str, world_size: int) -> str:
    """Return DeepSpeed's complaint about a text for that number of processes; empty if it accepts the text."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file, contextlib.redirect_stdout(io.StringIO()):
        file.write(text)
        file.flush()
        try:
            with patch("deepspeed.runtime.config.dist.get_rank", return_value=0):
                config = DeepSpeedConfig(file.name, mpu=World(world_size))
        except Exception as error:  # any exception is its answer
            return " ".join(str(error).split()) or repr(error)
    same = config.train_batch_size == json.loads(text)["train_batch_size"]
    return "" if same else "it understands another global batch size"


print(json.dumps([problem(*item) for item in json.load(sys.stdin)]))
