"""A scheduler's refusal, and the line of the spec that it is about."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ratc.diagnostics import Diagnostic, Span
from ratc.plan import Values
from ratc.scheduler.dialect import Answer

#: Words of a refusal, and the keys that it may be about, the likeliest first. The texts are those of Slurm's
#: slurm_errno.c and sbatch, and of LSF's bsub; the first that matches counts.
_ABOUT: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"account|project|user group", ("resources.account", "resources.partition", "resources.queue")),
    (r"\bqos\b|quality of service", ("resources.qos",)),
    (r"time limit|run ?limit|walltime", ("resources.walltime",)),
    (r"memory|mem ?limit|memlimit", ("resources.memory",)),
    (r"feature", ("resources.node_type",)),
    (r"gres|generic resource|\bgpus?\b", ("resources.gpu", "resources.num_gpus", "resources.gpus_per_node")),
    (r"node count", ("resources.nodes",)),
    (r"processors|\bcpus?\b", ("resources.cpus", "resources.nodes")),
    (r"partition|queue", ("resources.partition", "resources.queue")),
)


def refusal(answer: Answer, settings: Values, submitted: bool) -> Diagnostic:
    """Return the scheduler's message as a finding, at the key that it is about if that is known. Code: R414."""
    words = answer.words
    span = _span(words, settings)
    verb = "refused the job" if submitted else "would refuse the job"
    reason = _reason(words)
    message = f"the scheduler {verb}: {_plain(reason)}" if words else f"the scheduler {verb} and gave no reason"
    notes = tuple(f"{answer.command} said: {word}" for word in words if word != reason)
    look = "check the request in the first lines of the script, which the scheduler reads"
    helps = (look,) if span is None else ()
    return Diagnostic("R414", message, span, notes, helps)


#: Lines of schedulers without a reason: a site's plugin or script has given it in a line of its own.
_NO_REASON = re.compile(r"unspecified error|(?:request|submission) (?:aborted|rejected) by esub|^$", re.IGNORECASE)


def _reason(words: Sequence[str]) -> str:
    """Return the reason in a scheduler's message: that of the last line, unless it has none."""
    telling = [word for word in words if not _NO_REASON.search(_plain(word))]
    return [*words, *telling][-1] if words else ""


def _plain(word: str) -> str:
    """Return the reason without the program's name and the fixed words before it."""
    prefix = r"^(?:(?:sbatch|bsub): (?:error: )?|allocation failure: |Batch job submission failed: )+"
    return re.sub(prefix, "", word).rstrip(".")


def _span(words: Sequence[str], settings: Values) -> Span | None:
    """Return the place of the first key that a line is about, last line first: earlier lines may be the site's."""
    for line in reversed(words):
        for pattern, paths in _ABOUT:
            if re.search(pattern, line, re.IGNORECASE):
                # A value from the facts has no line in the spec.
                return next((settings[path].span for path in paths if path in settings and settings.given(path)), None)
    return None
