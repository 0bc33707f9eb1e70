"""The time of a step over several processes, its interval, and the hours, money and energy of a run of such steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ratc.memory.zero import MAX_LIVE
from ratc.timing.roofline import MEASURED_ON, StepTime, spread
from ratc.units import counted, duration

#: The factor around a step that was measured on its own card, for the differences between steps of one run. Chosen, not
#: measured.
MEASURED_SPREAD = 1.1
#: Seconds that ratc's loop adds to a step, and the shortest step that was measured with it, of a small model whose
#: kernels wait for Python: 5.96 ms, 4.54 of them without ratc (`benchmarks/overhead.py --device cuda`, one H200).
LOOP_S, SHORTEST_S = 1.42e-3, 5.96e-3
#: Bytes of a gradient that DDP sums over the processes: it keeps gradients in fp32.
DDP_BYTES = 4


@dataclass(frozen=True, slots=True)
class Links:
    """Bandwidths in bytes a second: between the GPUs of a node, and between nodes; None if the facts have none."""

    within: float | None = None
    between: float | None = None

    def seconds(self, sent: Sent) -> float | None:
        """Return the time to send the bytes of a step, one after the other; None if a bandwidth is missing."""
        told = ((sent.within, self.within), (sent.between, self.between))
        if any(count and rate is None for count, rate in told):
            return None
        return sum(count / rate for count, rate in told if count and rate)


@dataclass(frozen=True, slots=True)
class Sent:
    """Bytes of an optimizer step: those that a process sends to others of its node, in rings that stay there, and those
    that a node sends to other nodes.
    """

    within: float = 0.0
    between: float = 0.0


@dataclass(frozen=True, slots=True)
class Prediction:
    """The time of an optimizer step of ``samples`` on ``world_size`` GPUs, in seconds, with its interval.

    ``low`` and ``high`` are the ends of the interval, ``why`` is its reason; ``how`` is "predicted" or "measured".
    ``unknown`` names the part of a step that is not counted, ``unknown_why`` gives the reason.
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
        """Return the step with its waits for samples. A loader process delivers ``rate`` samples a second, and each of
        the ``world_size`` processes has ``workers`` of them, each on a separate core.

        Loader processes load while the GPU computes. Without any (0), a process loads its samples itself, and computes
        after that.
        """
        loading = self.samples / self.world_size / (rate * max(1, workers))

        def whole(seconds: float) -> float:
            return max(seconds, loading) if workers else seconds + loading

        waits = whole(self.seconds) - self.seconds
        return replace(self, seconds=whole(self.seconds), low=whole(self.low), high=whole(self.high), waits=waits)

    def sentence(self) -> str:
        """Return the prediction as one line of text."""
        missing = "".join(f", {words}" for words in (self.unknown, self.unknown_why, self._waits()) if words)
        return (
            f"{self.how}: a step of {counted(self.samples, 'sample')} takes {span_text(self.seconds)} "
            f"({span_text(self.low)} to {span_text(self.high)}, {self.why}), {self._rate()}{missing}"
        )

    def short(self) -> str:
        """Return the step's time and rate in a few words, for a comparison of steps."""
        missing = f", {self.unknown}" if self.unknown else ""
        return f"{span_text(self.seconds)} {self.how}, {self._rate()}{missing}"

    def _waits(self) -> str:
        return f"for {span_text(self.waits)} of it the GPUs wait for samples" if self.waits else ""

    def _rate(self) -> str:
        rate = self.samples_per_second
        return f"{rate:{',.0f' if rate >= 100 else '.3g'}} samples/s"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Elements of a model's weights: the trained ones, and all of them."""

    trainable: int
    total: int


def sent_by_ddp(sizes: Sizes, world_size: int) -> float:
    """Return the bytes that a process sends in an optimizer step with DDP, by rings: (N - 1) / N of a buffer in each
    pass.

    N is ``world_size``. Gradients are summed once, in fp32: reduce-scatter and all-gather.
    """
    return 2 * (world_size - 1) / world_size * DDP_BYTES * sizes.trainable


def sent_by_zero(stage: int, sizes: Sizes, world_size: int, accumulation: int, width: int) -> float:
    """Return the bytes that a process sends in an optimizer step with a ZeRO stage, by rings as `sent_by_ddp`.

    ``accumulation`` is in micro-batches; ``width`` are the bytes of an element, in which weights and gradients travel.
    Stages 0 to 2 sum gradients with all-reduce, in two passes; stage 2 in every micro-batch. Stages 1 and 2 gather the
    updated weights. Stage 3 gathers all weights for each micro-batch and scatters the sums of gradients; weights of
    models above `stage3_max_live_parameters` are gathered for backward again. Counted with DeepSpeed 0.19.8 over gloo,
    in processes whose collectives were wrapped.
    """
    share = (world_size - 1) / world_size
    reduced = {0: 2, 1: 2, 2: 2 * accumulation, 3: accumulation}[stage] * sizes.trainable
    again = 2 if sizes.total > MAX_LIVE else 1
    gathered = {0: 0, 1: sizes.trainable, 2: sizes.trainable, 3: again * accumulation * sizes.total}[stage]
    return share * width * (reduced + gathered)


