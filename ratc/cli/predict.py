"""Write the masks, boxes or classes that a trained model gives for a folder of images.

The runtime does it: `python -m ratc_runtime predict` with these words, in the Python of `RATC_PYTHON` or in this one.
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
        "ratc predict outputs/brain images -o masks": "by the best checkpoint of a run",
        "ratc predict outputs/shapes photo.png -o found --threshold 0.3": "boxes of one picture",
        "ratc predict -- --help": "all options",
    },
    context_settings={"ignore_unknown_options": True},
)
def command(words: tuple[str, ...], dry_run: bool) -> int:
    """The exit status of the runtime's command."""
    return runtime_command.run("predict", words, dry_run)
