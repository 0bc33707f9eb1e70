"""Sizes in readable units: the largest unit that does not show 0.0."""

import pytest
from ratc_runtime.output import sizes

from ratc.units import size_text, two_sizes

GIB = 1 << 30


@pytest.mark.parametrize(
    ("size", "coarse", "fine"),
    [
        (0, "0 B", "0 B"),
        (90, "90 B", "90 B"),
        (1000, "1.0 KiB", "1.0 KiB"),
        (30 << 10, "30 KiB", "30 KiB"),
        (896 * 1024 * 4, "3.5 MiB", "3.5 MiB"),
        (55 << 20, "55 MiB", "55 MiB"),
        (GIB // 10, "0.1 GiB", "0.10 GiB"),
        (int(1.26 * GIB), "1.3 GiB", "1.26 GiB"),
        (80 * GIB, "80.0 GiB", "80.0 GiB"),
    ],
)
def test_size_is_shown_in_the_largest_unit_that_does_not_show_0(size, coarse, fine):
    assert size_text(size) == coarse
    assert size_text(size, fine=True) == fine
    if size < 10 * GIB:
        assert sizes.size_text(size) == fine


def test_two_sizes_to_compare_look_different():
    assert two_sizes(3 << 30, 2 << 30) == ("3.0 GiB", "2.0 GiB")
    assert two_sizes(2101 << 20, 2100 << 20) == ("2,101.0 MiB", "2,100.0 MiB")
    assert two_sizes(2 << 30, 2 << 30) == ("2.0 GiB", "2.0 GiB")
