"""The language server in its own process, driven by the client of pygls."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.effort import HANGS_S
from tests.places import ROOT

types = pytest.importorskip("lsprotocol.types")
LanguageClient = pytest.importorskip("pygls.lsp.client").LanguageClient

SPEC = """\
experiment_name: demo
data: {data_dir: data}
training:
  target_batch_size: 16
  batch_size: 2
resources: {num_gpus: 0, cpus: 2}
"""
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "runtime")))}


class Editor(LanguageClient):  # type: ignore[misc,valid-type]  # pygls may be missing
    """A client that keeps the findings that it is sent."""

    def __init__(self) -> None:
        super().__init__("test", "1")
        self.sent: asyncio.Queue[Any] = asyncio.Queue()

        @self.feature(types.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS)
        def keep(params: Any) -> None:
            self.sent.put_nowait(params)

    async def open(self, path: Path, text: str) -> list[Any]:
        item = types.TextDocumentItem(path.as_uri(), "yaml", 1, text)
        self.text_document_did_open(types.DidOpenTextDocumentParams(item))
        return list((await self.sent.get()).diagnostics)

    async def change(self, path: Path, text: str, version: int = 2) -> list[Any]:
        identifier = types.VersionedTextDocumentIdentifier(version, path.as_uri())
        change = types.TextDocumentContentChangeWholeDocument(text)
        self.text_document_did_change(types.DidChangeTextDocumentParams(identifier, [change]))
        return list((await self.sent.get()).diagnostics)

    async def hover(self, path: Path, line: int, character: int) -> Any:
        place = types.HoverParams(types.TextDocumentIdentifier(path.as_uri()), types.Position(line, character))
        return await self.text_document_hover_async(place)


def in_an_editor(folder: Path, visit: Callable[[Editor], Awaitable[None]], *options: str) -> None:
    """Start the server in a folder, do what is to be done there, and end it as an editor does."""

    async def session() -> None:
        editor = Editor()
        await editor.start_io(sys.executable, "-m", "ratc", "lsp", *options, cwd=str(folder), env=ENVIRONMENT)
        capabilities = types.ClientCapabilities()
        await editor.initialize_async(
            types.InitializeParams(capabilities, root_uri=folder.as_uri(), initialization_options=options)
        )
        editor.initialized(types.InitializedParams())
        await visit(editor)
        await editor.shutdown_async(None)
        editor.exit(None)
        await editor.stop()

    # In a thread of its own: a browser of other tests leaves a running loop in this one.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, asyncio.wait_for(session(), HANGS_S)).result()


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data" / "splits.json").write_text("{}")
    return tmp_path / "größe 😀.yaml"


def test_diagnostics_are_updated_after_each_change_and_have_quick_fixes(spec: Path) -> None:
    async def visit(editor: Editor) -> None:
        wrong = SPEC.replace("batch_size: 2", "batch_siez: 2")
        [found] = await editor.open(spec, wrong)
        assert (found.code, found.source, found.severity) == ("R101", "ratc", types.DiagnosticSeverity.Error)
        assert (found.range.start.line, found.range.start.character) == (4, 2)
        asked = types.CodeActionParams(
            types.TextDocumentIdentifier(spec.as_uri()), found.range, types.CodeActionContext([found])
        )
        [action] = await editor.text_document_code_action_async(asked)
        [edit] = action.edit.changes[spec.as_uri()]
        assert (edit.new_text, edit.range) == ("batch_size", found.range)
        assert action.is_preferred
        assert await editor.change(spec, SPEC) == []
        assert [one.code for one in await editor.change(spec, "experiment_name: [", 3)] == ["R003"]
        assert await editor.change(spec, "# no spec of ratc's\na: 1\n", 4) == []

    in_an_editor(spec.parent, visit)


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\x85"])
def test_line_ends_that_only_yaml_has_do_not_shift_places(spec: Path, end: str) -> None:
    async def visit(editor: Editor) -> None:
        wrong = SPEC.replace("batch_size: 2", "batch_siez: 2").replace("demo\n", f"demo # 😀{end}# b\n")
        [found] = await editor.open(spec, wrong)
        assert found.code == "R101"
        assert (found.range.start.line, found.range.start.character) == (4, 2)
        asked = types.CodeActionParams(
            types.TextDocumentIdentifier(spec.as_uri()), found.range, types.CodeActionContext([found])
        )
        [action] = await editor.text_document_code_action_async(asked)
        assert [edit.range for edit in action.edit.changes[spec.as_uri()]] == [found.range]
        assert await editor.change(spec, wrong.replace("siez", "size")) == []
        told = await editor.hover(spec, 3, 4)
        assert "`training.target_batch_size`" in told.contents.value
        assert (told.range.start.line, told.range.start.character) == (3, 2)

    in_an_editor(spec.parent, visit)


def test_a_byte_order_mark_does_not_shift_the_first_line(spec: Path) -> None:
    async def visit(editor: Editor) -> None:
        [found, *_] = await editor.open(spec, "\ufeffexperiment_nam: demo\n" + SPEC)
        assert (found.code, found.range.start.line, found.range.start.character) == ("R101", 0, 1)
        assert found.range.end.character == 1 + len("experiment_nam")

    in_an_editor(spec.parent, visit)


def test_a_file_that_changes_on_the_disk_changes_the_findings(spec: Path) -> None:
    own = spec.parent / "own_nets.py"

    async def visit(editor: Editor) -> None:
        assert [one.code for one in await editor.open(spec, 'model: {name: "own_nets:Net"}\n' + SPEC)] == ["R236"]
        own.write_text("class Net: pass\n")
        event = types.FileEvent(own.as_uri(), types.FileChangeType.Created)
        editor.workspace_did_change_watched_files(types.DidChangeWatchedFilesParams([event]))
        assert list((await editor.sent.get()).diagnostics) == []

    in_an_editor(spec.parent, visit)


@pytest.mark.parametrize(
    ("text", "word", "written"),
    [
        (SPEC.replace("batch_size: 2", "optimizer: adamw2"), "adamw2", "adamw"),
        (SPEC.replace("batch_size: 2", "scheduler: cosin"), "cosin", "cosine"),
        (SPEC + "entrypoint: {script: a.py, args: [--b, '${micro_batch_siz}']}\n", "${micro_batch_siz}", None),
    ],
)
def test_misspelt_values_have_proposals(spec: Path, text: str, word: str, written: str | None) -> None:
    """An editor shows them; `validate --fix` leaves them."""

    async def visit(editor: Editor) -> None:
        found = next(one for one in await editor.open(spec, text) if one.code in ("R103", "R106", "R243"))
        asked = types.CodeActionParams(
            types.TextDocumentIdentifier(spec.as_uri()), found.range, types.CodeActionContext([found])
        )
        [action] = await editor.text_document_code_action_async(asked)
        [edit] = action.edit.changes[spec.as_uri()]
        line = text.split("\n")[edit.range.start.line]
        assert line[edit.range.start.character : edit.range.end.character] == word
        assert edit.new_text == (written or "${micro_batch_size}")
        assert (action.title, action.is_preferred) == (f"write `{edit.new_text}`", False)

    in_an_editor(spec.parent, visit)
    spec.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "ratc", "validate", str(spec), "--fix"],
        env=ENVIRONMENT,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert spec.read_text() == text


@pytest.mark.parametrize(
    "text",
    [
        SPEC.replace("batch_size: 2", "optimizer: &o adamw2"),
        SPEC.replace("  batch_size: 2", "  optimizer: >-\n    adamw2\n  batch_size: 2"),
        SPEC + "entrypoint: {script: a.py, args: ['$${micro_batch_siz}', '${micro_batch_siz}']}\n",
        SPEC + 'entrypoint:\n  script: a.py\n  args:\n  - --b  # ${micro_batch_siz}\n  - "\\x24{micro_batch_siz}"\n',
    ],
)
def test_no_change_is_proposed_that_would_reach_other_text(spec: Path, text: str) -> None:
    async def visit(editor: Editor) -> None:
        found = next(one for one in await editor.open(spec, text) if one.code in ("R106", "R243"))
        asked = types.CodeActionParams(
            types.TextDocumentIdentifier(spec.as_uri()), found.range, types.CodeActionContext([found])
        )
        assert not await editor.text_document_code_action_async(asked)

    in_an_editor(spec.parent, visit)


def test_columns_are_counted_in_utf16_units(spec: Path) -> None:
    async def emoji(editor: Editor) -> None:
        text = SPEC.replace("experiment_name: demo", "experiment_name: 'd'").replace(
            "{data_dir: data}", "{data_dir: '😀', nope: 1}"
        )
        codes = {found.code: found for found in await editor.open(spec, text)}
        # `data: {data_dir: '` has 18 characters, the emoji two units of UTF-16, `', ` three.
        assert codes["R101"].range.start.character == 23

    in_an_editor(spec.parent, emoji)


def test_hover_shows_the_value_its_source_and_the_key_description(spec: Path) -> None:
    async def visit(editor: Editor) -> None:
        assert await editor.open(spec, SPEC) == []
        told = await editor.hover(spec, 3, 8)
        assert "training.global_batch_size = 16  [größe 😀.yaml:4:22]" in told.contents.value
        assert "**`training.target_batch_size`**" in told.contents.value
        assert (told.range.start.line, told.range.start.character) == (3, 2)
        assert await editor.hover(spec, 50, 0) is None
        await editor.change(spec, SPEC.replace("16", "x"))
        told = await editor.hover(spec, 3, 8)
        assert "=" not in told.contents.value.split("**")[0]

    in_an_editor(spec.parent, visit)


def labels(found: Any) -> set[str]:
    return {item.label for item in found}


def test_completion_offers_missing_keys_and_allowed_values(spec: Path) -> None:
    async def visit(editor: Editor) -> None:
        text = SPEC + "logging:\n  \n" + "launcher: \n"
        await editor.open(spec, text)
        lines = text.split("\n")

        async def at(line: int, character: int) -> Any:
            place = types.CompletionParams(types.TextDocumentIdentifier(spec.as_uri()), types.Position(line, character))
            return await editor.text_document_completion_async(place)

        inside = labels(await at(lines.index("  "), 2))
        assert "backend" in inside
        assert "epochs" not in inside
        top = labels(await at(len(lines) - 1, 0))
        assert {"model", "checkpoint"} <= top
        assert not {"training", "data"} & top
        assert {"accelerate", "torchrun"} <= labels(await at(lines.index("launcher: "), 10))
        assert "seed" in top

    in_an_editor(spec.parent, visit)


def test_target_option_sets_the_target_of_the_diagnostics(spec: Path) -> None:
    found: list[Any] = []

    async def visit(editor: Editor) -> None:
        found.extend(await editor.open(spec, SPEC))

    in_an_editor(spec.parent, visit, "--target", "slurm")
    assert {one.code for one in found} == {"R320"}


@pytest.mark.parametrize("end", ["close", "kill"])
def test_server_exits_when_its_client_exits(spec: Path, end: str) -> None:
    command = [sys.executable, "-m", "ratc", "lsp"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT, cwd=spec.parent)
    assert process.stdin is not None
    if end == "kill":
        process.stdin.write(b"Content-Length: 1000\r\n\r\n{half")
        process.stdin.flush()
    process.stdin.close()
    assert process.wait(HANGS_S) is not None


def test_shutdown_and_exit_requests_end_the_server_with_status_0(spec: Path) -> None:
    """And nothing on stderr."""
    content = ""
    for message in ({"method": "shutdown", "id": 1}, {"method": "exit"}):
        text = json.dumps({"jsonrpc": "2.0"} | message)
        content += f"Content-Length: {len(text)}\r\n\r\n{text}"
    command = [sys.executable, "-m", "ratc", "lsp"]
    done = subprocess.run(
        command, input=content, capture_output=True, text=True, env=ENVIRONMENT, cwd=spec.parent, timeout=HANGS_S
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_custom_code_of_a_spec_is_not_run(spec: Path) -> None:
    (spec.parent / "evil.py").write_text("open('ran', 'w')\n")

    async def visit(editor: Editor) -> None:
        await editor.open(spec, SPEC + "model: {name: 'evil:net'}\n")
        await editor.hover(spec, 3, 8)

    in_an_editor(spec.parent, visit)
    assert not (spec.parent / "ran").exists()


def test_missing_pygls_is_reported_with_the_extra_to_install(spec: Path) -> None:
    hidden = spec.parent / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text("import sys\nsys.modules['pygls'] = None\n")
    variables = {**ENVIRONMENT, "PYTHONPATH": f"{hidden}{os.pathsep}{ENVIRONMENT['PYTHONPATH']}"}
    done = subprocess.run([sys.executable, "-m", "ratc", "lsp"], capture_output=True, text=True, env=variables)
    assert done.returncode == 1
    assert "R452" in done.stderr
    assert "ratc[lsp]" in done.stderr
