"""The catalogue of accelerator cards: spellings, memory, and number formats."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import Any

import yaml

from ratc import resources
from ratc.diagnostics import Diagnostic, Span, did_you_mean
from ratc.units import either

MIB = 1 << 20
#: A card and a profile of NVIDIA's for a part of it: `a100-3g.20gb`, `1c.3g.20gb`, `h100-mig-1g.10gb+me`.
_SLICE = re.compile(
    r"(?P<card>.*?)(?:(?:^|[-:.])mig)?(?:^|[-:.])(?P<part>\d+c\.)?(?P<profile>\d+g\.\d+gb)(?:\+[\w.]+)*"
)


@dataclass(frozen=True, slots=True)
class Peaks:
    """A card's peak rates by its vendor's data sheet: ``operations`` a second by type, ``bandwidth`` of its memory in
    bytes a second. A slice has its share of both.
    """

    operations: tuple[tuple[str, float], ...]
    bandwidth: float


@dataclass(frozen=True, slots=True)
class Card:
    """One accelerator card. Its memory is the driver's figure, in bytes. ``peaks`` are None if they are not known.

    ``cpu_architecture`` is that of its nodes as `uname -m` names it; None if the card comes with different ones.
    ``is_slice`` says that it is a part of a card in MIG mode, of which CUDA shows a process at most one.
    """

    id: str
    name: str
    memory_bytes: int
    compute_capability: str | None
    bf16: bool
    fp16: bool
    tf32: bool
    fp8: bool
    peaks: Peaks | None = None
    cpu_architecture: str | None = None
    is_slice: bool = False


@cache
def _read(name: str) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loaded: dict[str, Any] = yaml.load(resources.read("facts", name), Loader=loader)
    return loaded


def _catalogue() -> dict[str, Any]:
    return _read("cards.yaml")


def _slices() -> dict[str, Any]:
    """Return the slices of each card, by its id."""
    return _read("slices.yaml")


def card_names() -> list[str]:
    """The ids of all whole cards of the catalogue."""
    return list(_catalogue()["cards"])


def find_card(text: str) -> Card | tuple[str, ...]:
    """Return the card of a spelling, or the ids of possible cards if it is ambiguous (empty if it is unknown).

    A slice is spelled as its card and its profile, such as `h100-3g.40gb`.
    """
    wanted = _plain(text)
    found = _SLICE.fullmatch(wanted)
    return _slice(found) if found else _whole(wanted)


def _whole(wanted: str) -> Card | tuple[str, ...]:
    """Return the whole card of a plain spelling, as `find_card`."""
    catalogue = _catalogue()
    for identifier, entry in catalogue["cards"].items():
        if wanted == identifier or wanted in entry["aliases"]:
            return Card(
                identifier,
                entry["name"],
                entry["memory_mib"] * MIB,
                entry["compute_capability"],
                **{kind: entry[kind] for kind in ("bf16", "fp16", "tf32", "fp8")},
                peaks=_peaks(entry),
                cpu_architecture=entry.get("cpu_architecture"),
            )
    return tuple(catalogue["ambiguous"].get(wanted, ()))


def _plain(text: str) -> str:
    return re.sub(r"[\s_]+", "-", text.strip().lower())


def _peaks(entry: dict[str, Any]) -> Peaks:
    rates = tuple((kind, 1e12 * rate) for kind, rate in entry["tflops"].items())
    return Peaks(rates, 1e9 * entry["bandwidth_gb_s"])


def _slice(found: re.Match[str]) -> Card | tuple[str, ...]:
    """Return the slice of a card and a profile, or the ids of those that it could be."""
    profile, whole = found["profile"], _whole(found["card"])
    names = (whole.id,) if isinstance(whole, Card) else whole
    able = [name for name in names if not found["part"] and profile in _slices().get(name, {}).get("profiles", ())]
    cards = [card for name in able if isinstance(card := _whole(name), Card)]
    if len(cards) != 1:
        return tuple(f"{card.id}-{profile}" for card in cards)
    card, of_card = cards[0], _slices()[cards[0].id]
    own, peaks = of_card["profiles"][profile], cards[0].peaks
    assert peaks is not None, "cards of the catalogue have them"
    share, bandwidth = own["multiprocessors"] / of_card["multiprocessors"], float(Fraction(own["bandwidth"]))
    rates = tuple((kind, rate * share) for kind, rate in peaks.operations)
    return replace(
        card,
        id=f"{card.id}-{profile}",
        name=f"{card.name}, MIG {profile}",
        memory_bytes=round(own["gib"] * 1024) * MIB,
        peaks=Peaks(rates, peaks.bandwidth * bandwidth),
        is_slice=True,
    )


def describe_card(name: str, memory_bytes: int, compute_capability: str) -> Card:
    """Return a card that the catalogue lacks. NVIDIA's formats follow from the compute capability (CUDA C++ guide,
    table of arithmetic types): fp16 matrix units from 7.0, bf16 and TF32 from 8.0, FP8 from 8.9."""
    number = tuple(int(part) for part in compute_capability.split("."))
    return Card(
        _plain(name),
        name,
        memory_bytes,
        compute_capability,
        bf16=number >= (8, 0),
        fp16=number >= (7, 0),
        tf32=number >= (8, 0),
        fp8=number >= (8, 9),
        is_slice=_SLICE.fullmatch(_plain(name)) is not None,
    )


_DESCRIBE = "describe it in hardware facts: `gpu_memory_mib` as nvidia-smi gives it, and `compute_capability`"


def resolve_card(text: str, span: Span | None) -> tuple[Card | None, tuple[Diagnostic, ...]]:
    """The card for a spelling in a spec or a facts file. Code: R301."""
    found = find_card(text)
    if isinstance(found, Card):
        return found, ()
    if found:
        return None, (Diagnostic("R301", f"`{text}` could be several cards", span, helps=(f"use {one_of(found)}",)),)
    catalogue = _catalogue()
    spellings = [
        *catalogue["cards"],
        *(alias for entry in catalogue["cards"].values() for alias in entry["aliases"]),
    ]
    wanted = _plain(text)
    if sliced := _SLICE.fullmatch(wanted):
        note = "a slice of a card (MIG) has less memory and fewer cores than the card: it is a device of its own"
        alike = [
            f"{name}-{sliced['profile']}" for name, one in _slices().items() if sliced["profile"] in one["profiles"]
        ]
        helps = (*((f"slices with that profile: {', '.join(alike)}",) if alike else ()), _DESCRIBE)
        return None, (Diagnostic("R301", f"the catalogue has no card `{text}`", span, (note,), helps),)
    # Another number is another card, not a typing error: the name of a larger card does not help with a smaller one.
    alike = [name for name in spellings if len(wanted) > 3 and _numbers(name) == _numbers(wanted)]
    same_model = [name for name in card_names() if name.partition("-")[0] == wanted.partition("-")[0]]
    named = "cards: " + ", ".join(same_model or card_names())
    helps = did_you_mean(wanted, alike) or (named, f"or {_DESCRIBE}")
    return None, (Diagnostic("R301", f"the catalogue has no card `{text}`", span, helps=helps),)


def _numbers(name: str) -> list[str]:
    return re.findall(r"\d+", name)


def one_of(names: Sequence[str]) -> str:
    """Names in backticks, with "or" before the last."""
    return either([f"`{name}`" for name in names])
