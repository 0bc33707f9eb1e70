"""Measured steps: the memory of another micro-batch, computed from the measured points."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ratc.memory import measured
from ratc.memory.measured import Point
from ratc.memory.terms import Device
from ratc.memory.zero import Strategy
from tests.helpers.measurements import CONDITIONS, GIB, measurement

CARD = Device("h100", 80 * GIB, "9.0")


# The arithmetic.


@pytest.mark.parametrize(
    ("points", "micro", "gib"),
    [
        (((2, 5), (4, 9)), 1, 3),
        (((2, 5), (4, 9)), 2, 5),
        (((2, 5), (4, 9)), 3, 7),
        (((2, 5), (4, 9)), 32, 65),
        (((2, 9), (4, 9)), 64, 9),
        (((2, 9), (4, 8)), 8, 9),  # falling is noise, not a promise
        (((1, 70),), 1, 70),
        (((1, 70),), 2, None),
        (((2, 70),), 1, 70),
    ],
)
def test_measured_bytes_follow_the_line_through_the_points(points, micro, gib):
    found = measured.at(measurement(points), micro, "peak_reserved_bytes")
    assert found == (None if gib is None else gib * GIB)


def test_interpolated_bytes_are_rounded_up():
    points = (Point(2, 0, 10, 0, 1.0), Point(5, 0, 11, 0, 1.0))
    assert measured.at(replace(measurement(), points=points), 3, "peak_reserved_bytes") == 11


def test_largest_divisor_within_the_margin_is_chosen():
    # 1 + 2 GiB a sample; 80 less 1 kept and 1 outside leaves 78, less 5 % 74.1: 36 samples.
    choice = measured.choose(measurement(), 48, CARD, Strategy())
    assert choice.estimate.micro_batch == 24
    assert choice.accumulation == 2
    assert choice.next_larger.micro_batch == 48
    assert choice.estimate.cap_bytes == int(78 * GIB * 0.95)
    assert choice.estimate.predicted_bytes == (1 + 48 + 2) * GIB
    assert measured.choose(measurement(), 36, CARD, Strategy()).estimate.micro_batch == 36
    assert measured.choose(measurement(), 37, CARD, Strategy()).estimate.micro_batch == 1
    assert measured.choose(measurement(), 37, replace(CARD, memory_bytes=4 * GIB), Strategy()) is None


def test_several_processes_add_gradient_buckets_and_nccl_channels():
    one = measured.estimate(measurement(), 4, CARD, Strategy())
    several = measured.estimate(measurement(), 4, CARD, Strategy(world_size=4))
    assert several.peak_reserved_bytes - one.peak_reserved_bytes == 2 * GIB
    assert several.cap_bytes < one.cap_bytes
    assert "NCCL channels" in {term.name for term in several.outside}


def test_single_measured_point_gives_no_other_micro_batch():
    choice = measured.choose(measurement(((2, 40),)), 8, CARD, Strategy())
    assert choice.estimate.micro_batch == 2
    assert choice.next_larger is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, []),
        ({"precision": "fp32"}, ["precision bf16, the step has fp32"]),
        ({"image_size": (128, 192)}, ["image size 256 x 256, the step has 128 x 192"]),
        ({"card": "a100-80"}, ["card h100, the step has a100-80"]),
        ({"activation_checkpointing": True}, ["activation checkpointing false, the step has true"]),
        ({"engine": "deepspeed"}, ["engine torch, the step has deepspeed"]),
        (
            {"step": "sha256:1"},
            ["it is of another model, code, loss or optimizer, or of other channels or classes"],
        ),
    ],
)
def test_differing_conditions_of_a_measurement_are_listed(change, said):
    assert measured.differences(CONDITIONS, replace(CONDITIONS, **change)) == said
