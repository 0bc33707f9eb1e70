"""A micro-batch that passes the rehearsal fits in training: both replayed in a model of PyTorch's allocator.

The order of allocations is what counts, so no GPU is needed. The programs are random models whose layers have sizes of
their own; a workspace of cuBLAS is made by the first product of each thread and stays.
"""

import random
from collections.abc import Iterator

import pytest

from ratc.memory.allocator import Allocator, OutOfMemory

MIB = 1 << 20
WORKSPACE = 32 * MIB


class Model:
    """A model of layers: weights, and per sample an activation and two temporaries each, in bytes."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        self.layers = [
            (draw.randrange(1, 12 * MIB), *(draw.randrange(1, 40 * MIB) for _ in range(3)))
            for _ in range(draw.randrange(4, 12))
        ]


class Card:
    """An allocator at a cap, with blocks by name."""

    def __init__(self, cap: int | None, model: Model) -> None:
        self.allocator, self.model = Allocator(cap), model
        self.blocks: dict[tuple[object, ...], int] = {}
        for number, (weight, *_) in enumerate(model.layers):
            self.take("weight", number, size=weight)

    def take(self, *name: object, size: int) -> None:
        self.blocks[name] = self.allocator.malloc(size)

    def drop(self, *name: object) -> None:
        self.allocator.free(self.blocks.pop(name))

    def product(self, thread: str) -> None:
        """cuBLAS's workspace of a thread."""
        if ("workspace", thread) not in self.blocks:
            self.take("workspace", thread, size=WORKSPACE)

    def state(self) -> None:
        for number, (weight, *_) in enumerate(self.model.layers):
            for moment in (1, 2):
                self.take("state", moment, number, size=weight)

    def passes(self, samples: int) -> None:
        """Forward and backward: gradients come last layer first, as activations go."""
        layers = list(enumerate(self.model.layers))
        for number, (_, activation, forward, _) in layers:
            self.product("forward")
            self.take("forward", size=samples * forward)
            self.take("activation", number, size=samples * activation)
            self.drop("forward")
        for number, (weight, _, _, backward) in reversed(layers):
            self.take("backward", size=samples * backward)
            self.product("backward")
            self.take("gradient", number, size=weight)
            self.drop("backward")
            self.drop("activation", number)

    def update(self) -> None:
        if ("state", 1, 0) not in self.blocks:
            self.state()
        for number in range(len(self.model.layers)):
            self.drop("gradient", number)

    def step(self, samples: int) -> None:
        self.passes(samples)
        self.update()

    def empty(self, workspaces: bool) -> None:
        """Free what an attempt left, and the cache; the workspaces too, or they stay where they are."""
        for name in list(self.blocks):
            if name[0] != "weight" and (workspaces or name[0] != "workspace"):
                self.drop(*name)
        self.allocator.release_cached()


def fits(card: Card, samples: int, steps: int) -> bool:
    try:
        for _ in range(steps):
            card.step(samples)
    except OutOfMemory:
        return False
    return True


def rehearsed_before(card: Card, samples: int) -> bool:
    """One pass with the optimizer's state taken first: the rehearsal as it was."""
    try:
        card.state()
        card.passes(samples)
    except OutOfMemory:
        return False
    return True


def caps(model: Model, samples: int) -> Iterator[int]:
    """Caps around what the model's step needs: from the live bytes to what is reserved without a cap."""
    free = Card(None, model)
    assert fits(free, samples, 3)
    low, high = free.allocator.peak_allocated // MIB, free.allocator.peak_reserved // MIB
    yield from (cap * MIB for cap in range(low, high + 2, max(1, (high - low) // 24)))


def settle(card: Card, workspaces: bool, whole: bool) -> int:
    """The micro-batch that a rehearsal leaves, from 8 down; 0 if none."""
    samples = 8
    while samples:
        passed = fits(card, samples, 3) if whole else rehearsed_before(card, samples)
        card.empty(workspaces)
        if passed:
            break
        samples //= 2
    return samples


@pytest.mark.parametrize("seed", range(8))
def test_a_micro_batch_that_passes_the_rehearsal_passes_training(seed: int) -> None:
    model = Model(seed)
    tried = 0
    for wanted in (8, 4):
        for cap in caps(model, wanted):
            card = Card(cap, model)
            samples = settle(card, workspaces=True, whole=True)
            if samples:
                tried += 1
                assert fits(card, samples, 6), (cap, samples)
    assert tried > 20


def test_a_rehearsal_of_one_pass_with_kept_workspaces_is_insufficient() -> None:
    """The fault that three steps and an emptied cache cure: some caps pass the rehearsal and fail in the steps."""
    failed = 0
    for seed in range(8):
        model = Model(seed)
        for cap in (cap for wanted in (8, 4) for cap in caps(model, wanted)):
            card = Card(cap, model)
            samples = settle(card, workspaces=False, whole=False)
            failed += bool(samples) and not fits(card, samples, 6)
    assert failed > 0


def test_two_steps_are_insufficient_and_a_fourth_adds_nothing() -> None:
    passed = dict.fromkeys((1, 2, 3, 9), 0)
    for seed in range(8):
        model = Model(seed)
        for cap in caps(model, 4):
            for steps in passed:
                passed[steps] += fits(Card(cap, model), 4, steps)
    assert passed[1] > passed[2] > passed[3] == passed[9]
