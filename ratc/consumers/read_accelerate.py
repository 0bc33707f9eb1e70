"""Run by itself: has Accelerate's own loader read the YAML on standard input; exits 1 with its words if it refuses."""

import sys
import tempfile

sys.path.pop(0)  # this folder is no place to import from

from accelerate.commands.config.config_args import load_config_from_file

with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
    file.write(sys.stdin.read())
    file.flush()
    try:
        loaded = load_config_from_file(file.name)
    except Exception as error:  # whatever it raises is its answer
        sys.exit(" ".join(str(error).split()))
if not isinstance(loaded.num_processes, int) or loaded.num_processes < 1:
    sys.exit("num_processes is not a count")
