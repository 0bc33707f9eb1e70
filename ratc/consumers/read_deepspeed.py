"""Run by itself with the world size: has DeepSpeed's own config classes read the JSON on standard input."""

import contextlib
import io
import json
import sys
import tempfile
from unittest.mock import patch

sys.path.pop(0)  # this folder is no place to import from

world = int(sys.argv[1])
with contextlib.redirect_stdout(io.StringIO()):
    from deepspeed.runtime.config import DeepSpeedConfig


class World:
    """Stands for the process group that is not there when compiling."""

    def get_data_parallel_world_size(self) -> int:
        return world


text = sys.stdin.read()
with tempfile.NamedTemporaryFile("w", suffix=".json") as file, contextlib.redirect_stdout(io.StringIO()):
    file.write(text)
    file.flush()
    try:
        with patch("deepspeed.runtime.config.dist.get_rank", return_value=0):
            config = DeepSpeedConfig(file.name, mpu=World())
    except Exception as error:  # whatever it raises is its answer
        sys.exit(" ".join(str(error).split()) or repr(error))
if config.train_batch_size != json.loads(text)["train_batch_size"]:
    sys.exit("it understands another global batch size")
