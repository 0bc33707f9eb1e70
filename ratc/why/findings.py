"""Causes that the run has said itself: the findings of ratc's runtime in its logs."""

from __future__ import annotations

from ratc.diagnostics import Diagnostic
from ratc.program import is_used
from ratc.why.evidence import Evidence, Finding

#: Findings that follow from another one, which is the cause if it is there.
_FOLLOW = ("R514", "R561", "R567", "R528", "R566")

#: Keys of the spec that a finding of the runtime is about.
_KEYS = {
    "R502": ("resources.num_gpus", "resources.nodes"),
    "R503": ("entrypoint.args",),
    "R504": ("resources.gpu", "resources.num_gpus"),
    "R506": ("data.data_dir",),
    "R507": ("training.learning_rate", "training.precision"),
    "R509": (
        *("entrypoint.script", "entrypoint.module", "entrypoint.command"),
        *("model.name", "data.dataset", "training.loss", "training.optimizer"),
    ),
    "R510": ("output_dir",),
    "R511": ("training.batch_size",),
    "R513": ("data.num_workers", "resources.memory"),
    "R519": ("output_dir",),
    "R524": ("logging.backend", "environment.venv"),
    "R529": ("environment.venv",),
    "R533": ("data.on_bad_sample",),
    "R553": ("model.attention_memory",),
    "R560": ("environment.modules", "environment.venv", "environment.conda", "environment.setup"),
    "R562": ("output_dir",),
    "R566": ("checkpoint.every_steps", "resources.walltime"),
    "R621": ("resources.max_excluded_nodes",),
}


def run_finding(evidence: Evidence) -> Diagnostic | None:
    """A finding of the runtime's or of the script's own in the logs: the first that does not follow from another."""
    found = [finding for finding in evidence.findings if finding.code not in _FOLLOW]
    if not found:
        return None
    return _diagnostic(found[0], evidence)


def following(evidence: Evidence) -> Diagnostic | None:
    """The same of a finding that mostly follows from another, if the other was not found."""
    found = sorted(evidence.findings, key=lambda finding: -_FOLLOW.index(finding.code))
    return _diagnostic(found[0], evidence) if found else None


def _diagnostic(finding: Finding, evidence: Evidence) -> Diagnostic:
    given = [evidence.at(path) for path in _KEYS.get(finding.code, ()) if _is_read(path, evidence)]
    places = [text for text in given if not text.startswith("`")] or given[:1]
    helps = (*finding.helps, *(f"it is about {text}" for text in places))
    return Diagnostic(finding.code, finding.message, finding.span, finding.notes, helps)


def _is_read(path: str, evidence: Evidence) -> bool:
    """Whether a key means something for the run: one of a program, or of ratc's own loop."""
    return is_used(path) if evidence.is_program else not path.startswith("entrypoint.")
