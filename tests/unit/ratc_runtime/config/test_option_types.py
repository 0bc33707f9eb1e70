"""Ranges of numbers on the command line, tested at their ends."""

import argparse

import pytest
from ratc_runtime.config import option_types


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (option_types.count, ["1", "64"], ["0", "-1", "1.5", "", "x"]),
        (option_types.rate, ["1e-9", "3"], ["0", "-1", "inf", "nan", "x"]),
        (option_types.share, ["0", "0.5"], ["1", "-0.1", "nan", "x"]),
        (option_types.threshold, ["0.5"], ["0", "1", "nan", "x"]),
    ],
)
def test_a_number_out_of_its_range_is_refused(kind, good, bad):
    assert [kind(text) for text in good] == [float(text) for text in good]
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError, match=f"`{text}` is not a"):
            kind(text)
