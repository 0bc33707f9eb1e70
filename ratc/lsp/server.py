"""The language server: the protocol around :mod:`ratc.lsp.analysis`, over standard input and output."""

from __future__ import annotations

from lsprotocol import types
from pygls.lsp.server import LanguageServer
from pygls.uris import to_fs_path
from pygls.workspace import TextDocument

from ratc import __version__, files
from ratc.diagnostics import Diagnostic, Edit, Severity, Span
from ratc.lsp import analysis, places
from ratc.lsp.analysis import Analysis

_SEVERITIES = {
    Severity.ERROR: types.DiagnosticSeverity.Error,
    Severity.WARNING: types.DiagnosticSeverity.Warning,
    Severity.NOTE: types.DiagnosticSeverity.Information,
}


class Server(LanguageServer):
    """Keeps the analysis of each open spec, by its URI and version."""

    def __init__(self, target: str) -> None:
        # Whole texts: pygls itself counts lines as Python does when it changes a part of one.
        super().__init__("ratc", __version__, text_document_sync_kind=types.TextDocumentSyncKind.Full)
        self.target = target
        self._known: dict[str, tuple[int | None, Analysis]] = {}
        self.opened: set[str] = set()

    def analysis(self, document: TextDocument) -> Analysis | None:
        """The analysis of a document as it stands; None if it is not a spec."""
        if not analysis.is_spec(document.source):
            self._known.pop(document.uri, None)
            return None
        known = self._known.get(document.uri)
        if known is None or known[0] != document.version or document.version is None:
            found = analysis.analyse(_name(document), document.source, self.target)
            known = self._known[document.uri] = (document.version, found)
        return known[1]

    def forget(self, uri: str) -> None:
        """A document was closed, or a file beside it has changed."""
        self._known.pop(uri, None)

    def look_again(self) -> None:
        """A file on the disk has changed, which any open spec may name."""
        self._known.clear()
        for uri in self.opened:
            self.publish(uri)

    def publish(self, uri: str) -> None:
        """Send the findings of a document; none for another file."""
        document = self.workspace.get_text_document(uri)
        found = self.analysis(document)
        items = [_item(document, one) for one in found.found] if found else []
        self.text_document_publish_diagnostics(types.PublishDiagnosticsParams(uri, items, document.version))


