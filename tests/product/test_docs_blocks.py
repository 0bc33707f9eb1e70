"""The code blocks of the documentation: commands and options exist, YAML is valid, Python imports existing names."""

import ast
import contextlib
import functools
import importlib
import importlib.util
import io
import json
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
import yaml

from ratc import compiler
from ratc.cli import COMMAND_LINE, COMMANDS
from ratc.compiler import File, Inputs
from ratc.diagnostics import Severity
from tests.places import ROOT

PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "ratc" / "codes").glob("*.md"))]
_BLOCK = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`(ratc [^`]+)`(?!`)")
#: What a spec must have beside a block that shows a part of one.
_LEAST = {"experiment_name": "demo", "data": {"data_dir": "data"}}
_SPEC = json.loads((ROOT / "schemas" / "experiment.schema.json").read_text())["properties"]


def blocks(*kinds: str) -> list[tuple[str, str]]:
    """Page and text of each block of a kind; "" is one without."""
    found = []
    for page in PAGES:
        for match in _BLOCK.finditer(page.read_text()):
            if match[2] in kinds:
                text = "".join(line.removeprefix(match[1]) for line in match[3].splitlines(keepends=True))
                found.append((page.name, text))
    return found


def commands() -> list[tuple[str, str]]:
    """Page and line of each call of ratc: in blocks, in the steps of CI, and in the prose."""
    found = []
    for page, text in blocks("", "sh", "console", "yaml"):
        for line in text.replace("\\\n", " ").splitlines():
            line = re.sub(r"^ *(-|\$|- run:|run:)* +", "", re.sub(r"^(\$ )?id=\$\(|\"?\)$", "", line))
            if re.match(r"ratc [a-z]", line.removeprefix("$ ")):
                found.append((page, line.removeprefix("$ ")))
    for page in PAGES:
        prose = _BLOCK.sub("", page.read_text())
        found += [(page.name, match[1]) for match in _SPAN.finditer(prose)]
    return found


def words_of(line: str) -> list[str]:
    line = re.split(r"\s--\s|\s#|\s\|\||\s>|\s&&|;", line)[0]
    try:
        return shlex.split(line)[1:]
    except ValueError:
        return line.split()[1:]


def options_of(name: str, second: str | None) -> set[str]:
    words = [name, second] if second else [name]
    context = click.Context(COMMAND_LINE, info_name="ratc", help_option_names=["-h", "--help"])
    _, found, _ = COMMAND_LINE.resolve_command(context, words)
    if isinstance(found, click.Group):
        found = found.get_command(context, second or "")
    assert found is not None
    context = click.Context(found, context)
    own = {option for parameter in found.get_params(context) for option in parameter.opts}
    return own | runtime_options(name) if name in ("predict", "evaluate", "summary") else own


@functools.cache
def runtime_options(name: str) -> set[str]:
    """The options of a command of the runtime, as its help has them."""
    module = importlib.import_module(f"ratc_runtime.commands.{name}")
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
        module.main(["--help"])
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", said.getvalue()))


def test_the_documentation_has_over_a_hundred_commands():
    assert len(commands()) > 100


def test_each_command_and_option_in_the_documentation_exists():
    wrong = []
    for page, line in commands():
        words = words_of(line)
        name = words[0]
        if name not in COMMANDS:
            if not name.startswith(("COMMAND", "-")):
                wrong.append((page, line, "no such command"))
            continue
        known = options_of(name, words[1] if len(words) > 1 else None)
        own = words[1 : words.index("--")] if "--" in words else words[1:]
        for word in own:
            option = word.split("=")[0].rstrip("…,.")
            if re.fullmatch(r"--?[a-z][a-z-]*", option) and option not in known:
                wrong.append((page, line, option))
    assert not wrong


def test_yaml_blocks_parse_and_specs_are_valid():
    specs = 0
    for page, text in blocks("yaml"):
        if "…" in text or re.fullmatch(r"R[0-9]{3}.md", page):
            continue  # the one shows a form; pages of codes have failing examples, which test_codes.py runs
        content = yaml.safe_load(text)
        is_spec = isinstance(content, dict) and set(content) <= set(_SPEC) and page not in ("lock.md", "facts.md")
        if not is_spec:
            continue
        specs += 1
        whole = {**_LEAST, **content, "data": {**_LEAST["data"], **content.get("data", {})}}
        _, found = compiler.analyse(Inputs(File("spec.yaml", yaml.safe_dump(whole).encode())))
        assert not [item for item in found if item.severity is Severity.ERROR], (page, text, found)
    assert specs > 10


def test_json_blocks_parse():
    assert [json.loads(text) for _, text in blocks("json")]


@pytest.mark.parametrize(("page", "text"), blocks("python"))
def test_python_blocks_compile_and_import_existing_names(page, text):
    for node in ast.walk(ast.parse(text, page)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ratc"):
            found = importlib.util.find_spec(node.module)
            assert found is not None, node.module
            tree = ast.parse(Path(found.origin).read_text())
            names = {one.name for one in ast.walk(tree) if isinstance(one, (ast.FunctionDef, ast.ClassDef))}
            names |= {alias.name for one in ast.walk(tree) if isinstance(one, ast.ImportFrom) for alias in one.names}
            for alias in node.names:
                assert alias.name in names, (page, alias.name)


def test_no_page_installs_ratc_from_a_package_index():
    """ratc is on no package index; what it needs itself is named with its path, or by an installed ratc's messages."""
    for page in [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]:
        for line in page.read_text().splitlines():
            if match := re.search(r"pip install ([^`|\n]*)", line):
                assert not re.search(r"(?<![\w./'])ratc(?![\w'\[])", match[1]), (page.name, line)


def test_shell_blocks_parse():
    for page, text in blocks("sh"):
        done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (page, text, done.stderr)


def test_runtime_modules_called_in_the_documentation_exist():
    from ratc_runtime.__main__ import COMMANDS

    texts = [page.read_text() for page in PAGES]
    called = {name for text in texts for name in re.findall(r"python3? -m (ratc_runtime(?:\.\w+)+)", text)}
    commands = {name for text in texts for name in re.findall(r"python3? -m ratc_runtime (\w+)", text)}
    assert commands
    assert commands <= {*COMMANDS, "COMMAND"}
    for name in called:
        assert importlib.util.find_spec(name) is not None, name
