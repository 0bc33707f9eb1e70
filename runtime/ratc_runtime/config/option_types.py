"""Types of the numbers in command lines of the runtime: each raises ArgumentTypeError, from which argparse words its
message.
"""

from __future__ import annotations

import argparse
import math


def count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"`{text}` is not a whole number above 0")
    return int(text)


def rate(text: str) -> float:
    """A finite number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"`{text}` is not a number above 0")
    return value


def share(text: str) -> float:
    """A number from 0 to below 1: a share that leaves something."""
    value = _number(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"`{text}` is not a number from 0 to below 1")
    return value


def threshold(text: str) -> float:
    """A number between 0 and 1."""
    value = _number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"`{text}` is not a number between 0 and 1")
    return value


def _number(text: str) -> float:
    """NaN, which lies in no range, for a text that is not a number."""
    try:
        return float(text)
    except ValueError:
        return math.nan
