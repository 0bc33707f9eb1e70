"""Other tools' files -> the text of a spec, with a list of the settings that it could not take over."""

from __future__ import annotations

from collections.abc import Sequence

from ratc import compiler
from ratc.compiler import File, Inputs
from ratc.diagnostics import Diagnostic, has_errors
from ratc.importers import accelerate, batch, deepspeed, detect, merge, specification, unified
from ratc.importers.model import Item
from ratc.scheduler import DIALECTS
from ratc.workflow.read import read

_READERS = {"unified": unified.read, "accelerate": accelerate.read, "deepspeed": deepspeed.read}


def import_files(names: Sequence[str], kind: str | None) -> tuple[str | None, tuple[Diagnostic, ...]]:
    """Merge files to the text of a spec: for each setting the first file counts. None if a file cannot be read.

    ``kind`` is the kind of all files; None detects it per file. Codes: R00x, R43x.
    """
    items: list[Item] = []
    target = None
    for name in names:
        found, of_kind, problems = _read(name, kind, alone=len(names) == 1)
        if found is None:
            return None, problems
        items += found
        target = target or (of_kind if of_kind in DIALECTS else None)
    text, said = specification.write(merge.merge(items), names, target)
    return text, tuple(said)


def _read(
    name: str, asked: str | None, alone: bool
) -> tuple[Sequence[Item] | None, str | None, tuple[Diagnostic, ...]]:
    """Return the items of a file and its kind."""
    file, problem = read(name, named=True)
    if file is None:
        return None, None, (problem,) if problem else ()
    kind, document, found = detect.kind(name, file.data, asked)
    if kind is None:
        return None, None, found
    if document is None:
        return batch.read(kind, name, file.data.decode("utf-8", errors="replace")), kind, ()
    if kind == "unified" and alone and asked is None and _is_spec(file):
        helps = ("use it unchanged; `--from unified` imports it anyway",)
        return (
            None,
            kind,
            (Diagnostic("R431", f"`{name}` is already a spec that ratc can read", document.root.span, helps=helps),),
        )
    return _READERS[kind](document), kind, ()


def _is_spec(file: File) -> bool:
    settings, found = compiler.analyse(Inputs(file))
    return settings is not None and not has_errors(found)
