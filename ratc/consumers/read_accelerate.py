"""Run by itself: has Accelerate's own loader read YAML texts. On standard input: a JSON list of [text, world size].

Prints a JSON list: its words about each text that it refuses, nothing about the others.
"""

import json
import sys
import tempfile

if not getattr(sys.flags, "safe_path", False):
    sys.path.pop(0)  # this folder is not a place to import from

from accelerate.commands.config.config_args import load_config_from_file


def problem(text: str) -> str:
    """Return Accelerate's complaint on a text; empty if it accepts it."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        try:
            loaded = load_config_from_file(file.name)
        except Exception as error:  # any exception is its answer
            return " ".join(str(error).split()) or repr(error)
    valid = isinstance(loaded.num_processes, int) and loaded.num_processes >= 1
    return "" if valid else "num_processes is not a count"


print(json.dumps([problem(text) for text, _ in json.load(sys.stdin)]))
