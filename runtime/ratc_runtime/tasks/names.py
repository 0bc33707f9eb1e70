"""The names of classes, if data sets have some of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ratc_runtime.errors import RuntimeFinding


def named_alike(names: list[str], unnamed: list[str], datasets: Mapping[str, Any]) -> list[str]:
    """Return the names that the data sets' `class_names` give, or `names`; raise R539 if they differ.

    `names` are the lock's; if they are `unnamed`, nobody gave some.
    """
    given = {split: list(data.class_names) for split, data in datasets.items() if hasattr(data, "class_names")}
    if names != unnamed:
        given = {"the lock": names, **given}
    first = next(iter(given.values()), names)
    for split, found in given.items():
        if found != first:
            raise RuntimeFinding(
                "R539",
                f"the classes of {split} are not those of {next(iter(given))}",
                f"{', '.join(found[:20])}; {', '.join(first[:20])}",
                "give every split the same classes in the same order; if `data.class_names` is given, it names them in"
                " that order",
            )
    return first if len(first) == len(names) else names
