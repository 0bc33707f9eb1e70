"""Traces made by hand for the tests: a model of equal layers, whose every byte can be counted on paper."""

from dataclasses import dataclass

from ratc.memory.trace import KINDS, Trace, parse

PHASES = ["build", "input", "forward", "loss", "backward", "clip", "optimizer", "zero_grad"]
MIB = 1 << 20


class Maker:
    """Writes events as the runtime does."""

    def __init__(self) -> None:
        self.events: list[list[float]] = []
        self.blocks = 0
        self.steps: list[int] = []

    def allocate(self, kind: str, phase: str, module: int = 0, fixed: float = 0, growth: float = 0) -> int:
        self.events.append([self.blocks, fixed, growth, PHASES.index(phase), module, KINDS.index(kind)])
        self.blocks += 1
        return self.blocks - 1

    def free(self, *blocks: int) -> None:
        self.events += [[block] for block in blocks]


def layers(
    count: int = 4,
    weight: int = 4 * MIB,
    activation: float = 2 * MIB,
    temporary: float = 3 * MIB,
    optimizer: bool = True,
    width: int = 4,
    accumulating: bool = False,
) -> dict:
    """A step of ``count`` layers. ``weight`` is bytes a layer, ``activation`` and ``temporary`` bytes a sample.

    Without ``optimizer`` it is DeepSpeed's: each gradient is freed as soon as it is made, in its hook.
    """
    make = Maker()
    for layer in range(count):
        make.allocate("parameter", "build", layer + 1, weight)
    gradients: dict[int, int] = {}
    for step in range(2):
        make.steps.append(len(make.events))
        for micro in range(2 if accumulating else 1):
            image = make.allocate("input", "input", 0, 0, 0.5 * MIB)
            kept = []
            for layer in range(count):
                working = make.allocate("temporary", "forward", layer + 1, 0, temporary)
                kept.append(make.allocate("activation", "forward", layer + 1, 0, activation))
                make.free(working)
            for layer in reversed(range(count)):
                working = make.allocate("temporary", "backward", layer + 1, 0, temporary)
                if not optimizer:
                    make.free(make.allocate("gradient", "backward", layer + 1, weight))
                elif micro:
                    make.free(make.allocate("temporary", "backward", layer + 1, weight))
                else:
                    gradients[layer] = make.allocate("gradient", "backward", layer + 1, weight)
                make.free(working, kept.pop())
            make.free(image)
        if optimizer:
            for layer in range(count):
                if step == 0:
                    make.allocate("optimizer", "optimizer", layer + 1, weight)
                    make.allocate("optimizer", "optimizer", layer + 1, weight)
                make.free(make.allocate("temporary", "optimizer", layer + 1, weight))
        make.free(*gradients.values())
    elements = count * weight // width
    return {
        "trace_version": 4,
        "torch": "2.13.0",
        "request": {},
        "batch_sizes": [2, 4],
        "parameters": {
            "count": elements,
            "trainable": elements,
            "bytes": count * weight,
            "largest_module_bytes": weight,
        },
        "modules": ["", *(f"layers.{layer}" for layer in range(count))],
        "phases": PHASES,
        "kinds": list(KINDS),
        "steps": make.steps,
        "events": make.events,
        "scratch": [],
        "optional": [],
        "estimates": [],
        "work": [],
    }


def trace(**what) -> Trace:
    """The same, parsed."""
    return parse(layers(**what))


@dataclass(frozen=True, slots=True)
class Pair:
    """The traces of a variant for a library: of one micro-batch and of several. Both hold for one sample, too."""

    single: Trace
    accumulating: Trace

    def trace(self, accumulating: bool, one_sample: bool) -> Trace:
        """One of both."""
        return self.accumulating if accumulating else self.single


def pair(**what) -> Pair:
    """Both traces of the same layers."""
    return Pair(trace(**what), trace(**what, accumulating=True))
