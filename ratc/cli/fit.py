"""Say what fits: the largest micro-batch and the predicted peak memory, over cards, precisions and ZeRO stages.

Nothing is run and no GPU is needed: the step of the spec's model is traced once for each precision and kind of card,
kept, and replayed at every card's cap. Cards default to the spec's, or to a few common ones.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from importlib.util import find_spec

from ratc import facts
from ratc.cli import account, inputs
from ratc.cli.predict import strategy_of, variants, why_nothing
from ratc.cli.traces import Library, NoTrace
from ratc.diagnostics import Diagnostic
from ratc.memory.choose import Choice, Searcher, Variant
from ratc.memory.estimate import timeline
from ratc.memory.request import variant
from ratc.memory.terms import MARGIN, Device
from ratc.memory.zero import Strategy
from ratc.plan import Plan
from ratc.render import fit as render
from ratc.render.timeline import Drawing, svg

#: Shown where neither the spec nor an option names a card.
COMMON = ("t4", "v100-32", "rtx4090", "a100-40", "a100-80", "h100")
_STAGES = (0, 1, 2, 3)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``ratc fit``."""
    inputs.add_spec_arguments(parser, target=False)
    parser.add_argument(
        "--card", action="append", default=[], metavar="CARD", dest="cards", help="a card of the catalogue; repeatable"
    )
    parser.add_argument("--all-cards", action="store_true", help="every NVIDIA card of the catalogue")
    parser.add_argument(
        "--in",
        action="append",
        default=[],
        choices=("fp32", "bf16", "fp16"),
        dest="precisions",
        help="a precision; repeatable (default: the spec's, or the card's best and fp32)",
    )
    parser.add_argument("--format", choices=("text", "markdown", "json"), default="text", help="of the table")
    parser.add_argument("--plot", metavar="FILE", help="draw one step's memory on the first card: .png, .html or .svg")


def run(args: argparse.Namespace) -> int:
    """Exit status 1 on errors, and where nothing fits on any card."""
    if args.plot and (problem := _cannot_draw(args.plot)):
        print(f"ratc fit: cannot draw `{args.plot}`{problem}", file=sys.stderr)
        return 2
    loaded = inputs.load(args, "local")
    if loaded.settings is None:
        inputs.show(loaded.diagnostics, "ratc fit")
        return 1
    plan, found, _ = inputs.resolve(args, loaded.settings, "local", predict=False)
    # That a micro-batch is only a default is what this command is about.
    found = tuple(item for item in found if item.code != "R305")
    if plan is None:
        inputs.show((*loaded.diagnostics, *found), "ratc fit")
        return 1
    cards, problems = _cards(args, plan)
    if problems:
        inputs.show((*loaded.diagnostics, *found, *problems), "ratc fit")
        return 1
    span = loaded.settings["model.name"].span
    try:
        rows, details, drawing = _table(args, plan, cards, Library(plan, loaded.folder, span))
    except NoTrace as stopped:
        inputs.show((*loaded.diagnostics, *found, *stopped.found), "ratc fit")
        return 1
    if args.plot and drawing:
        unwritten = _write(args.plot, _drawn(drawing, args.plot))
        if unwritten:
            inputs.show((unwritten,), "ratc fit")
            return 1
    inputs.show((*loaded.diagnostics, *found), "ratc fit")
    shown = {"text": render.text, "markdown": render.markdown, "json": render.as_json}[args.format]
    print(shown(rows, _note(plan)), end="")
    if args.format == "text":
        print("".join(f"\n{line}" for line in details), end="\n" if details else "")
    return 0 if any(row.micro_batch for row in rows) else 1


def _cards(args: argparse.Namespace, plan: Plan) -> tuple[list[facts.Card], tuple[Diagnostic, ...]]:
    """The cards to show. Code: R301."""
    names = list(args.cards)
    if args.all_cards:
        names += facts.card_names()
    if not names:
        own = plan.values["hardware.card"].value
        names = [own] if own else list(COMMON)
    cards: list[facts.Card] = []
    found: list[Diagnostic] = []
    for name in names:
        card, problems = facts.resolve_card(name, None)
        found += problems
        # What a step takes on AMD's cards is not known here: their attention kernels and libraries are others.
        if card and card not in cards and (card.compute_capability or not args.all_cards):
            cards.append(card)
    return cards, tuple(found)


def _precisions(args: argparse.Namespace, plan: Plan, card: facts.Card) -> list[str]:
    can = {"bf16": card.bf16, "fp16": card.fp16, "fp32": True}
    if args.precisions:
        return [kind for kind in args.precisions if can[kind]]
    asked = plan.settings["training.precision"].value
    if asked != "auto":
        return [asked] if can[asked] else []
    if not plan.settings["training.mixed_precision"].value:
        return ["fp32"]
    return [next(kind for kind in ("bf16", "fp16", "fp32") if can[kind]), "fp32"][: 2 if card.fp16 or card.bf16 else 1]


