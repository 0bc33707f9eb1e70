"""Say what fits: the largest micro-batch and the predicted peak memory, over cards, precisions and ZeRO stages.

Nothing is run and no GPU is needed: the step of the spec's model is traced once for each precision and kind of card,
kept, and replayed at every card's cap. Cards default to the spec's, or to a few common ones.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace

from ratc import facts
from ratc.cli import inputs
from ratc.cli.predict import strategy_of, why_nothing
from ratc.cli.traces import Library, NoTrace
from ratc.diagnostics import Diagnostic
from ratc.memory.choose import Choice, Nothing, Searcher, Variant
from ratc.memory.estimate import timeline
from ratc.memory.request import variant
from ratc.memory.terms import MARGIN, Device
from ratc.memory.zero import Strategy
from ratc.plan import Plan
from ratc.render import fit as render

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
    parser.add_argument("--plot", metavar="FILE", help="draw one step's memory on the first card: .svg or .html")


def run(args: argparse.Namespace) -> int:
    """Exit status 1 on errors, and where nothing fits on any card."""
    if args.plot and not args.plot.endswith((".svg", ".html")):
        print(f"ratc fit: cannot draw `{args.plot}`\nhelp: name a file ending in .svg or .html", file=sys.stderr)
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
        page = render.html(drawing) if args.plot.endswith(".html") else render.svg(drawing)
        problem = _write(args.plot, page)
        if problem:
            inputs.show((problem,), "ratc fit")
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
) -> tuple[list[render.Row], list[str], render.Drawing | None]:
    world = plan.values.get_as(int, "parallel.world_size")
    searcher = Searcher(library, plan.values.get_as(int, "training.global_batch_size") // world)
    deepspeed = bool(plan.values["engine.deepspeed"].value)
    offload = bool(plan.values["engine.offload_optimizer"].value)
    rows: list[render.Row] = []
    details: list[str] = []
    drawing: render.Drawing | None = None
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
                choice = searcher.choose(wanted, strategy, device)
                rows.append(_row(card, precision, stage, choice, searcher, wanted, strategy, device))
                if choice and drawing is None:
                    drawing = _drawing(searcher, wanted, strategy, choice)
                    details += _explained(choice)
        if not any(row.card == card.id and row.micro_batch for row in rows) and len(cards) == 1:
            asked = [row.precision for row in rows]
            details += _nothing(searcher, library, plan, device, asked[0]) if asked else []
    return rows, details, drawing


def _row(
    card: facts.Card,
    precision: str,
    stage: int | None,
    choice: Choice | None,
    searcher: Searcher,
    wanted: Variant,
    strategy: Strategy,
    device: Device,
) -> render.Row:
    if choice is None:
        need = searcher.predictor(wanted, strategy, 1).need(device, 1)
        return render.Row(card.id, card.memory_bytes, precision, stage, None, None, None, None, None, need)
    found = choice.estimate
    return render.Row(
        card.id,
        card.memory_bytes,
        precision,
        stage,
        found.micro_batch,
        choice.accumulation,
        found.peak_allocated_bytes,
        found.peak_reserved_bytes,
        found.predicted_bytes,
        None,
        found.host_bytes,
    )


def _drawing(searcher: Searcher, wanted: Variant, strategy: Strategy, choice: Choice) -> render.Drawing:
    found = choice.estimate
    program = searcher.predictor(wanted, strategy, found.micro_batch).program
    title = f"{found.device.name}, {wanted.precision}, micro-batch {found.micro_batch}"
    title += f", ZeRO {strategy.zero_stage}" if strategy.engine == "deepspeed" else ""
    note = f"peak {render.gib(found.peak_allocated_bytes)} GiB allocated; cap {render.gib(found.cap_bytes)} GiB"
    note += f"; two of the {choice.accumulation} micro-batches of a step are drawn" if choice.accumulation > 2 else ""
    points = timeline(program, found.micro_batch)
    return render.Drawing(title, program.kinds, points, found.cap_bytes, found.peak_reserved_bytes, note)


def _explained(choice: Choice) -> list[str]:
    """The prediction taken apart: what is alive at the peak, and what stands beside the allocator."""
    found = choice.estimate
    lines = [f"At the peak on {found.device.name} (micro-batch {found.micro_batch}), GiB:"]
    kinds = sorted(choice.breakdown.by_kind.items(), key=lambda item: -item[1])
    lines += [f"  {render.gib(size):>8}  {kind}" for kind, size in kinds]
    cached = found.peak_reserved_bytes - sum(choice.breakdown.by_kind.values())
    lines.append(f"  {render.gib(cached):>8}  reserved, and free or padding at the peak")
    lines += [f"  {render.gib(term.bytes_):>8}  {term.name} (bound: {term.source})" for term in found.outside]
    margin = found.budget_bytes - found.cap_bytes
    lines.append(f"  {render.gib(margin):>8}  margin, {found.margin:.0%} of what is left beside those")
    largest = ", ".join(f"{name or 'the model'} {render.gib(size)}" for name, size in choice.breakdown.largest())
    lines.append(f"  largest: {largest}")
    if choice.next_larger:
        more = choice.next_larger
        need = (
            f"{render.gib(more.peak_reserved_bytes)} GiB reserved without a cap, {render.gib(more.cap_bytes)} allowed"
        )
        lines.append(f"  micro-batch {more.micro_batch} does not fit: {need}")
    return lines


def _nothing(searcher: Searcher, library: Library, plan: Plan, device: Device, precision: str) -> list[str]:
    """What to do where nothing fits; each way was predicted."""
    wanted = replace(variant(plan, device.kernels), precision=precision)
    strategy = replace(strategy_of(plan), precision=precision)
    return _told(why_nothing(searcher, library, plan, wanted, strategy, device))


def _told(result: Nothing) -> list[str]:
    found = result.estimate
    need, has = render.gib(result.need_bytes), render.gib(found.device.memory_bytes)
    lines = [f"Nothing fits on {found.device.name}: micro-batch 1 needs {need} GiB, the card has {has} GiB."]
    lines += [f"  {render.gib(size):>8}  {name or 'the model'}" for name, size in result.breakdown.largest()]
    if not result.ways_out:
        lines.append(
            "No single change of precision, checkpointing, image size, ZeRO stage or card was found that would do."
        )
    for way in result.ways_out:
        choice = way.choice.estimate
        size = render.gib(choice.predicted_bytes)
        lines.append(f"  would fit with {way.change}: micro-batch {choice.micro_batch}, {size} GiB on the card")
    return lines


def _note(plan: Plan) -> str:
    world, total = plan.values["parallel.world_size"].value, plan.values["training.global_batch_size"].value
    return (
        f"Global batch {total} on {world} GPU{'s' if world > 1 else ''}. Sizes in GiB, predicted, not measured; "
        f"a {MARGIN:.0%} margin is kept free."
    )


def _write(path: str, page: str) -> Diagnostic | None:
    """Code: R403."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(page)
    except OSError as error:
        return Diagnostic("R403", f"cannot write `{os.path.normpath(path)}`: {error.strerror}")
    return None
