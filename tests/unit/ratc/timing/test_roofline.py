"""The roofline: the time of kernels and steps, on made-up cards whose times can be worked out by hand."""

from dataclasses import replace

import pytest

from ratc import facts
from ratc.memory.work import Kernel
from ratc.timing.roofline import FITTED, SPREAD, SPREAD_ELSEWHERE, Rates, launch_seconds, spread, step_time
from tests.helpers import made_traces

#: 1 TFLOPS in bf16, a quarter of that in fp32, 100 GB/s.
RATES = Rates({"bf16": 1e12, "tf32": 5e11, "fp32": 2.5e11}, 1e11)
#: Kernels reach their peaks, and a launch takes no time.
FULL = replace(FITTED, **dict.fromkeys(("half", "tf32", "fp32", "convolution", "attention", "memory"), 1.0), launch_s=0)


def kernel(operator="mm", kind="bf16", regular=True, operations=0.0, bytes_=0.0, phase=2, launches=1):
    """A kernel with operations and bytes for each sample."""
    return Kernel(operator, kind, regular, phase, launches, (0, operations), (0, bytes_))


@pytest.mark.parametrize(
    ("one", "seconds"),
    [
        (kernel(operations=1e12), 2),  # two samples
        (kernel(operations=1e12, kind="fp32"), 8),
        (kernel(operations=1e12, kind="fp64"), 8),  # a rate that is not known is that of fp32
        (kernel(operations=1e12, bytes_=3e11), 6),  # its bytes take longer
        (kernel("add", bytes_=1e11), 2),
        (kernel("add", bytes_=1e11, regular=False), 2),
        (kernel("convolution", operations=1e12, bytes_=1e11), 4),
    ],
)
def test_kernel_takes_the_longer_time_but_a_convolution_their_sum(one, seconds):
    assert launch_seconds(one, 2, RATES, FULL) == pytest.approx(seconds)


def test_unaligned_shapes_and_conversions_slow_a_kernel_down():
    shares = replace(FULL, unaligned=0.5, conversion=0.25, launch_s=0.125)
    assert launch_seconds(kernel(operations=1e12, regular=False), 1, RATES, shares) == 2.125
    image = kernel("convolution", operations=1e12, bytes_=1e11)
    assert launch_seconds(image, 1, RATES, shares) == 2.125
    # Two moves of its elements as if they had 4 bytes, at a quarter of the bandwidth.
    assert launch_seconds(replace(image, regular=False), 1, RATES, shares) == 2.125 + 2 * 2 * 4
    assert launch_seconds(replace(image, regular=False, type="fp32"), 1, RATES, shares) == 4 + 1.125


def test_optimizer_time_counts_once_for_all_micro_batches():
    trace = made_traces.trace()
    forward, backward, optimizer = (trace.phases.index(name) for name in ("forward", "backward", "optimizer"))
    work = (
        kernel(operations=1e12, phase=forward, launches=3),
        kernel(operations=2e12, phase=backward),
        kernel("_fused_adamw_", "fp32", bytes_=1e11, phase=optimizer),
    )
    found = step_time(replace(trace, work=work), 1, 4, RATES, FULL)
    assert found.seconds == pytest.approx(4 * (3 + 2) + 1)
    assert found.backward_s == pytest.approx(8)
    assert found.by_class == {"product": pytest.approx(20), "memory": pytest.approx(1)}
    assert (found.operations, found.bytes_) == (pytest.approx(20e12), pytest.approx(1e11))
    # A trace of two micro-batches has their kernels twice.
    twice = replace(trace, work=work, micro_batches=2)
    assert step_time(twice, 1, 4, RATES, FULL).seconds == pytest.approx(2 * 5 + 1)
    assert step_time(trace, 1, 4, RATES) is None


def test_interval_is_wider_on_unmeasured_cards():
    assert spread("h200") == SPREAD < SPREAD_ELSEWHERE == spread("a100-80")


def test_every_card_has_plausible_peak_rates():
    """Dense rates: 16-bit units are at most 48 times as fast as fp32 without, and tf32 half as fast as 16-bit ones."""
    for name in facts.card_names():
        card = facts.find_card(name)
        rates = dict(card.peaks.operations)
        assert 8e12 < rates["fp32"] <= max(rates.values()) < 3e15, name
        assert 2e11 < card.peaks.bandwidth < 9e12, name
        assert ("bf16" in rates) == card.bf16, name
        assert ("tf32" in rates) == card.tf32, name
        if "tf32" in rates:
            assert rates["bf16"] / rates["tf32"] == pytest.approx(2, rel=0.02), name
