"""Print the script that makes bash, zsh or fish complete commands, options, files and codes of `ratc`.

For bash: `eval "$(ratc completion bash)"` in `~/.bashrc`; for zsh the same in `~/.zshrc`; for fish
`ratc completion fish > ~/.config/fish/completions/ratc.fish`.
"""

from __future__ import annotations

import click

from ratc.cli import COMMAND_LINE, COMPLETE
from ratc.cli.command import Argument, declare

_SHELLS = ("bash", "zsh", "fish")


@declare(
    __doc__,
    [Argument("shell", "|".join(_SHELLS), "the shell", type=click.Choice(_SHELLS))],
    {
        'eval "$(ratc completion bash)"': "in `~/.bashrc`",
        "ratc completion fish > ~/.config/fish/completions/ratc.fish": "once",
    },
)
def command(shell: str) -> int:
    """Always 0."""
    # Imported here: only this needs it.
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    print(kind(COMMAND_LINE, {}, "ratc", COMPLETE).source(), end="")
    return 0