def sent_by_shards(
    shard: str, shards: int, sizes: Sizes, world_size: int, accumulation: int, gathered_bytes: int
) -> tuple[float, float]:
    """Return the bytes that a process sends in an optimizer step with FSDP2, by rings: within its group, and between
    the groups.

    ``accumulation`` is in micro-batches. In every micro-batch all weights are gathered for forward and, unless `shard`
    is `grads`, again for backward, at ``gathered_bytes`` an element; fp32 gradients are reduced; and the groups of
    ``shards`` processes add up their shards of gradients. Of frozen weights those that no gradient passes are gathered
    once only, which is not counted.
    """
    gathers, groups = (1 if shard == "grads" else 2), world_size // shards
    moved = gathers * gathered_bytes * sizes.total + DDP_BYTES * sizes.trainable
    within = moved * (shards - 1) / shards
    between = 2 * DDP_BYTES * sizes.trainable / shards * (groups - 1) / groups
    return accumulation * within, accumulation * between


def predicted(step: StepTime, card: str, samples: int, world_size: int, sent: Sent, links: Links) -> Prediction:
    """Return the prediction of a step on ``world_size`` GPUs, with the time of ratc's loop.

    ``step`` is that of one process, ``samples`` are those of all.
    Communication overlaps with backward as far as possible. The upper end of the interval assumes no overlap, and adds
    the shortest measured step.
    """
    factor = spread(card)
    known = links.seconds(sent)
    sending = known or 0.0
    waiting = max(0.0, sending - step.backward_s)
    why = "90 % of the steps measured on this card" if card in MEASURED_ON else "no step was measured on this card"
    silent = world_size > 1 and known is None
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
    """Return the prediction for a measured step of ``seconds``: by one process if ``alone``, else by all processes of a
    run, whose time includes its waits for samples. ``samples`` are those of all processes.
    """
    unknown = "without communication" if alone and world_size > 1 else ""
    low, high = seconds / MEASURED_SPREAD, seconds * MEASURED_SPREAD
    waits = None if alone else 0.0
    return Prediction(seconds, low, high, samples, world_size, source, "measured", unknown, waits=waits)


@dataclass(frozen=True, slots=True)
class Prices:
    """The price of a GPU hour in a currency, and the power of a GPU in watts; None if the facts have none."""

    per_gpu_hour: float | None = None
    currency: str | None = None
    watts: float | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """The optimizer steps of a whole training, with the prediction of one of them."""

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
        """Return lines of text: the times, the GPU hours, and the cost and the energy (kWh) if the facts have them."""
        low, high = self.interval()
        hours = self.gpu_hours()
        left_out = "evaluation and checkpoints"
        if self.step.waits is None:
            left_out = "evaluation, checkpoints and waits for data"
        told = [
            f"an epoch of {self.steps_per_epoch:,} steps takes {span_text(self.epoch_s)}, all {self.epochs} take "
            f"{span_text(self.seconds)} ({span_text(low)} to {span_text(high)}), without {left_out}",
            f"{hours:,.3g} GPU hours" if hours >= 0.01 else "less than 0.01 GPU hours",
        ]
        if prices.per_gpu_hour is not None:
            told.append(f"{hours * prices.per_gpu_hour:,.2f} {prices.currency} at {prices.per_gpu_hour:g} a GPU hour")
        if prices.watts is not None:
            told.append(f"at most {hours * prices.watts / 1000:,.3g} kWh: {prices.watts:g} W for each GPU")
        return told

    def restarts(self, walltime_s: int, stop_before_s: int) -> int:
        """Return how often a job with a walltime of ``walltime_s`` seconds has to be requeued to finish all steps. It
        stops ``stop_before_s`` seconds before its end.
        """
        usable = max(1, walltime_s - stop_before_s)
        return max(0, -(-int(self.seconds) // usable) - 1)


def span_text(seconds: float) -> str:
    """Return a time as text: below two minutes three digits of milliseconds or seconds, else as `units.duration` writes
    it, and from two hours on rounded to the minute.
    """
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    grain = 60 if seconds >= 7200 else 1
    return duration(round(seconds / grain) * grain)
