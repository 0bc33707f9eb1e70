"""The time of a step over several processes, its interval, and the hours, money and energy of a run of such steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ratc.timing.roofline import MEASURED_ON, StepTime, spread
from ratc.units import counted, duration

#: The factor around a step that was measured on its own card: nearby steps of one run differ by as much.
MEASURED_SPREAD = 1.1
#: Seconds that ratc's loop adds to a step, and the shortest step that was measured with it, of a small model whose
#: kernels wait for Python: 5.96 ms, 4.54 of them without ratc (`benchmarks/overhead.py --device cuda`, one H200).
LOOP_S, SHORTEST_S = 1.42e-3, 5.96e-3
#: Bytes of a gradient that DDP sums over the processes: it keeps gradients in fp32.
DDP_BYTES = 4


@dataclass(frozen=True, slots=True)
class Links:
    """Bytes a second between the GPUs of a node, and from one node to the others; None if the facts do not say."""

    within: float | None = None
    between: float | None = None

    def slowest(self, nodes: int) -> float | None:
        """The link that a ring over all processes waits for."""
        return self.between if nodes > 1 else self.within


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds of an optimizer step of ``samples`` on ``world_size`` GPUs, with its interval; ``why`` is the reason of
    the interval. ``unknown`` names the part of a step that is not counted, and ``unknown_why`` says the reason.
    """

    seconds: float
    low: float
    high: float
    samples: int
    world_size: int
    why: str
    how: str = "predicted"
    unknown: str = ""
    unknown_why: str = ""
    #: Seconds by class of kernel, if they are predicted.
    by_class: Mapping[str, float] = field(default_factory=dict)
    #: Seconds of the step in which it waits for its samples, which ``seconds`` includes; None if they are not counted.
    waits: float | None = None

    @property
    def samples_per_second(self) -> float:
        """Samples a second over all processes."""
        return self.samples / self.seconds

    def with_loading(self, rate: float, workers: int) -> Prediction:
        """The step if a loader process delivers ``rate`` samples a second and each of the ``world_size`` processes has
        so many of them, on cores of their own. They load while the GPU computes; without any (0), a process loads its
        samples itself, and computes after that.
        """
        loading = self.samples / self.world_size / (rate * max(1, workers))

        def whole(seconds: float) -> float:
            return max(seconds, loading) if workers else seconds + loading

        waits = whole(self.seconds) - self.seconds
        return replace(self, seconds=whole(self.seconds), low=whole(self.low), high=whole(self.high), waits=waits)

    def sentence(self) -> str:
        """The prediction in one line for people."""
        missing = "".join(f", {words}" for words in (self.unknown, self.unknown_why, self._waits()) if words)
        return (
            f"{self.how}: a step of {counted(self.samples, 'sample')} takes {span_text(self.seconds)} "
            f"({span_text(self.low)} to {span_text(self.high)}, {self.why}), {self._rate()}{missing}"
        )

    def short(self) -> str:
        """The step in a few words, to compare it with another."""
        missing = f", {self.unknown}" if self.unknown else ""
        return f"{span_text(self.seconds)} {self.how}, {self._rate()}{missing}"

    def _waits(self) -> str:
        return f"for {span_text(self.waits)} of it the GPUs wait for samples" if self.waits else ""

    def _rate(self) -> str:
        rate = self.samples_per_second
        return f"{rate:{',.0f' if rate >= 100 else '.3g'}} samples/s"


def sent_bytes(strategy: str, zero_stage: int, trainable: int, world_size: int, accumulation: int) -> float:
    """Bytes that a process sends in an optimizer step, by rings, which send (N - 1) / N of a buffer for each pass.

    DDP reduces fp32 gradients once (reduce-scatter and all-gather). ZeRO 1 and 2 reduce 16-bit gradients and gather
    16-bit weights; stage 2 reduces in every micro-batch. ZeRO 3 gathers the weights in forward and in backward.
    """
    share = (world_size - 1) / world_size
    if strategy != "deepspeed":
        return 2 * share * DDP_BYTES * trainable
    passes = {0: 2, 1: 2, 2: accumulation + 1, 3: 3 * accumulation}[zero_stage]
    return passes * share * 2 * trainable


