"""Output of ratc injects no commands into a terminal, GitHub's runner, a Markdown renderer or a browser."""

from __future__ import annotations

import json
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from ratc_runtime.output.plots import draw_curves
from ratc_runtime.tasks import Metric
from ratc_runtime.tasks.classification import figures as classes
from ratc_runtime.tasks.detection import figures as boxes
from ratc_runtime.tasks.segmentation import figures as masks

from ratc import markup
from ratc.cli import main
from ratc.diagnostics import Diagnostic, Source, Span
from ratc.render import text as as_text
from ratc.render.findings import github, markdown, sarif
from ratc.render.findings import json as as_json
from ratc.render.html.page import prose

#: C0, DEL, C1, line and paragraph separators, and what turns the direction of writing.
SIGNS = [
    *range(32),
    127,
    *range(0x80, 0xA0),
    0x2028,
    0x2029,
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
    0x200E,
    0xFEFF,
]
HOSTILE = (
    "\n::error::pwned",
    "::add-mask::x",
    "\r::error::pwned",
    "##[error]pwned",
    "##vso[task.setvariable]x",
    "``<img src=x onerror=alert(1)>``",
    "`<img src=x>",
    "\\|<img src=x>",
    "|`<img src=x>`|",
    "<script>alert(1)</script>",
    "<!-- ",
    "[a](javascript:alert(1))",
    "![a](https://host/x.png)",
    "*a* _b_ ~~c~~",
    "&lt;img&gt;",
    "\\",
    "`",
    "``",
    "```",
    " ",
    "",
    "\x1b]0;title\x07\x1b[2J",
    "\x9b2J",
    "\u202egnp.exe\u2066",
    "%0A::error::x",
    "\udcff",
)
texts = st.one_of(
    st.sampled_from(HOSTILE),
    st.builds("".join, st.lists(st.sampled_from([*HOSTILE, *map(chr, SIGNS), "a", "`", "|", "<b>", "\\"]), max_size=6)),
    st.text(max_size=30),
)
#: As GitHub renders a comment, but with raw tags, which it filters only afterwards.
COMMONMARK = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def tokens(text: str):
    """All tokens of a Markdown text, those of lines included."""
    for block in COMMONMARK.parse(text):
        yield block
        yield from block.children or ()


def assert_no_markup(text: str) -> None:
    assert not {token.type for token in tokens(text)} & {"html_inline", "html_block", "link_open", "image"}, text


def commands(text: str) -> list[str]:
    """The workflow commands of an output, as the runner finds them: actions/runner, ActionCommand.cs, both versions."""
    found = []
    for line in re.split(r"\r\n|\r|\n", text):
        if line.strip().startswith("::") and "::" in line.strip()[2:]:
            found.append(line.strip())
        elif "##[" in line or "##vso[" in line:
            found.append(line)
    return found


def finding(value: str) -> Diagnostic:
    """A finding that tells a value everywhere, as messages do."""
    source = Source(f"{value}.yaml", f"a: {value}\n")
    span = Span(source, 1, 1, 1, 2)
    return Diagnostic("R101", f"unknown key `{value}`", span, (f"`{value}` stands at {value}",), (f"use `{value}`",))


# One function for each reader.


@given(texts)
def test_visible_text_is_one_line_without_commands(value):
    shown = markup.visible(value)
    assert all(char.isprintable() for char in shown)
    assert len(shown) == len(value)
    assert not commands(shown)


@pytest.mark.parametrize("code", SIGNS, ids=hex)
def test_every_control_character_is_made_visible(code):
    assert chr(code) not in markup.visible(chr(code))
    if chr(code) not in "\n\t":
        assert chr(code) not in markup.html(chr(code))


@given(texts, texts)
@example("`", "`")
@example("``<img src=x>``", "")
@example("a`b", "c")
def test_escaped_text_and_code_contain_no_markdown_markup(first, second):
    for text in (
        f"- {markup.code(first)}: {markup.escape(second)}",
        f"- {markup.escape(f'`{first}``{second}`')}",
        f"- {markup.escape(f'unknown key `{first}` at {second}')}",
        f"| a | b |\n|---|---|\n| {markup.code(first)} | {markup.escape(second)} |\n",
    ):
        assert_no_markup(text)
    assert [token.type for token in tokens(f"- {markup.code(first)}")].count("inline") <= 1


@given(texts, texts)
def test_escaped_text_does_not_change_the_cells_of_a_table(first, second):
    table = f"| a | b |\n|---|---|\n| {markup.code(first)} | {markup.escape(second)} |\n"
    assert [token.type for token in tokens(table)].count("td_open") == 2


