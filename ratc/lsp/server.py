"""The language server: the protocol around :mod:`ratc.lsp.analysis`, over standard input and output."""

from __future__ import annotations

from lsprotocol import types
from pygls.lsp.server import LanguageServer
from pygls.uris import to_fs_path
from pygls.workspace import TextDocument

from ratc import __version__, files
from ratc.diagnostics import Diagnostic, Edit, Severity, Span
from ratc.lsp import analysis
from ratc.lsp.analysis import Analysis

_SEVERITIES = {
    Severity.ERROR: types.DiagnosticSeverity.Error,
    Severity.WARNING: types.DiagnosticSeverity.Warning,
    Severity.NOTE: types.DiagnosticSeverity.Information,
}


class Server(LanguageServer):
    """Keeps the analysis of each open spec, by its URI and version."""

    def __init__(self, target: str) -> None:
        super().__init__("ratc", __version__)
        self.target = target
        self._known: dict[str, tuple[int | None, Analysis]] = {}

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
        ls.forget(params.text_document.uri)
        ls.text_document_publish_diagnostics(types.PublishDiagnosticsParams(params.text_document.uri, []))

    @server.feature(types.TEXT_DOCUMENT_HOVER)
    def hover(ls: Server, params: types.HoverParams) -> types.Hover | None:
        document = ls.workspace.get_text_document(params.text_document.uri)
        found = ls.analysis(document)
        told = found and analysis.hover(found, *_place(document, params.position))
        if not told:
            return None
        text, span = told
        return types.Hover(types.MarkupContent(types.MarkupKind.Markdown, text), _range(document, span))

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
            for one in analysis.completions(document.source, *_place(document, params.position))
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


def _place(document: TextDocument, position: types.Position) -> tuple[int, int]:
    """The line and the column, from 1, of a position that counts as the client does."""
    if position.line >= len(document.lines):  # behind the last line end
        return position.line + 1, position.character + 1
    here = document.position_codec.position_from_client_units(document.lines, position)
    return here.line + 1, here.character + 1


def _range(document: TextDocument, span: Span) -> types.Range:
    """A range as the client counts."""
    end_line, end_column = span.end_line, span.end_column
    whole = types.Range(types.Position(span.line - 1, span.column - 1), types.Position(end_line - 1, end_column - 1))
    return document.position_codec.range_to_client_units(document.lines, whole)


def _item(document: TextDocument, found: Diagnostic) -> types.Diagnostic:
    """A finding; one of another file, or of none, stands at the beginning and names its place."""
    span, parts = found.span, [found.message, *found.notes, *(f"help: {text}" for text in found.helps)]
    if span is not None and not _is_of(document, span):
        parts[0] = f"{span.place}: {parts[0]}"
        span = None
    place = _range(document, span) if span else types.Range(types.Position(0, 0), types.Position(0, 1))
    message = "\n".join(part for part in parts if part)
    return types.Diagnostic(place, message, _SEVERITIES[found.severity], code=found.code, source="ratc")


def _is_of(document: TextDocument, span: Span) -> bool:
    return span.source.is_file and span.source.name == _name(document)


def _action(document: TextDocument, found: Diagnostic, at: types.Range) -> types.CodeAction | None:
    """The quick fix of a finding at a range; None if there is none."""
    if found.fix is None or found.span is None or not _is_of(document, found.span):
        return None
    place = _range(document, found.span)
    if not (place.start.line <= at.end.line and at.start.line <= place.end.line):
        return None

    def edit(one: Edit) -> types.TextEdit:
        return types.TextEdit(_range(document, one.span), one.text)

    edits = [edit(one) for one in found.fix.edits if _is_of(document, one.span)]
    return types.CodeAction(
        f"fix: {found.fix.description}" if found.fix.is_certain else found.fix.description,
        kind=types.CodeActionKind.QuickFix,
        diagnostics=[_item(document, found)],
        edit=types.WorkspaceEdit({document.uri: edits}),
        is_preferred=found.fix.is_certain,
    )
