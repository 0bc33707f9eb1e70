"""The commands on finished runs, `ratc evaluate`, `predict` and `summary`: the runtime's own, with the words that they
get.
"""

from __future__ import annotations

import click

from ratc.cli import options
from ratc.cli.command import Argument, declare
from ratc.workflow import runtime_command

_HELP = """

The runtime does it: `python -m ratc_runtime {name}` gets these arguments. It runs in the Python of `RATC_PYTHON`;
if that is not set, in this one.
If a checkpoint names code of your own, it is run only with --trust, or if its folder is trusted.
"""
_EVALUATE = "Score a checkpoint on one split of its data, as training does, or on another data folder."
_PREDICT = "Write the masks, boxes or classes that a trained model gives for images, or for a split of its data."


def _parameters() -> list[click.Parameter]:
    help = "a checkpoint or an output folder, then options of the runtime"
    words = Argument("words", "CHECKPOINT|OPTION", help, nargs=-1, type=click.UNPROCESSED)
    return [words, options.dry_run("show the command and run nothing")]


@declare(
    _EVALUATE + _HELP.format(name="evaluate"),
    _parameters(),
    {
        "ratc evaluate outputs/brain": "the test split, as at the end of the run",
        "ratc evaluate outputs/brain --split val --data-dir /data/other -o scores.json": "other data",
        "ratc evaluate -- --help": "all options",
    },
    context_settings={"ignore_unknown_options": True},
)
def evaluate(words: tuple[str, ...], dry_run: bool) -> int:
    """The exit status of the runtime's command."""
    return runtime_command.run("evaluate", words, dry_run)


@declare(
    _PREDICT + _HELP.format(name="predict"),
    _parameters(),
    {
        "ratc predict outputs/brain images -o masks": "masks by the best checkpoint of a run",
        "ratc predict outputs/cells slides -o masks --overlap 0.5": "large pictures, in patches that overlap",
        "ratc predict outputs/shapes photo.png -o found --threshold 0.3": "boxes for one picture",
        "ratc predict outputs/moles --split test -o masks --trust": "a data set of your own",
        "ratc predict -- --help": "all options",
    },
    context_settings={"ignore_unknown_options": True},
)
def predict(words: tuple[str, ...], dry_run: bool) -> int:
    """The exit status of the runtime's command."""
    return runtime_command.run("predict", words, dry_run)


_SUMMARY = """Print mean and standard deviation of the scores of several runs, such as the folds of a cross-validation.

The runtime does it: `python -m ratc_runtime summary` gets these arguments. It runs in the Python of `RATC_PYTHON`;
if that is not set, in this one.
"""


@declare(
    _SUMMARY,
    _parameters(),
    {
        "ratc summary outputs/brain": "the points of an array",
        "ratc summary outputs/seed1 outputs/seed2 -o scores.json": "runs by name",
    },
    context_settings={"ignore_unknown_options": True},
)
def summary(words: tuple[str, ...], dry_run: bool) -> int:
    """The exit status of the runtime's command."""
    return runtime_command.run("summary", words, dry_run)
