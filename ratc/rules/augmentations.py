"""R220 to R222: the augmentations exist, take their arguments, and suit the images. Without torch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ratc.catalog.augmentations import COLOUR_ARGUMENTS, COLOUR_ONLY, ELSEWHERE, TORCHVISION, TRANSFORMS
from ratc.catalog.tasks import DIMENSIONS
from ratc.diagnostics import Diagnostic, Severity, Span, did_you_mean
from ratc.plan import Values

_PATH = "data.augmentations"


def check(settings: Values) -> Iterator[Diagnostic]:
    """Check each entry of the list, at its line."""
    whole = settings[_PATH].span
    seen: dict[str, int] = {}
    for entry in settings[_PATH].value:
        for name, arguments in entry.items():
            span = _place(whole, name, seen.get(name, 0))
            seen[name] = seen.get(name, 0) + 1
            if name not in TRANSFORMS:
                yield _unknown(name, span)
                continue
            yield from _arguments(name, arguments, span)
            yield from _check_against_data(name, arguments, span, settings)


def _unknown(name: str, span: Span | None) -> Diagnostic:
    if name in ELSEWHERE:
        return Diagnostic("R220", f"`{name}` cannot be used as an augmentation", span, (ELSEWHERE[name],))
    helps = did_you_mean(name, TRANSFORMS) or ("there are " + ", ".join(f"`{known}`" for known in TRANSFORMS),)
    note = f"augmentations are transforms of torchvision {TORCHVISION} that also change masks and boxes, or only "
    note += "the values of the image"
    return Diagnostic("R220", f"no augmentation is called `{name}`", span, (note,), helps)


def _arguments(name: str, arguments: dict[str, Any], span: Span | None) -> Iterator[Diagnostic]:
    takes = TRANSFORMS[name].arguments
    for key, value in arguments.items():
        if key not in takes:
            listed = ", ".join(f"`{known}`" for known in takes)
            helps = did_you_mean(key, takes) or (f"it takes {listed}" if takes else "it takes no arguments",)
            yield Diagnostic("R221", f"`{name}` takes no `{key}`", span, helps=helps)
        elif not takes[key].accepts(value):
            yield Diagnostic("R221", f"`{key}` of `{name}` must be {takes[key].words}, not `{value}`", span)
    for key in TRANSFORMS[name].required:
        if key not in arguments:
            yield Diagnostic("R221", f"`{name}` needs `{key}`", span, helps=(f"{key} is {takes[key].words}",))


def _check_against_data(
    name: str, arguments: dict[str, Any], span: Span | None, settings: Values
) -> Iterator[Diagnostic]:
    own_data = ":" in str(settings["data.dataset"].value)
    size, wanted = arguments.get("size"), settings["data.image_size"].value
    if not own_data and size is not None and _sides(size) != _sides(wanted):
        message = f"`{name}` gives images of {_sides(size)}, and `image_size` is {_sides(wanted)}"
        yield Diagnostic("R222", message, span, helps=("leave `size` out: it is `image_size`",))
    dataset = settings["data.dataset"].value
    if name == "RandomDepthFlip" and DIMENSIONS.get(dataset) == 2:
        yield Diagnostic(
            "R222", f"`RandomDepthFlip` needs volumes, and the data set `{dataset}` holds flat images", span
        )
    if own_data or settings["data.channels"].value != 1:
        return
    # Only of images that are known to be grey.
    useless = name if name in COLOUR_ONLY else next((key for key in COLOUR_ARGUMENTS if arguments.get(key)), None)
    if useless:
        message = f"`{useless}` has no effect: `channels` is 1"
        yield Diagnostic("R222", message, span, severity=Severity.WARNING)


def _sides(size: Any) -> list[Any]:
    sides = size if isinstance(size, list) else [size]
    return sides * 2 if len(sides) == 1 else sides[-2:]


def _place(whole: Span | None, name: str, before: int) -> Span | None:
    """Return the place of the (before + 1)-th occurrence of the name in the text of the list."""
    if whole is None:
        return None
    for number in range(whole.line, whole.end_line + 1):
        text = whole.source.line(number)
        for match in re.finditer(rf"(?<![\w.]){re.escape(name)}(?!\w)", text.partition(" #")[0]):
            inside = (number, match.start() + 1) >= (whole.line, whole.column)
            if inside and not before:
                return Span(whole.source, number, match.start() + 1, number, match.end() + 1)
            before -= inside
    return whole
