"""The command line: one command a file, loaded when it is called; the only code that prints.

Exit status: 0 clean, 1 findings or differences, 2 misuse or an internal error, 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from ratc import __version__
from ratc.console import say
from ratc.markup import lines
from ratc.own_code.trust import begin

#: By purpose, as the help shows them.
GROUPS = {
    "Begin": {
        "init": "write a commented spec to start from",
        "import": "write a spec from other tools' configurations",
        "sample-data": "write a small real data set to try things on",
        "data": "say what a data set holds, and what in it cannot be used: `data check`",
        "schema": "print the JSON Schema of a spec",
    },
    "Compile": {
        "validate": "check a spec and say what is wrong",
        "compile": "write the lock, the launcher's files and the job script",
        "explain": "say what a code means, or where a value comes from",
    },
    "Run": {
        "train": "compile for this machine and run the script",
        "submit": "compile for the scheduler of this machine and submit the script",
        "tune": "run a study's trials on this machine, and say which is best; `tune lr` finds a learning rate",
    },
    "Review": {
        "diff": "say what differs between two specs, and with what consequence",
        "check": "say which compiled folders are not what their inputs give",
        "report": "write a page about a spec, or about what differs between two",
    },
    "Hardware": {
        "fit": "say what fits on which card, before anything runs",
        "profile": "say what one step takes, predicted or measured",
        "probe": "write facts of a cluster or of this machine, from what it says",
    },
    "Safety": {
        "trust": "say which folders' own code ratc may run",
    },
}
COMMANDS = {name: text for group in GROUPS.values() for name, text in group.items()}

_EXAMPLES = {
    "ratc init --task segmentation": "write config.yaml; put your data into its `data_dir`",
    "ratc validate config.yaml": "say what is wrong with it",
    "ratc train config.yaml": "compile it for this machine and train",
    "ratc compile config.yaml --target slurm": "write a job to review and submit",
    "ratc explain config.yaml training.precision": "say why a value is what it is",
}

#: Commands of two words, and their modules.
_SECOND = {("tune", "lr"): "tune_lr"}
#: Commands whose name no module can have.
_MODULES = {"import": "import_"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  # None where the shell has closed it
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help", "help"):
        print(_overview(), end="")
        return 0 if arguments else 2
    if name in ("-V", "--version"):
        print(f"ratc {__version__}")
        return 0
    if name not in COMMANDS:
        from ratc.diagnostics import did_you_mean

        hint = "".join(f"\nhelp: {text}" for text in did_you_mean(name, COMMANDS))
        say(f"ratc: there is no command `{name}`{hint or '; see `ratc --help`'}")
        return 2
    module = _MODULES.get(name, name.replace("-", "_"))
    second = _SECOND.get((name, arguments[1])) if len(arguments) > 1 else None
    if second is not None:
        name, module = " ".join(arguments[:2]), second
    command = import_module(f"ratc.cli.{module}")
    parser = _Parser(
        prog=f"ratc {name}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    args = parser.parse_intermixed_args(_without_config(arguments[len(name.split()) :]))
    begin(bool(getattr(args, "trust", False)), bool(getattr(command, "ASKS_FOR_TRUST", False)))
    try:
        status: int = command.run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("ratc: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left; nothing more can be said
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            print("ratc: no space left for what is printed", file=sys.stderr)
            return 1
        if os.environ.get("RATC_TRACEBACK"):
            raise
        if isinstance(error, OSError) and error.filename is not None:
            return _unusable(error, f"ratc {name}")
        say(f"ratc: internal error: {type(error).__name__}: {error}")
        print("ratc: this is a fault of ratc; RATC_TRACEBACK=1 shows where", file=sys.stderr)
        return 2


def _without_config(words: Sequence[str]) -> list[str]:
    """``--config FILE``, as the original framework names the spec, is the spec itself."""
    before = list(words[: words.index("--")]) if "--" in words else list(words)
    own = [word.removeprefix("--config=") for word in before if word != "--config"]
    return [*own, *words[len(before) :]]


def _unusable(error: OSError, command: str) -> int:
    """A file or folder that the command needs and cannot use: removed meanwhile, or of somebody else. Code: R451."""
    from ratc.diagnostics import Diagnostic
    from ratc.workflow import findings

    message = f"cannot use `{os.fspath(error.filename)}`: {error.strerror}"
    helps = ("see that it is there and yours, and run the command again",)
    findings.show((Diagnostic("R451", message, helps=helps),), command)
    return 1


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line without obeying it."""

    def _print_message(self, message: str, file: Any = None) -> None:
        super()._print_message(lines(message), file)


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
        "`ratc COMMAND --help` says more. Exit status: 0 clean, 1 findings, 2 misuse.\n"
    )
