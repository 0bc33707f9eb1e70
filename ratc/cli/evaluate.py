"""Score a checkpoint on one split of its data, as training does, or on another data folder.

The runtime does it: `python -m ratc_runtime evaluate` with these words, in the Python of `RATC_PYTHON` or in this one.
Code that a checkpoint names is run only with --trust, or if its folder is trusted.
"""

from __future__ import annotations

from ratc.cli import options
from ratc.cli.command import declare
from ratc.workflow import runtime_command


@declare(
    __doc__,
    options.of_the_runtime(),
    {
        "ratc evaluate outputs/brain": "the test split, as at the end of the run",
        "ratc evaluate outputs/brain --split val --data-dir /data/other -o scores.json": "other data",
        "ratc evaluate -- --help": "all options",
    },
    context_settings={"ignore_unknown_options": True},
)
def command(words: tuple[str, ...], dry_run: bool) -> int:
    """The exit status of the runtime's command."""
    return runtime_command.run("evaluate", words, dry_run)