@pytest.mark.parametrize("value", ["own.Model", "a|b", "a`b", "<b>", "x_y*z", "a & b", "a  b"])
def test_rendered_markdown_shows_the_original_text(value):
    for text in (markup.code(value), markup.escape(value) if "`" not in value else markup.code(value)):
        shown = "".join(token.content for token in tokens(text) if token.type in ("text", "code_inline"))
        assert shown == value


@given(texts)
def test_workflow_command_data_stays_on_its_line(value):
    line = f"::error title={markup.workflow_property(value)}::{markup.workflow_data(value, value)}"
    assert line.split("::", 2)[1].count(",") == 0
    assert all(char.isprintable() for char in line)


@given(texts)
def test_json_keeps_its_data_and_prints_no_commands(value):
    printed = markup.json({value: [value]})
    assert all(char == "\n" or char.isprintable() for char in printed)
    assert not commands(printed)
    assert json.loads(printed) == {value: [value]}


@given(texts)
def test_html_prose_contains_only_code_tags(value):
    from html5lib import parseFragment

    page = str(prose(f"unknown key `{value}` at {value}"))
    assert {element.tag.rpartition("}")[2] for element in parseFragment(page).iter()} <= {"DOCUMENT_FRAGMENT", "code"}
    assert all(char in "\n\t" or char.isprintable() for char in page)


# Every form of findings.


@given(texts)
@example("@")
def test_no_format_of_findings_lets_a_value_inject_markup(value):
    items = [finding(value)]
    assert_no_markup(markdown.document(items, "ratc validate"))
    for told in (markdown.document(items, "x"), as_text.diagnostics(items), as_text.diagnostics(items, colour=True)):
        assert not commands(told)
    told = github.document(items, "ratc validate")
    assert len(commands(told)) == 1 == told.count("\n")
    for told in (
        markdown.document(items, "x").replace("@\u200b", "@"),  # ratc's own, so that nobody is mentioned
        as_text.diagnostics(items),
        github.document(items, "x"),
        as_json.document(items, "x"),
        sarif.document(items, "x", {"R101": "# R101: x"}),
    ):
        assert all(char == "\n" or char.isprintable() for char in told)


# Whole commands, with file names and keys.

NAMES = (
    "a\n::error::b.yaml",
    "a`<img src=x>.yaml",
    "::error::b.yaml",
    "a\x1b[2J.yaml",
    "\u202elmay.yaml",
    "##[error]b.yaml",
)
KEY = '"\\e[2J``<img src=x onerror=1>``\\n::error::k##[error]\\u202e"'
GOOD = "experiment_name: demo\ndata: {data_dir: data}\nresources: {num_gpus: 0, cpus: 2}\n"
BAD = f"{GOOD}{KEY}: 1\n"
ARGS = f"{GOOD}model: {{name: 'a:b', args: {{deep: {{{KEY}: {KEY}}}}}}}\ndescription: {KEY}\n"


def run(*arguments: str, capsys) -> str:
    """All that a command prints. What it prints for a page holds no markup."""
    main(arguments)
    said = capsys.readouterr()
    assert "internal error" not in said.err
    if arguments[-1] == "markdown":
        assert_no_markup(said.out)
    return said.out + said.err


COMMANDS = (
    ("validate", "{name}", "--format", "{form}"),
    ("compile", "{name}", "-o", "out", "--format", "{form}"),
    ("check", ".", "--format", "{form}"),
    ("import", "{name}", "-o", "spec", "--force", "--from", "unified", "--format", "{form}"),
)
EXPLAIN = (("explain", "{name}", "--all"), ("explain", "{name}", "model.args"), ("explain", "{name}", "{name}"))


@pytest.mark.parametrize("form", ["text", "json", "github", "sarif", "markdown"])
@pytest.mark.parametrize("name", NAMES)
def test_file_names_and_keys_inject_no_commands(name, form, capsys):
    for content in (BAD, ARGS):
        Path(name).write_text(content)
        for arguments in COMMANDS:
            told = run(*(one.format(name=f"./{name}", form=form) for one in arguments), capsys=capsys)
            assert all(char == "\n" or char.isprintable() for char in told), told
            if form != "github":
                assert not commands(told)
    told = run("import", f"./{name}", "--from", "unified", capsys=capsys)
    assert all(char == "\n" or char.isprintable() for char in told), told
    assert not commands(told)
    assert "pwned" not in os.listdir()


