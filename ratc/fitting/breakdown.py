"""The breakdown of a prediction, line by line: the bytes in use at the peak, the rest, and why no more fits.

`ratc fit` prints it below its table, `ratc explain` below the value of a batch size; `ratc report` draws it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ratc import units
from ratc.memory.choose import Alternative, Choice, DoesNotFit
from ratc.memory.decision import Recomputed
from ratc.memory.estimate import Breakdown, Estimate
from ratc.memory.given import Verdict
from ratc.memory.margin import text
from ratc.render.html.memory import Part
from ratc.timing.run import span_text

#: Kinds of the trace in the order in which they are shown, with their names.
_WORDS = {
    "parameter": "parameters",
    "buffer": "buffers",
    "gradient": "gradients",
    "optimizer": "optimizer state",
    "activation": "activations",
    "temporary": "temporaries",
    "input": "inputs",
    "bucket": "communication buckets",
    "workspace": "workspaces of cuBLAS and cuDNN",
}
#: Shown even if none of it is alive at the peak.
_ALWAYS = ("parameter", "gradient", "optimizer", "activation")
#: Modules named for each kind at most, and the least share of the kind's bytes for a module to be named.
_MODULES, _SHARE = 3, 0.05


def parts(found: Estimate, broken: Breakdown, measured: str | None = None) -> list[Part]:
    """Return all bytes in use on the card at the peak, from the parameters to those outside the allocator."""
    said = []
    if measured:
        said.append(Part("allocated", found.peak_allocated_bytes, "of tensors, whose kinds were not measured"))
    for kind, word in () if measured else _WORDS.items():
        size = broken.by_kind.get(kind, 0)
        if size or kind in _ALWAYS:
            said.append(Part(kind, size, word, _modules(broken, kind, size)))
    alive = sum(part.bytes_ for part in said)
    unused = found.peak_reserved_bytes - alive
    said.append(Part("reserved", unused, "reserved by the allocator, free or padding at that moment"))
    source = "from" if measured else "bound"
    said += [Part("outside", term.bytes_, term.name, f"{source}: {term.source}") for term in found.outside]
    return said


def lines(choice: Choice, measured: str | None = None) -> list[str]:
    """Return the breakdown of a choice, its share of the global batch, and why no more fits."""
    return [*_sums(choice, measured), taken(choice), more(choice.next_larger)]


def of_given(verdict: Verdict) -> list[str]:
    """Return the breakdown of a micro-batch that the spec gives."""
    size = verdict.choice.estimate.micro_batch
    if verdict.fits:
        outcome = f"Micro-batch {size} is given by the spec, and fits."
    elif verdict.is_tight:
        outcome = f"Micro-batch {size} is given by the spec, and fits only within the margin."
    else:
        needs = f"a card of {size_text(verdict.need_bytes)} would be needed"
        outcome = f"Micro-batch {size} is given by the spec, and does not fit: {needs}."
    said = [*_sums(verdict.choice, verdict.measured), outcome]
    if verdict.largest:
        largest = verdict.largest.estimate
        size_there = size_text(largest.predicted_bytes)
        said.append(f"The largest that fits is {largest.micro_batch}: {size_there} on the card.")
    return said + [_way(way) for way in verdict.ways]


def recomputed(blocks: Sequence[Recomputed]) -> list[str]:
    """Return the blocks that are recomputed, each with the bytes that this frees and the time that it adds."""
    said = ["Recomputed in the backward pass; each frees so much at the peak of a step that keeps everything:"]
    for block in blocks:
        adds = "" if block.seconds is None else f", adds {span_text(block.seconds)} to a step"
        said.append(_line(block.bytes_, block.name + adds))
    known = [block.seconds for block in blocks if block.seconds is not None]
    adds = f", adds {span_text(sum(known))} to a step" if known else ""
    return [*said, _line(sum(block.bytes_ for block in blocks), f"in all{adds}")]


def _sums(choice: Choice, measured: str | None) -> list[str]:
    """Return every part of a step, and the sums of the allocator: bytes rounded to 512.

    ``measured`` names the measurement of the choice; None for a prediction. A measurement knows sums, not parts.
    """
    found = choice.estimate
    how = measured or "predicted"
    said = [f"At the peak of a step on {found.device.name}, micro-batch {found.micro_batch}, {how}:"]
    for part in parts(found, choice.breakdown, measured):
        detail = f" ({part.detail})" if part.kind == "outside" else f": {part.detail}" if part.detail else ""
        said.append(_line(part.bytes_, part.name + detail))
    said.append(_line(found.predicted_bytes, f"in all, of {size_text(found.device.memory_bytes)} on the card"))
    margin = max(0, found.budget_bytes - found.cap_bytes)
    said.append(_line(margin, f"kept free as a margin, {margin_text(found)}"))
    unused = found.cap_bytes - found.peak_reserved_bytes
    above = (
        "of the margin are in use"
        if found.peak_reserved_bytes <= found.budget_bytes
        else "above what then remains: it does not fit"
    )
    said.append(_line(abs(unused), "unused below the cap" if unused >= 0 else above))
    if found.slower:
        said.append(
            "Some convolutions have no room for their fastest kernel's workspace; a slower one takes half of it."
        )
    if found.host_bytes:
        said.append(_line(found.host_bytes, "of host memory, for what is offloaded"))
    return said


def margin_text(found: Estimate) -> str:
    """Return the margin as a share, with its parts."""
    return f"{found.margin:.1%} of what those leave to the allocator: {text(found.margin_parts)}"


def does_not_fit(result: DoesNotFit, others_fit: bool = False) -> list[str]:
    """Return why nothing fits, and each predicted way out. ``others_fit`` says that other strategies than the plan's
    own do.
    """
    found = result.estimate
    need, has = size_text(result.need_bytes), size_text(found.device.memory_bytes)
    what = "The strategy of the spec does not fit" if others_fit else "Nothing fits"
    said = [f"{what} on {found.device.name}: micro-batch {found.micro_batch} needs {need}, the card has {has}."]
    said += [_line(size, name or "the model") for name, size in result.breakdown.largest()]
    if not result.alternatives:
        said.append(
            "No single change of precision, activation checkpointing, image size, ZeRO stage or card would make it fit."
        )
    return said + [_way(way) for way in result.alternatives]


def _way(way: Alternative) -> str:
    choice = way.choice.estimate
    size = size_text(choice.predicted_bytes)
    return f"  would fit with {way.change}: micro-batch {choice.micro_batch}, {size} on the card"


def size_text(size: int) -> str:
    """Return a size in bytes as text."""
    return units.size_text(size, fine=True)


def _line(size: int, words: str) -> str:
    return f"  {size_text(size):>9}  {words}"


def _modules(parts: Breakdown, kind: str, total: int) -> str:
    """Return the modules with the most bytes of a kind, if the trace knows any."""
    held = sorted(
        ((size, module or "the model") for (module, of), size in parts.by_both.items() if of == kind),
        key=lambda item: (-item[0], item[1]),
    )
    named = [(size, name) for size, name in held if size >= _SHARE * total][:_MODULES]
    if all(not module for (module, of) in parts.by_both if of == kind) or kind == "workspace":
        return ""
    rest = [f"{len(held) - len(named)} more" if named else f"of {len(held)} modules"] if len(held) > len(named) else []
    return ", ".join([*(f"{name} {size_text(size)}" for size, name in named), *rest])


def taken(choice: Choice) -> str:
    """Return a sentence on the choice's share of the global batch."""
    micro, times = choice.estimate.micro_batch, choice.accumulation
    share = "the whole of a rank's share" if times == 1 else f"{times} of them make a rank's share"
    return f"Micro-batch {micro} is taken: {share} of the global batch, {micro * times} samples."


def more(larger: Estimate | None) -> str:
    """Return why the next larger divisor does not fit: too many bytes in use, or no contiguous room for them."""
    if larger is None:
        return "A larger micro-batch would be more than the global batch."
    cap = f"the {size_text(larger.cap_bytes)} that the allocator may reserve"
    alive, reserved = size_text(larger.peak_allocated_bytes), size_text(larger.peak_reserved_bytes)
    if larger.peak_allocated_bytes > larger.cap_bytes:
        return f"The next larger divisor, {larger.micro_batch}, does not fit: {alive} alive at once, above {cap}."
    why = f"{alive} alive at once would, but the allocator would reserve {reserved} for them, above {cap}"
    return f"The next larger divisor, {larger.micro_batch}, does not fit: {why}."
