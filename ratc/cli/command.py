"""The common parts of commands: arguments with a help, sections of options, examples, `--config` for the spec."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click

from ratc.own_code.trust import begin
from ratc.workflow.request import CompileRequest

#: Under this key of a context's ``meta`` stands the command that runs, as people write it.
RUNNING = "ratc.running"


class FilePath(click.ParamType):  # type: ignore[type-arg]  # no generic before click 8.2
    """A file's or folder's name, which shells complete. The command itself checks it."""

    name = "path"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """Let the shell complete it."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


PATH = FilePath()


def words(known: Iterable[str], incomplete: str) -> list[Any]:
    """Return the words with this prefix, for a shell to complete."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(word) for word in known if word.startswith(incomplete)]


class Argument(click.Argument):
    """An argument with a help. It may be left out only if ``required`` is false."""

    def __init__(self, name: str, metavar: str, help: str, **given: Any) -> None:
        super().__init__([name], metavar=metavar, **given)
        self.text = help

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        """Return its metavar and its help text."""
        return self.make_metavar(ctx), self.text

    def make_metavar(self, ctx: click.Context | None = None) -> str:
        """Return the metavar, in brackets if the argument is optional; the same with every version of click."""
        name = self.metavar or str(self.name).upper()
        return (name if self.required else f"[{name}]") + ("..." if self.nargs != 1 else "")


class SpecOption(click.Option):
    """An option whose value lies over the spec."""


class ConfigOption(click.Option):
    """``--config FILE``: the spec by the option of the original framework. `Command` makes the first argument of it."""


class Command(click.Command):
    """A command. ``examples`` are command lines with their purposes. With ``may_trust`` the command may run code of a
    spec, and asks at the terminal whether it may. ``request`` turns the options of a spec into the command's parameter
    of that name.
    """

    def __init__(
        self,
        name: str | None,
        *,
        examples: Mapping[str, str],
        may_trust: bool = False,
        request: Callable[[dict[str, Any]], CompileRequest] | None = None,
        **given: Any,
    ) -> None:
        super().__init__(name, **given)
        self.examples = examples
        self.may_trust = may_trust
        self.request = request

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does. If the command declares ``--config``, its value is the first argument."""
        if any(isinstance(parameter, ConfigOption) for parameter in self.params):
            args = without_config(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx  # an option without its value does not say of which command
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; returns its exit status."""
        ctx.meta[RUNNING] = ctx.command_path
        # The answer to a question of trust lists a folder, which a dry run must not do.
        begin(bool(ctx.params.pop("trust", False)), self.may_trust and not ctx.params.get("dry_run"))
        if self.request is not None:
            ctx.params["request"] = self.request(ctx.params)
        return super().invoke(ctx)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the usage, the description, the arguments and options, and the examples."""
        self.format_usage(ctx, formatter)
        self.format_help_text(ctx, formatter)
        self.format_options(ctx, formatter)
        self.format_epilog(ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the arguments, the options, and the options that override the spec."""
        titles = {"Arguments": Argument, "Values that override the spec": SpecOption, "Options": click.Option}
        found: dict[str, list[tuple[str, str]]] = {title: [] for title in ("Arguments", "Options", *titles)}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                found[next(title for title, kind in titles.items() if isinstance(parameter, kind))].append(record)
        for title, records in found.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples: each line with its purpose."""
        with formatter.section("Examples"):
            for line, text in self.examples.items():
                formatter.write(f"{'':{formatter.current_indent}}# {text}\n{'':{formatter.current_indent}}{line}\n")


def declare(
    help: str | None, params: Sequence[click.Parameter], examples: Mapping[str, str], **given: Any
) -> Callable[[Callable[..., int]], Command]:
    """Make a command of the function that runs it, which takes the parameters by name and returns the exit status."""

    def decorate(function: Callable[..., int]) -> Command:
        return Command(None, help=help, params=list(params), examples=examples, callback=function, **given)

    return decorate


def without_config(words: Iterable[str]) -> list[str]:
    """Put the value of ``--config FILE`` or ``--config=FILE`` before the other words, which have no option then.

    A last ``--config`` without a value stays, so that click reports it.
    """
    words = list(words)
    before = words[: words.index("--")] if "--" in words else words
    specs: list[str] = []
    others: list[str] = []
    left = iter(before)
    for word in left:
        value = next(left, None) if word == "--config" else word.removeprefix("--config=")
        is_spec = word.startswith("--config=") or (word == "--config" and value is not None)
        (specs if is_spec else others).append(value if is_spec and value is not None else word)
    return [*specs, *others, *words[len(before) :]]