@pytest.mark.parametrize("form", ["text", "json", "markdown"])
@pytest.mark.parametrize("name", NAMES)
def test_explain_prints_hostile_names_without_commands(name, form, capsys):
    Path(name).write_text(ARGS)
    for arguments in EXPLAIN:
        told = run(*(one.format(name=name) for one in arguments), "--format", form, capsys=capsys)
        assert all(char == "\n" or char.isprintable() for char in told), told
        assert not commands(told)


@pytest.mark.parametrize("form", ["text", "json", "github", "sarif", "markdown"])
def test_diff_prints_hostile_names_without_commands(form, capsys):
    Path("a\n::error::x.yaml").write_text(ARGS)
    Path("b.yaml").write_text(ARGS.replace("deep", "deeper") + f"output_dir: {KEY}\n")
    told = run("diff", "a\n::error::x.yaml", "b.yaml", "--format", form, capsys=capsys)
    assert "deeper" in told
    assert all(char == "\n" or char.isprintable() for char in told), told
    if form != "github":
        assert not commands(told)


@pytest.mark.parametrize("value", ["##[error]x", "a ##vso[task.x]y", "\\n::error::x", "a\\n  ::warning::x"])
def test_a_report_on_stdout_contains_no_workflow_commands(value, capsys):
    """In a quoted line, a text of several lines, a name; and readers of the page see what was written."""
    from html5lib import parse

    Path("spec.yaml").write_text(f'{GOOD}description: "{value}"\nenvironment: {{variables: {{A: "{value}"}}}}\n')
    Path("other.yaml").write_text(GOOD)
    for sides in (("spec.yaml",), ("other.yaml", "spec.yaml"), ("spec.yaml", "other.yaml")):
        page = run("report", *sides, "-o", "-", capsys=capsys)
        assert page.startswith("<!doctype html>")
        assert not commands(page)
        if len(sides) == 1:
            assert value.split("\\n")[-1] in "".join(parse(page, namespaceHTMLElements=False).itertext())


def test_a_report_contains_no_bidirectional_control_characters(capsys):
    Path("spec.yaml").write_text(ARGS)
    run("report", "spec.yaml", "-o", "page.html", capsys=capsys)
    page = Path("page.html").read_text()
    assert "deep" in page
    assert all(char in "\n\t" or char.isprintable() for char in page)
    assert "<img" not in page


def test_errors_about_hostile_arguments_contain_no_commands(capsys):
    for arguments in (
        ("\x1b[2J",),
        ("validate", "\n::error::x"),
        ("validate", "a", "--\x1b[2J"),
        ("explain", "::error::x"),
    ):
        told = run(*arguments, capsys=capsys)
        assert all(char == "\n" or char.isprintable() for char in told), told
        assert not commands(told)


def test_the_git_driver_prints_invalid_files_without_commands(capsys):
    """A version that is no spec, as another tool's or a broken one, is told by its lines."""
    Path("old.yaml").write_text("[\n::error::x\n\x1b[2J\nMY_TOKEN: sEcReT1\n")
    Path("new.yaml").write_text("[\n::error::x\n##[error]y\u202e\nMY_TOKEN: sEcReT2\n")
    told = run("diff", "--git-driver", "a.yaml", "old.yaml", "0", "0", "new.yaml", "0", "0", capsys=capsys)
    assert "##" not in told
    assert "sEcReT" not in told
    assert "+MY_TOKEN: *" in told
    assert not commands(told)
    assert all(char == "\n" or char.isprintable() for char in told)


@pytest.mark.parametrize("name", ["$\\frac{$", "a$b$c$", "\\$x$", "\x1b]0;title\x07", "\udce9.png", "x" * 3000, "\n\t"])
def test_a_sample_name_in_a_picture_is_not_read_as_tex(tmp_path: Path, name: str) -> None:
    """matplotlib reads what is between dollar signs as TeX, and warns of control characters by printing them."""
    image, path = torch.rand(1, 8, 8), tmp_path / "x.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classes.draw_samples(path, [(name, image, name)])
        matrix = classes.Matrix(torch.eye(2, dtype=torch.long))
        picture = classes.Picture(0, name[:9], image, 0, torch.tensor([0.3, 0.7]))
        assert len(classes.draw_all(tmp_path / "all", [matrix, picture], [name, "b"])) == 2
        boxes.draw_samples(path, [(name, image, torch.tensor([[0.1, 0.1, 0.5, 0.5, 0, 0]]))], [name])
        masks.draw_samples(path, [(name, image.numpy(), np.eye(8, dtype=int))], [name])
        record = {"epoch": 1, "train_loss": 1.0, "val_loss": 1.0, "val_a": 0.5, "learning_rate": 0.1}
        draw_curves(path, [record], {"a": Metric(name, True)}, name, 1)
