"""Steps of several processes, their interval, and the time and cost of a training, compared with counts by hand."""

from dataclasses import replace

import pytest

from ratc.timing import run
from ratc.timing.roofline import SPREAD, SPREAD_ELSEWHERE, StepTime
from ratc.timing.run import Links, Prices, Run, Sent, Sizes

STEP = StepTime(seconds=1.0, backward_s=0.6, by_class={}, operations=0, bytes_=0)


@pytest.fixture(autouse=True)
def without_loop_overhead(monkeypatch):
    """Times without that of the loop."""
    monkeypatch.setattr(run, "LOOP_S", 0.0)
    monkeypatch.setattr(run, "SHORTEST_S", 0.0)


SIZES = Sizes(trainable=1000, total=1500)


def test_ring_traffic_matches_the_collectives_of_each_strategy():
    """Over 4 processes: 3/4 of a buffer for each pass."""
    assert run.sent_by_ddp(SIZES, 4) == 2 * 0.75 * 4000
    assert run.sent_by_ddp(SIZES, 1) == 0
    sent = run.sent_by_zero
    assert sent(0, SIZES, 4, 3, 2) == 2 * 0.75 * 2000
    assert sent(1, SIZES, 4, 3, 2) == 3 * 0.75 * 2000  # an all-reduce is two passes, and one gather
    assert sent(1, SIZES, 4, 3, 4) == 3 * 0.75 * 4000
    assert sent(2, SIZES, 4, 3, 2) == 7 * 0.75 * 2000  # three all-reduces, one gather
    assert sent(3, SIZES, 4, 3, 2) == 3 * 0.75 * (2000 + 3000)  # frozen weights are gathered, too
    large = Sizes(2 * 10**9, 2 * 10**9)
    assert sent(3, large, 4, 1, 2) == 3 * 0.75 * 4 * 10**9  # gathered for backward again


@pytest.mark.parametrize(("shard", "within"), [("full", 2 * 4 * 1500 + 4 * 1000), ("grads", 4 * 1500 + 4 * 1000)])
def test_shards_of_frozen_weights_are_gathered_and_not_reduced(shard, within):
    assert run.sent_by_shards(shard, 4, SIZES, 4, 1, 4) == (0.75 * within, 0)


def test_communication_overlaps_with_backward_except_in_the_upper_bound():
    links = Links(within=100.0, between=10.0)
    hidden = run.predicted(STEP, "h200", 64, 8, Sent(within=50.0), links)
    assert (hidden.seconds, hidden.low, hidden.high) == (1.0, 1 / SPREAD, SPREAD + 0.5)
    # Between two nodes the ring waits for the network: 5 s, of which backward hides 0.6.
    shown = run.predicted(STEP, "h200", 64, 16, Sent(between=50.0), links)
    assert (shown.seconds, shown.high) == (pytest.approx(5.4), SPREAD + 5)
    assert shown.samples_per_second == pytest.approx(64 / 5.4)


def test_prediction_names_unmeasured_cards_and_missing_bandwidth():
    alone = run.predicted(STEP, "a100-80", 8, 1, Sent(), Links())
    assert alone.high == SPREAD_ELSEWHERE
    assert alone.sentence() == (
        "predicted: a step of 8 samples takes 1 s (500 ms to 2 s, no step was measured on this card), 8 samples/s"
    )
    several = run.predicted(STEP, "h200", 8, 2, Sent(within=100.0), Links())
    assert several.seconds == 1.0
    assert several.sentence().endswith("samples/s, without communication, as the facts give no bandwidth")
    measured = run.measured(2.0, 8, 1, "measured on 2026-11-27 with torch 2.11")
    assert measured.sentence().startswith("measured: a step of 8 samples takes 2 s (1.82 s to 2.2 s, measured on")


def test_step_waits_for_slow_data_loading():
    step = run.predicted(STEP, "h200", 64, 8, Sent(), Links(within=1.0))  # 8 samples a process, in 1 s
    kept_up = step.with_loading(rate=2.0, workers=4)
    assert (kept_up.seconds, kept_up.low, kept_up.high, kept_up.waits) == (1.0, 1.0, SPREAD, 0.0)
    assert kept_up.sentence().endswith("64 samples/s")
    slow = step.with_loading(rate=1.0, workers=2)
    assert (slow.seconds, slow.low, slow.high, slow.waits) == (4.0, 4.0, max(SPREAD, 4.0), 3.0)
    assert slow.sentence().endswith("16 samples/s, for 3 s of it the GPUs wait for samples")
    # Without loader processes a process loads first, and computes then.
    serial = step.with_loading(rate=8.0, workers=0)
    assert (serial.seconds, serial.high, serial.waits) == (2.0, SPREAD + 1, 1.0)
    assert "waits" in Run(step, 900, 16).lines(Prices())[0]
    assert "waits" not in Run(slow, 900, 16).lines(Prices())[0]
    assert run.measured(2.0, 8, 1, "a run", alone=False).waits == 0.0


def test_training_time_and_cost_follow_from_the_step_time():
    step = run.predicted(STEP, "h200", 64, 8, Sent(), Links(within=1.0))
    whole = Run(step, 900, 16)
    assert (whole.epoch_s, whole.seconds, whole.gpu_hours()) == (900, 14_400, 32)
    assert whole.interval() == (pytest.approx(14_400 / SPREAD), pytest.approx(14_400 * SPREAD))
    assert whole.lines(Prices())[1:] == ["32 GPU hours"]
    assert Run(replace(step, seconds=1e-3), 1, 1).lines(Prices())[1:] == ["less than 0.01 GPU hours"]
    told = whole.lines(Prices(2.5, "EUR", 700))
    assert "an epoch of 900 steps takes 15 min, all 16 take 4 h" in told[0]
    assert told[2:] == ["80.00 EUR at 2.5 a GPU hour", "at most 22.4 kWh: 700 W for each GPU"]


@pytest.mark.parametrize(("walltime", "again"), [(14_580, 0), (14_579, 1), (3780, 3), (3779, 4), (100, 14_399)])
def test_number_of_requeues_follows_from_the_walltime(walltime, again):
    """It is told to save 180 s before its end, and 14,400 s of steps are left to make."""
    step = run.predicted(STEP, "h200", 64, 1, Sent(), Links())
    assert Run(step, 14_400, 1).restarts(walltime, 180) == again
    assert Run(replace(step, seconds=0.0001), 1, 1).restarts(100, 180) == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0412, "41.2 ms"), (1.234, "1.23 s"), (119.4, "119 s"), (125, "2 min 5 s"), (7285, "2 h 1 min"), (0, "0 ms")],
)
def test_duration_is_written_in_at_most_two_units(seconds, text):
    assert run.span_text(seconds) == text


def test_short_step_adds_the_overhead_of_the_training_loop(monkeypatch):
    monkeypatch.setattr(run, "LOOP_S", 0.001)
    monkeypatch.setattr(run, "SHORTEST_S", 0.006)
    short = run.predicted(replace(STEP, seconds=0.0001), "h200", 8, 1, Sent(), Links())
    assert short.seconds == pytest.approx(0.0011)
    assert short.low == pytest.approx(0.001 + 0.0001 / SPREAD)
    assert short.high == pytest.approx(0.006 + 0.0001 * SPREAD)


def test_short_text_of_a_step_gives_time_and_speed():
    assert (
        run.predicted(STEP, "h200", 8, 2, Sent(within=100.0), Links()).short()
        == "1 s predicted, 8 samples/s, without communication"
    )
    assert run.measured(2.0, 8, 1, "measured on 2026-11-27").short() == "2 s measured, 4 samples/s"
