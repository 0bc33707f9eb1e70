"""Run by itself with the world size: has DeepSpeed's own config classes read each of the JSON texts in the JSON list on
standard input.

Prints a JSON list: its words about each text that it refuses, nothing about the others.
"""

import contextlib
import io
import json
import sys
import tempfile
from unittest.mock import patch

sys.path.pop(0)  # this folder is no place to import from

# DeepSpeed imports MLflow if it is installed, for its autotuner. That takes longer than all the rest together.
sys.modules["mlflow"] = None  # type: ignore[assignment]

world = int(sys.argv[1])
with contextlib.redirect_stdout(io.StringIO()):
    from deepspeed.runtime.config import DeepSpeedConfig


class World:
    """Stands for the process group that is not there when compiling."""

    def get_data_parallel_world_size(self) -> int:
        return world


def problem(text: str) -> str:
    """What DeepSpeed says against a text."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file, contextlib.redirect_stdout(io.StringIO()):
        file.write(text)
        file.flush()
        try:
            with patch("deepspeed.runtime.config.dist.get_rank", return_value=0):
                config = DeepSpeedConfig(file.name, mpu=World())
        except Exception as error:  # whatever it raises is its answer
            return " ".join(str(error).split()) or repr(error)
    same = config.train_batch_size == json.loads(text)["train_batch_size"]
    return "" if same else "it understands another global batch size"


print(json.dumps([problem(text) for text in json.load(sys.stdin)]))
