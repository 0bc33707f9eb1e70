"""The command line: one command a file, loaded when it is called; the only code that prints.

Exit status: 0 clean, 1 findings or differences, 2 misuse or an internal error, 130 interrupted.
"""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module

import click

from ratc import __version__
from ratc.cli.command import RUNNING
from ratc.console import say

#: By purpose, as the help shows them.
GROUPS = {
    "Begin": {
        "init": "write a commented spec to start from",
        "import": "write a spec from the configuration files of other tools",
        "sample-data": "write a small real data set for first trials",
        "data": "list the content of a data set and its unusable samples: `data check`",
        "schema": "print the JSON Schema of a spec",
        "completion": "print the script that lets your shell complete ratc's command line",
    },
    "Compile": {
        "validate": "check a spec and report its mistakes",
        "compile": "write the lock, the launcher's files and the job script",
        "explain": "explain a code (such as R304), or where a value of the plan comes from",
        "lsp": "language server for an editor: findings, values, keys and quick fixes while you write a spec",
    },
    "Run": {
        "train": "compile for this machine and run the script",
        "submit": "compile for the scheduler of this machine and submit the script",
        "why": "say why a job ended, with the evidence and what to change",
        "tune": "run the trials of a study on this machine and show the best; `tune lr` finds a learning rate",
    },
    "Use a model": {
        "predict": "write predicted masks, boxes or classes for a folder of images",
        "evaluate": "score a checkpoint on a split of the data",
        "summary": "print mean and standard deviation of the scores of several runs, such as folds",
    },
    "Review": {
        "diff": "show the differences between two specs, and their consequences",
        "check": "find the compiled folders that differ from their inputs",
        "report": "write a page about a spec, or about the differences between two",
    },
    "Hardware": {
        "fit": "predict the largest micro-batch that fits on each card",
        "profile": "show the memory of one training step, predicted or measured",
        "probe": "write the facts of a cluster or of this machine to a file",
    },
    "Safety": {
        "trust": "list or change the folders whose Python code ratc may run",
    },
}
COMMANDS = {name: text for group in GROUPS.values() for name, text in group.items()}

_EXAMPLES = {
    "ratc init --task segmentation": "write config.yaml; put your data into its `data_dir`",
    "ratc validate config.yaml": "report its mistakes",
    "ratc train config.yaml": "compile it for this machine and train",
    "ratc compile config.yaml --target slurm": "write a job to review and submit",
    "ratc explain config.yaml training.precision": "show the reason of a value",
}

#: The modules and names of commands that do not stand as `command` in a module of their own name. Those of two words
#: are found by both; the first word alone is a command, too: `ratc tune SPEC`.
_PLACES = {
    "import": ("import_", "command"),
    "evaluate": ("checkpoint", "evaluate"),
    "predict": ("checkpoint", "predict"),
    "summary": ("checkpoint", "summary"),
    "tune lr": ("tune", "learning_rate"),
}
#: Shells ask for completions with this variable; click reads it.
COMPLETE = "_RATC_COMPLETE"


class Commands(click.Group):
    """All commands; the module of one is imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, of one word each."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of one or two words; None if there is none."""
        if name not in COMMANDS and name not in _PLACES:
            return None
        module, attribute = _PLACES.get(name, (name.replace("-", "_"), "command"))
        found: click.Command = getattr(import_module(f"ratc.cli.{module}"), attribute)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the words begin with, and the words after it. Raises click.UsageError."""
        count = 2 if " ".join(args[:2]) in _PLACES else 1
        name = " ".join(args[:count])
        found = self.get_command(ctx, name)
        if found is None and not ctx.resilient_parsing:
            raise _misuse(f"there is no command `{name}`", name, COMMANDS, ctx)
        return name, found, args[count:]

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands by purpose, and examples."""
        formatter.write(_overview())


def _version(ctx: click.Context, parameter: click.Parameter, asked: bool) -> None:
    if asked and not ctx.resilient_parsing:
        print(f"ratc {__version__}")
        ctx.exit()


