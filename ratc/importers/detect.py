"""Detects the kind of a configuration file from its content."""

from __future__ import annotations

import re

from ratc.diagnostics import Diagnostic, Source, Span, did_you_mean
from ratc.yaml.parse import Document, parse

KINDS = ("unified", "accelerate", "deepspeed", "slurm", "lsf")
_ACCELERATE = {"compute_environment", "distributed_type", "num_processes", "num_machines", "deepspeed_config"}
_DEEPSPEED = {"zero_optimization", "train_batch_size", "train_micro_batch_size_per_gpu", "fp16", "bf16"}
_UNIFIED = {"experiment_name", "task_type", "model", "training", "data", "logging", "distributed"}
_DIRECTIVE = {"slurm": re.compile(r"^#SBATCH\b", re.M), "lsf": re.compile(r"^#BSUB\b", re.M)}


def script(text: str) -> list[str]:
    """Return the schedulers with directives in a script."""
    return [kind for kind, directive in _DIRECTIVE.items() if directive.search(text)]


def kind(name: str, data: bytes, asked: str | None) -> tuple[str | None, Document | None, tuple[Diagnostic, ...]]:
    """The kind of a file, and its document if it is YAML or JSON. Codes: R00x, R430, R431."""
    if asked is not None and asked not in KINDS:
        helps = did_you_mean(asked, KINDS) or (f"use one of {', '.join(KINDS)}",)
        return None, None, (Diagnostic("R430", f"there is no kind `{asked}`", helps=helps),)
    text = data.decode("utf-8", errors="replace")
    spoken = script(text)
    if asked in _DIRECTIVE or (asked is None and (spoken or text.startswith("#!"))):
        if asked is None and len(spoken) != 1:
            why = "it has directives of Slurm and of LSF" if spoken else "it is a script without directives"
            return None, None, (_unclear(name, text, why),)
        return asked or spoken[0], None, ()
    # JSON may be indented by tabs, YAML may not; a space is as wide.
    document, found = parse(name, data.replace(b"\t", b" ") if text.lstrip().startswith("{") else data)
    if document is None:
        return None, None, found
    assert isinstance(document.root.value, dict)
    keys = set(document.root.value)
    if "lock_version" in keys:
        helps = ("import the files that it was made from, or use the spec from which it was compiled",)
        return None, None, (Diagnostic("R431", f"`{name}` is a lock of ratc", document.root.span, helps=helps),)
    named = (("accelerate", _ACCELERATE), ("deepspeed", _DEEPSPEED), ("unified", _UNIFIED))
    like = asked or next((which for which, known in named if keys & known), None)
    if like is None:
        return None, None, (_unclear(name, text, "ratc knows none of its keys"),)
    return like, document, ()


def _unclear(name: str, text: str, why: str) -> Diagnostic:
    source = Source(name, text)
    helps = (f"name its kind with `--from`, one of {', '.join(KINDS)}",)
    return Diagnostic(
        "R430", f"it is not clear which kind of file `{name}` is: {why}", Span(source, 1, 1, 1, 2), helps=helps
    )