def _table(
    args: argparse.Namespace, plan: Plan, cards: list[facts.Card], library: Library
) -> tuple[list[render.Row], list[str], Drawing | None]:
    world = plan.values.get_as(int, "parallel.world_size")
    searcher = Searcher(library, plan.values.get_as(int, "training.global_batch_size") // world)
    deepspeed = bool(plan.values["engine.deepspeed"].value)
    offload = bool(plan.values["engine.offload_optimizer"].value)
    rows: list[render.Row] = []
    details: list[str] = []
    drawing: Drawing | None = None
    for card in cards:
        device = Device(card.id, card.memory_bytes, card.compute_capability)
        for precision in _precisions(args, plan, card):
            wanted = replace(variant(plan, device.kernels), precision=precision)
            stages = [stage for stage in _STAGES if stage or not offload] if deepspeed else [None]
            for stage in stages:
                engine = "torch" if stage is None else "deepspeed"
                strategy = Strategy(
                    "torch" if engine == "torch" else "deepspeed", world, stage or 0, offload, precision
                )
                allowed = variants(plan, wanted)
                taken = searcher.choose_first(allowed, strategy, device, (strategy.zero_stage,))
                if taken is None:
                    rows.append(_without(card, stage, searcher, allowed[-1], strategy, device))
                    continue
                rows.append(_row(card, stage, *taken))
                if drawing is None:
                    drawing = _drawing(plan.values.get_as(str, "model.name"), searcher, taken[0], strategy, taken[1])
                    details += account.lines(taken[1])
        if not any(row.card == card.id and row.micro_batch for row in rows) and len(cards) == 1:
            asked = [row.precision for row in rows]
            details += _nothing(searcher, library, plan, device, asked[0]) if asked else []
    return rows, details, drawing


def _row(card: facts.Card, stage: int | None, used: Variant, choice: Choice) -> render.Row:
    found = choice.estimate
    return render.Row(
        card.id,
        card.memory_bytes,
        used.precision,
        stage,
        found.micro_batch,
        choice.accumulation,
        found.peak_allocated_bytes,
        found.peak_reserved_bytes,
        found.predicted_bytes,
        None,
        found.host_bytes,
        used.attention_memory,
        used.activation_checkpointing,
    )


def _without(
    card: facts.Card, stage: int | None, searcher: Searcher, least: Variant, strategy: Strategy, device: Device
) -> render.Row:
    """The line of a card that nothing fits on: what the leanest way that the spec allows would need."""
    need = searcher.predictor(least, strategy, 1).need(device, 1)
    how = (least.attention_memory, least.activation_checkpointing)
    return render.Row(card.id, card.memory_bytes, least.precision, stage, None, None, None, None, None, need, 0, *how)


def _drawing(model: str, searcher: Searcher, wanted: Variant, strategy: Strategy, choice: Choice) -> Drawing:
    found = choice.estimate
    program = searcher.predictor(wanted, strategy, found.micro_batch).program
    size = " x ".join(map(str, wanted.image_size))
    title = f"{model}, {size}, {wanted.precision}, on {found.device.name}: micro-batch {found.micro_batch}"
    title += f", ZeRO {strategy.zero_stage}" if strategy.engine == "deepspeed" else ""
    note = "One optimizer step, predicted"
    note += f"; two of its {choice.accumulation} micro-batches are drawn" if choice.accumulation > 2 else ""
    steps = max(1, len(program.ops) - program.start)
    marks = [((index - program.start) / steps, phase) for index, phase in program.marks]
    points = timeline(program, found.micro_batch)
    return Drawing(title, note, program.kinds, points, marks, found.cap_bytes, found.peak_reserved_bytes)


def _nothing(searcher: Searcher, library: Library, plan: Plan, device: Device, precision: str) -> list[str]:
    """What to do where nothing fits; each way was predicted."""
    wanted = variants(plan, replace(variant(plan, device.kernels), precision=precision))[-1]
    strategy = replace(strategy_of(plan), precision=precision)
    return account.nothing(why_nothing(searcher, library, plan, wanted, strategy, device))


def _note(plan: Plan) -> str:
    world, total = plan.values["parallel.world_size"].value, plan.values["training.global_batch_size"].value
    return (
        f"Global batch {total} on {world} GPU{'s' if world > 1 else ''}. Sizes in GiB, predicted, not measured; "
        f"a {MARGIN:.0%} margin is kept free."
    )


def _cannot_draw(path: str) -> str | None:
    """What is wrong with the name of the drawing, or with drawing it here, and what to do; None for nothing."""
    if not path.endswith((".png", ".svg", ".html")):
        return "\nhelp: name a file ending in .png, .html or .svg"
    if path.endswith(".png") and find_spec("matplotlib") is None:
        return ": matplotlib is not installed here\nhelp: `pip install 'ratc[runtime]'`, or name a file ending in .html"
    return None


def _drawn(drawing: Drawing, path: str) -> bytes:
    if path.endswith(".png"):
        # Imported here: only this needs matplotlib.
        from ratc.render.timeline.png import png

        return png(drawing)
    return (svg.html(drawing) if path.endswith(".html") else svg.svg(drawing)).encode()


def _write(path: str, content: bytes) -> Diagnostic | None:
    """Code: R403."""
    try:
        with open(path, "wb") as file:
            file.write(content)
    except OSError as error:
        return Diagnostic("R403", f"cannot write `{os.path.normpath(path)}`: {error.strerror}")
    return None
