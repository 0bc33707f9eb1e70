"""Pages for the tests: of a spec on the CPU, of one with everything that a page can show, and of a difference."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

from ratc.cli import main
from ratc.diagnostics import Diagnostic, Severity, Source, Span
from ratc.plan import Plan, Value, Values
from ratc.render.html.memory import CardMemory, CardRow, Part
from ratc.render.html.page import Report
from ratc.render.timeline import Drawing
from ratc.workflow.inputs import decided, load
from ratc.workflow.request import CompileRequest

GIB = 1 << 30
#: Markup that would break out of an element, an attribute, the style and the script.
HOSTILE = """</script></style><img src=x onerror="document.title='broken'">'"><svg onload=alert(1)>&amp;{{ 7 * 7 }}"""
SPEC = """\
experiment_name: moles
description: Moles on the skin
training: {batch_size: 4, target_batch_size: 8, epochs: 20}
data: {data_dir: data}
resources: {num_gpus: 0, cpus: 4}
"""


def plan(folder: Path, text: str = SPEC) -> Plan:
    """The plan of a spec that is written into the folder."""

    path = folder / "spec.yaml"
    path.write_text(text)
    request = CompileRequest(str(path))
    loaded = load(request)
    assert loaded.settings is not None, loaded.diagnostics
    made, found, _, _ = decided(request, loaded.settings, predict=False)
    assert made is not None, found
    return made


def card_memory(fits: bool = True) -> CardMemory:
    """A card's memory whose parts make the card, or go beyond it."""
    used = [
        Part("parameter", 2 * GIB, "parameters", "backbone 1.50 GiB, 3 more"),
        Part("activation", (20 if fits else 90) * GIB, "activations", "backbone.sga_layers.0 12.0 GiB"),
        Part("workspace", 1 << 23, "cuBLAS workspace"),
        Part("reserved", 3 * GIB, "reserved by the allocator, free or padding at that moment"),
        Part("outside", GIB, "CUDA context and kernels", "bound: measured by others"),
    ]
    total = sum(part.bytes_ for part in used)
    left = [
        Part("margin", 4 * GIB, "kept free as a margin", "5%"),
        Part("unused", 76 * GIB - total, "unused below the cap"),
    ]
    sentences = ["Micro-batch 8 is taken."] if fits else ["This does not fit: `ratc fit SPEC` shows what would fit."]
    left, time = left if fits else [], "A step takes about 0.42 s, between 0.3 and 0.6 s."
    return CardMemory("a100-80", 80 * GIB, total, 8, "predicted", used, left, fits, sentences, time=time)


def drawing(title: str = "rat, 256 x 256, bf16, on a100-80: micro-batch 8") -> Drawing:
    """A step that climbs, peaks in its backward pass and falls."""
    points = [[2 * GIB, height * GIB] for height in (0, 4, 9, 15, 20, 12, 5, 1, 0, 0)]
    marks = [(0.0, "forward"), (0.4, "backward"), (0.8, "optimizer")]
    return Drawing(
        title, "One optimizer step, predicted", ("parameter", "activation"), points, marks, 75 * GIB, 25 * GIB
    )


def cards() -> list[CardRow]:
    """Two cards: one with the plan's own row, and one on which nothing fits."""
    return [
        CardRow("a100-80", "79.1", "bf16", "1", "8", "1", "26.0", "", 26 * GIB, 80 * GIB, True, True),
        CardRow("a100-80", "79.1", "bf16", "2", "8", "1", "25.8", "", 25 * GIB, 80 * GIB, True),
        CardRow("t4", "14.7", "fp16", "1", "none", "-", "needs 17.2", "chunked attention", 17 * GIB, 15 * GIB, False),
    ]


def whole(folder: Path) -> Report:
    """A report in which nothing is missing."""
    source = Source("spec.yaml", "training: {batch_size: 4}\n")
    span = Span(source, 1, 12, 1, 22)
    warning = Diagnostic(
        "R305", "`batch_size` is only a default", span, ("a fact",), ("say `batch_size: 8`",), Severity.WARNING
    )
    return Report(
        "spec.yaml",
        "slurm",
        plan(folder),
        (warning,),
        ("Of the sweep's 2 points this is a: `seed` 1.",),
        card_memory(),
        drawing=drawing(),
        cards=cards(),
        cards_note="Global batch 64 on 8 GPUs.",
        files=FILES,
        files_note="What `ratc compile` writes.",
        points={"a": "seed 1", "b": "seed 2"},
    )


FILES = (
    ("job.sbatch", "#!/usr/bin/env bash\n#SBATCH --nodes=2\n# Why: the reason\nexport A='#no comment' # one\n"),
    ("lock.yaml", "training:\n  micro_batch_size: 8 # the largest that fits\n"),
    ("deepspeed.json", '{\n  "train_batch_size": 64\n}\n'),
)


def hostile(folder: Path) -> Report:
    """A report with markup wherever text may come from outside."""
    source = Source(HOSTILE, f"{HOSTILE}\n")
    span = Span(source, 1, 1, 1, 2)
    values = {
        "experiment_name": Value(HOSTILE, "spec", span=span),
        "description": Value(HOSTILE, "spec", span=span),
        "model.name": Value(HOSTILE, "derived", HOSTILE, (f"spec:{HOSTILE}",)),
        f"model.args.{HOSTILE}": Value([HOSTILE], "hardware", HOSTILE),
    }
    settings = Values({HOSTILE: Value(HOSTILE, "spec", span=span)})
    finding = Diagnostic("R101", HOSTILE, span, (HOSTILE,), (HOSTILE,), Severity.WARNING)
    part = Part("activation", GIB, HOSTILE, HOSTILE)
    row = CardRow(*[HOSTILE] * 8, 1, 2, True)  # type: ignore[arg-type]
    return Report(
        HOSTILE,
        HOSTILE,
        Plan(Values(values), settings),
        (finding,),
        (HOSTILE,),
        CardMemory(HOSTILE, 2 * GIB, GIB, 1, HOSTILE, [part], [part], True, [HOSTILE], time=HOSTILE),
        drawing=drawing(HOSTILE),
        cards=[row],
        cards_note=HOSTILE,
        files=((HOSTILE, f"{HOSTILE}\n# {HOSTILE}\n"),),
        files_note=HOSTILE,
        points={HOSTILE: HOSTILE},
    )


def ratc(*words: str, folder: Path) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command in a folder."""
    out, err, here = io.StringIO(), io.StringIO(), os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(words)
    finally:
        os.chdir(here)
    return status, out.getvalue(), err.getvalue()