def sent_by_shards(
    shard: str, shards: int, trainable: int, world_size: int, accumulation: int, gathered_bytes: int
) -> float:
    """Bytes that a process sends in an optimizer step with FSDP2, by rings.

    Weights are gathered for forward and, unless `shard` is `grads`, for backward again, at ``gathered_bytes`` an
    element, and fp32 gradients are reduced, all in every micro-batch. Groups of ``shards`` processes then add their
    shards of gradients up.
    """
    gathers, groups = (1 if shard == "grads" else 2), world_size // shards
    within = (gathers * gathered_bytes + DDP_BYTES) * trainable * (shards - 1) / shards
    between = 2 * DDP_BYTES * trainable / shards * (groups - 1) / groups
    return accumulation * (within + between)


def predicted(
    step: StepTime, card: str, samples: int, world_size: int, nodes: int, sent: float, links: Links
) -> Prediction:
    """The step of one process, spread over several, with the time of the loop. Communication hides behind backward as
    far as it can; the upper end of the interval hides none of it, and is no shorter than the shortest measured step.
    """
    factor = spread(card)
    rate = links.slowest(nodes) if world_size > 1 else None
    sending = sent / rate if rate else 0.0
    waiting = max(0.0, sending - step.backward_s)
    why = "90 % of the steps measured on this card" if card in MEASURED_ON else "no step was measured on this card"
    silent = world_size > 1 and rate is None
    unknown = ("without communication", "as the facts give no bandwidth") if silent else ("", "")
    return Prediction(
        step.seconds + waiting + LOOP_S,
        step.seconds / factor + LOOP_S,
        step.seconds * factor + sending + SHORTEST_S,
        samples,
        world_size,
        why,
        "predicted",
        *unknown,
        by_class=step.by_class,
    )


def measured(seconds: float, samples: int, world_size: int, source: str, alone: bool = True) -> Prediction:
    """The step as it was measured, by one process ``alone``, or by all of them together in a run, which waits for its
    samples, too.
    """
    unknown = "without communication" if alone and world_size > 1 else ""
    low, high = seconds / MEASURED_SPREAD, seconds * MEASURED_SPREAD
    waits = None if alone else 0.0
    return Prediction(seconds, low, high, samples, world_size, source, "measured", unknown, waits=waits)


@dataclass(frozen=True, slots=True)
class Prices:
    """What a GPU costs in an hour, in a currency, and the watts it takes; None if the facts do not say."""

    per_gpu_hour: float | None = None
    currency: str | None = None
    watts: float | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """Optimizer steps of a whole training, by their prediction: seconds of an epoch and of all."""

    step: Prediction
    steps_per_epoch: int
    epochs: int

    @property
    def epoch_s(self) -> float:
        """Seconds of the training steps of an epoch."""
        return self.steps_per_epoch * self.step.seconds

    @property
    def seconds(self) -> float:
        """Seconds of all training steps."""
        return self.epochs * self.epoch_s

    def interval(self) -> tuple[float, float]:
        """The ends of the interval around all of the steps, in seconds."""
        steps = self.epochs * self.steps_per_epoch
        return steps * self.step.low, steps * self.step.high

    def gpu_hours(self) -> float:
        """Hours of GPUs for all steps."""
        return self.seconds / 3600 * self.step.world_size

    def lines(self, prices: Prices) -> list[str]:
        """The run in lines for people: times, GPU hours, and money and energy if their prices are known."""
        low, high = self.interval()
        hours = self.gpu_hours()
        left_out = "evaluation and checkpoints"
        if self.step.waits is None:
            left_out = "evaluation, checkpoints and waits for data"
        told = [
            f"an epoch of {self.steps_per_epoch:,} steps takes {span_text(self.epoch_s)}, all {self.epochs} take "
            f"{span_text(self.seconds)} ({span_text(low)} to {span_text(high)}), without {left_out}",
            f"{hours:,.3g} GPU hours",
        ]
        if prices.per_gpu_hour is not None:
            told.append(f"{hours * prices.per_gpu_hour:,.2f} {prices.currency} at {prices.per_gpu_hour:g} a GPU hour")
        if prices.watts is not None:
            told.append(f"at most {hours * prices.watts / 1000:,.3g} kWh: {prices.watts:g} W for each GPU")
        return told

    def restarts(self, walltime_s: int, stop_before_s: int) -> int:
        """How often a job of this walltime has to be requeued for all steps; it saves ``stop_before_s`` before its
        end.
        """
        usable = max(1, walltime_s - stop_before_s)
        return max(0, -(-int(self.seconds) // usable) - 1)


def span_text(seconds: float) -> str:
    """A time for people: three digits of milliseconds or seconds, and from two minutes on as ``units.duration`` has it,
    to the minute from two hours on.
    """
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    grain = 60 if seconds >= 7200 else 1
    return duration(round(seconds / grain) * grain)