def make(target: str) -> Server:
    """Return a server that resolves specs for a target; `start_io` runs it until the client goes."""
    server = Server(target)

    @server.feature(types.TEXT_DOCUMENT_DID_OPEN)
    def opened(ls: Server, params: types.DidOpenTextDocumentParams) -> None:
        ls.opened.add(params.text_document.uri)
        ls.publish(params.text_document.uri)

    @server.feature(types.TEXT_DOCUMENT_DID_CHANGE)
    def changed(ls: Server, params: types.DidChangeTextDocumentParams) -> None:
        ls.publish(params.text_document.uri)

    @server.feature(types.TEXT_DOCUMENT_DID_SAVE)
    def saved(ls: Server, params: types.DidSaveTextDocumentParams) -> None:
        ls.forget(params.text_document.uri)  # files that it names may be there by now
        ls.publish(params.text_document.uri)

    @server.feature(types.TEXT_DOCUMENT_DID_CLOSE)
    def closed(ls: Server, params: types.DidCloseTextDocumentParams) -> None:
        ls.opened.discard(params.text_document.uri)
        ls.forget(params.text_document.uri)
        ls.text_document_publish_diagnostics(types.PublishDiagnosticsParams(params.text_document.uri, []))

    @server.feature(types.INITIALIZED)
    async def watch(ls: Server, _params: types.InitializedParams) -> None:
        workspace = ls.client_capabilities.workspace
        watched = workspace and workspace.did_change_watched_files
        if watched and watched.dynamic_registration:
            patterns = [types.FileSystemWatcher(f"**/*.{kind}") for kind in ("yaml", "yml", "py")]
            wanted = types.DidChangeWatchedFilesRegistrationOptions(patterns)
            method = types.WORKSPACE_DID_CHANGE_WATCHED_FILES
            await ls.client_register_capability_async(
                types.RegistrationParams([types.Registration("ratc-files", method, wanted)])
            )

    @server.feature(types.WORKSPACE_DID_CHANGE_WATCHED_FILES)
    def changed_on_disk(ls: Server, _params: types.DidChangeWatchedFilesParams) -> None:
        ls.look_again()

    @server.feature(types.TEXT_DOCUMENT_HOVER)
    def hover(ls: Server, params: types.HoverParams) -> types.Hover | None:
        document = ls.workspace.get_text_document(params.text_document.uri)
        found = ls.analysis(document)
        told = found and analysis.hover(found, *places.from_client(document, params.position))
        if not told:
            return None
        text, span = told
        return types.Hover(types.MarkupContent(types.MarkupKind.Markdown, text), places.to_client(document, span))

    @server.feature(types.TEXT_DOCUMENT_COMPLETION, types.CompletionOptions(trigger_characters=[" ", ":"]))
    def complete(ls: Server, params: types.CompletionParams) -> list[types.CompletionItem]:
        document = ls.workspace.get_text_document(params.text_document.uri)
        if not analysis.is_spec(document.source):
            return []
        return [
            types.CompletionItem(
                one.label,
                kind=types.CompletionItemKind.Property if one.is_key else types.CompletionItemKind.Value,
                detail=one.detail,
                documentation=types.MarkupContent(types.MarkupKind.Markdown, one.text),
                insert_text=one.insert,
            )
            for one in analysis.completions(document.source, *places.from_client(document, params.position))
        ]

    options = types.CodeActionOptions([types.CodeActionKind.QuickFix])

    @server.feature(types.TEXT_DOCUMENT_CODE_ACTION, options)
    def actions(ls: Server, params: types.CodeActionParams) -> list[types.CodeAction]:
        document = ls.workspace.get_text_document(params.text_document.uri)
        found = ls.analysis(document)
        return [action for one in (found.found if found else ()) if (action := _action(document, one, params.range))]

    return server


def _name(document: TextDocument) -> str:
    """The document's path, as findings name it."""
    return files.shown(to_fs_path(document.uri) or "spec.yaml")


def _item(document: TextDocument, found: Diagnostic) -> types.Diagnostic:
    """A finding; one of another file, or of none, stands at the beginning and names its place."""
    span, parts = found.span, [found.message, *found.notes, *(f"help: {text}" for text in found.helps)]
    if span is not None and not _is_of(document, span):
        parts[0] = f"{span.place}: {parts[0]}"
        span = None
    place = places.to_client(document, span) if span else types.Range(types.Position(0, 0), types.Position(0, 1))
    message = "\n".join(part for part in parts if part)
    return types.Diagnostic(place, message, _SEVERITIES[found.severity], code=found.code, source="ratc")


def _is_of(document: TextDocument, span: Span) -> bool:
    return span.source.is_file and span.source.name == _name(document)


def _action(document: TextDocument, found: Diagnostic, at: types.Range) -> types.CodeAction | None:
    """The quick fix of a finding at a range; None if there is none."""
    if found.fix is None or found.span is None or not _is_of(document, found.span):
        return None
    place = places.to_client(document, found.span)
    if not (place.start.line <= at.end.line and at.start.line <= place.end.line):
        return None

    def edit(one: Edit) -> types.TextEdit:
        return types.TextEdit(places.to_client(document, one.span), one.text)

    edits = [edit(one) for one in found.fix.edits if _is_of(document, one.span)]
    return types.CodeAction(
        f"fix: {found.fix.description}" if found.fix.is_certain else found.fix.description,
        kind=types.CodeActionKind.QuickFix,
        diagnostics=[_item(document, found)],
        edit=types.WorkspaceEdit({document.uri: edits}),
        is_preferred=found.fix.is_certain,
    )
