"""The help of every command: its examples parse, and its options are listed."""

import re
import shlex

import click
import pytest

from ratc.cli import COMMAND_LINE, main
from tests.product.test_dry_run import commands

EXAMPLES = [(name, line) for name, one in commands() for line in getattr(one, "examples", {})]


def parsed(words: list[str]) -> tuple[str, dict]:
    """The command that some words call, and what they give it. Raises click.UsageError."""
    with COMMAND_LINE.make_context("ratc", list(words)) as context:
        rest = [*context._protected_args, *context.args]
        name, found, rest = COMMAND_LINE.resolve_command(context, rest)
        inner = found.make_context(name, rest, parent=context)
        if isinstance(found, click.Group):
            second, found, rest = found.resolve_command(inner, [*inner._protected_args, *inner.args])
            name, inner = f"{name} {second}", found.make_context(second, rest, parent=inner)
        return name, inner.params


def test_every_command_has_examples():
    assert {name for name, _ in EXAMPLES} == {name for name, _ in commands()}


@pytest.mark.parametrize(("name", "line"), EXAMPLES)
def test_each_example_of_the_help_parses(name, line):
    called = re.search(r"ratc [^>)]*", line)
    assert called
    words = shlex.split(called[0])[1:]
    command, given = parsed(words)
    assert given
    if line == next(line for own, line in EXAMPLES if own == name):
        assert command == name


@pytest.mark.parametrize("name", [name for name, _ in commands()])
def test_the_help_lists_arguments_options_and_examples(capsys, name):
    assert main([*name.split(), "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"Usage: ratc {name} ")
    command = dict(commands())[name]
    for parameter in command.params:
        if not getattr(parameter, "hidden", False):
            assert parameter.opts[-1] in said or parameter.metavar in said
    for line in command.examples:
        assert f"  {line}\n" in said
    titles = ("Arguments", "Options", "Values that override the spec", "Examples")
    sections = re.findall(r"^(\w[\w ]*):$", said, re.M)
    assert sections == [title for title in titles if title in sections]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["validate", "spec.yaml", "--trget", "slurm"], "help: did you mean `--target`?"),
        (["tune", "lr", "spec.yaml", "--step", "3"], "help: did you mean `--steps`?"),
        (["validate", "spec.yaml", "--tar", "slurm"], "ratc validate: there is no option `--tar`"),
        (["validate"], "ratc validate: missing argument `SPEC`"),
        (["validate", "a.yaml", "b.yaml"], "ratc validate: got unexpected extra argument (b.yaml)"),
        (["validate", "a.yaml", "--set"], "ratc validate: option `--set` requires an argument"),
        (["validate", "--config"], "ratc validate: option `--config` requires an argument"),
        (["validate", "a.yaml", "--config="], "ratc validate: got unexpected extra argument (a.yaml)"),
        (["submit", "a.yaml", "--after", "x"], "`x` is not the number of a job"),
        (["submit", "a.yaml", "--timeout", "0"], "`0` is not a number of seconds up to an hour"),
        (["init", "-o", "x"], "ratc init: there is no option `-o`; see `ratc init --help`"),
        (["--frobnicate"], "ratc: there is no option `--frobnicate`"),
        (["data"], "ratc data: missing command"),
        (
            ["validate", "--\x1b[2Jx\r\n::error::y"],
            "ratc validate: there is no option `--\N{REPLACEMENT CHARACTER}[2Jx",
        ),
    ],
)
def test_misuse_is_reported_in_one_line_without_terminal_sequences(capsys, words, said):
    assert main(words) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert told.out == ""
    assert "\x1b" not in told.err
    assert not [line for line in told.err.splitlines() if line.startswith("::")]


@pytest.mark.parametrize("words", [["--seed", "3", "a.yaml"], ["a.yaml", "--seed=3"]])
def test_options_and_arguments_may_be_mixed(words):
    name, given = parsed(["train", *words, "--", "--fresh", "-x"])
    assert (name, given["spec"], given["short_seed"]) == ("train", "a.yaml", "3")
    assert given["runtime"] == ("--fresh", "-x")


@pytest.mark.parametrize("words", [["--config", "a.yaml"], ["--config=a.yaml"], ["a.yaml"]])
def test_the_spec_may_be_given_as_config(words):
    assert parsed(["validate", "--seed", "1", *words])[1]["spec"] == "a.yaml"


def test_every_command_on_a_spec_takes_config():
    have = {name for name, one in commands() if any("--config" in parameter.opts for parameter in one.params)}
    on_a_spec = {name for name, one in commands() if any(parameter.name == "spec" for parameter in one.params)}
    assert have == on_a_spec | {"diff"}
    assert {"validate", "compile", "explain", "train", "submit", "tune", "tune lr", "data check", "fit"} <= have


def test_other_commands_refuse_config(capsys):
    assert main(["check", "--config", "a.yaml"]) == 2
    assert "there is no option `--config`" in capsys.readouterr().err
    assert parsed(["predict", "out", "--config", "x"])[1]["words"] == ("out", "--config", "x")


@pytest.mark.parametrize("words", [["compile"], ["tune", "lr"], ["data", "check"], ["data"]])
def test_help_may_stand_before_or_after_the_command(capsys, words):
    assert main([*words, "--help"]) == 0
    said = capsys.readouterr().out
    assert main(["help", *words]) == 0
    assert capsys.readouterr().out == said


def test_help_alone_prints_the_overview_and_refuses_unknown_commands(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for words in (["help"], ["help", "help"]):
        assert main(words) == 0
        assert capsys.readouterr().out == said
    assert main(["help", "complie"]) == 2
    assert "help: did you mean `compile`?" in capsys.readouterr().err


def test_config_is_the_first_argument_at_any_position():
    given = parsed(["explain", "training.precision", "--config", "a.yaml"])[1]
    assert list(given.values())[:2] == ["a.yaml", "training.precision"]