COMMAND_LINE = Commands(
    "ratc",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=False,
    params=[
        click.Option(
            ["-V", "--version"], is_flag=True, is_eager=True, expose_value=False, callback=_version, help="the version"
        )
    ],
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  # None if the shell has closed it
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a locale without `→`, a file name that is not UTF-8
    if COMPLETE in os.environ:
        # Imported here: only a shell asks.
        from click.shell_completion import shell_complete

        return shell_complete(COMMAND_LINE, {}, "ratc", COMPLETE, os.environ[COMPLETE])
    if not arguments:
        print(_overview(), end="")
        return 2
    running: dict[str, str] = {}
    try:
        if arguments[0] == "help":  # `ratc help compile` is `ratc compile --help`
            arguments = [*(word for word in arguments[1:] if word != "help"), "--help"]
        with COMMAND_LINE.make_context("ratc", arguments) as context:
            running = context.meta
            status = int(COMMAND_LINE.invoke(context))
        sys.stdout.flush()
        return status
    except click.exceptions.Exit as done:
        sys.stdout.flush()
        return done.exit_code
    except click.UsageError as error:
        return _misused(error)
    except KeyboardInterrupt:
        print("ratc: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left; nothing more can be said
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            print("ratc: cannot print: no space left on the device", file=sys.stderr)
            return 1
        if os.environ.get("RATC_TRACEBACK"):
            raise
        if isinstance(error, OSError) and (error.filename is not None or _folder_is_gone()):
            return _unusable(error, running.get(RUNNING, "ratc"))
        say(f"ratc: internal error: {type(error).__name__}: {error}")
        print("ratc: this is a bug of ratc; set RATC_TRACEBACK=1 to see the traceback", file=sys.stderr)
        return 2


class _Misuse(click.UsageError):
    """A usage error with suggestions."""

    def __init__(self, message: str, helps: tuple[str, ...], ctx: click.Context) -> None:
        super().__init__(message, ctx)
        self.helps = helps


def _misused(error: click.UsageError) -> int:
    """Print the error of a command line, without characters that control a terminal; returns the exit status 2."""
    command = error.ctx.command_path if error.ctx else "ratc"
    if isinstance(error, click.NoSuchOption) and error.ctx:
        names = [name for parameter in error.ctx.command.get_params(error.ctx) for name in parameter.opts]
        # One letter is near to every other.
        known = [name for name in names if name.startswith("--")] if error.option_name.startswith("--") else []
        error = _misuse(f"there is no option `{error.option_name}`", error.option_name, known, error.ctx)
    # click's sentences as ours: lower case, in backticks, without a final period, on one line.
    text = " ".join(error.format_message().split()).removesuffix(".")
    text = re.sub(r"(?<!\w)'([^'`]*)'", r"`\1`", text).replace("`[", "`").replace("]`", "`")
    text = text.replace("is not a valid integer range", "is not a whole number")
    text, near, suggestion = text.partition(". Did you mean ")
    helps = error.helps if isinstance(error, _Misuse) else (f"did you mean {suggestion}",) if near else ()
    say(f"{command}: {text[:1].lower()}{text[1:]}{'' if helps else f'; see `{command} --help`'}")
    for line in helps:
        say(f"help: {line}")
    return 2


def _misuse(message: str, name: str, known: Iterable[str], ctx: click.Context) -> _Misuse:
    from ratc.diagnostics import did_you_mean

    return _Misuse(message, did_you_mean(name, known), ctx)


def _unusable(error: OSError, command: str) -> int:
    """Print that a needed file or folder cannot be used; returns the exit status 1. Codes: R001, R451."""
    from ratc.diagnostics import Diagnostic
    from ratc.workflow import findings
    from ratc.workflow.read import FOLDER_GONE

    if _folder_is_gone():
        findings.show((FOLDER_GONE,), command)
        return 1
    message = f"cannot use `{os.fspath(error.filename)}`: {error.strerror}"
    helps = ("check that it exists and that you may use it, then run the command again",)
    findings.show((Diagnostic("R451", message, helps=helps),), command)
    return 1


def _folder_is_gone() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _overview() -> str:
    width = max(len(name) for name in COMMANDS)
    groups = "\n".join(
        f"{title}:\n" + "".join(f"  {name:<{width}}  {text}\n" for name, text in group.items())
        for title, group in GROUPS.items()
    )
    column = max(len(line) for line in _EXAMPLES)
    examples = "".join(f"  {line:<{column}}  {text}\n" for line, text in _EXAMPLES.items())
    return (
        "usage: ratc COMMAND …\n\nA declarative-spec compiler for deep-learning training.\n\n"
        f"{groups}\nExamples:\n{examples}\n"
        "`ratc help COMMAND` says more. Exit status: 0 clean, 1 findings, 2 misuse.\n"
    )
