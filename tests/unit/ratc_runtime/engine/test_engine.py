"""An engine in one process: clipping, skipped steps, kernels of the optimizer, a smaller last step."""

from __future__ import annotations

import copy
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from ratc_runtime.config.lock import Lock, read_lock
from ratc_runtime.data.loading import TrainOrder
from ratc_runtime.engine import TorchEngine, make_optimizer
from ratc_runtime.engine.optimizer import fused_for, optimizer_facts, own_values
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.training.step import training_step
from torch import nn

from tests.helpers.lockfile import BASE, write_lock
from tests.helpers.packages import EIGHT_BITS

LIMIT = 0.25


def lock_of(folder: Path, **changes: Any) -> Lock:
    return read_lock(write_lock(folder, training__gradient_clipping=LIMIT, **changes))


def with_training(lock: Lock, **changes: Any) -> Lock:
    return lock.replace(training=lock.training.replace(**changes))


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))


def batches(count: int, size: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 8, generator=generator), 5 * torch.randn(size, 1, generator=generator)) for _ in range(count)
    ]


def loss_of(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(output.float(), target)


def torch_engine(folder: Path, precision: str) -> TorchEngine:
    engine = TorchEngine(lock_of(folder, training__precision="fp16"), small_model())
    if precision == "fp32":
        engine._dtype = None  # the scaler alone: exact to compare with
    return engine


def accelerate_engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Accelerate with torch's scaler for the CPU: Accelerate itself makes one for a GPU only."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    from accelerate.state import AcceleratorState
    from ratc_runtime.engine.with_accelerate import AccelerateEngine

    AcceleratorState._reset_state(reset_partial_state=True)
    engine = AccelerateEngine(lock_of(folder, engine__use_accelerate=True), small_model())
    accelerator = engine.accelerator
    monkeypatch.setattr(accelerator.state, "_mixed_precision", "fp16")
    accelerator.native_amp = True
    accelerator.scaler = torch.amp.GradScaler("cpu")
    from accelerate.optimizer import AcceleratedOptimizer

    engine.optimizer = AcceleratedOptimizer(engine.optimizer.optimizer, scaler=accelerator.scaler)
    accelerator._optimizers = [engine.optimizer]
    return engine


@pytest.fixture(params=["torch", "accelerate"])
def scaled(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An engine with a loss scale, that computes in fp32."""
    if request.param == "torch":
        yield torch_engine(tmp_path, "fp32")
        return
    yield accelerate_engine(tmp_path, monkeypatch)
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


def scaler_of(engine: Any) -> Any:
    return engine.scaler if isinstance(engine, TorchEngine) else engine.accelerator.scaler


def test_gradients_are_unscaled_before_clipping(scaled: Any) -> None:
    """The reference has no scale. Clipping scaled gradients would leave a step of one part in 65536."""
    reference = small_model()
    for image, target in batches(2):
        (loss_of(reference(image), target) / 2).backward()
    whole = nn.utils.clip_grad_norm_(reference.parameters(), LIMIT)
    assert whole > 2 * LIMIT
    seen: list[torch.Tensor] = []
    raw = getattr(scaled.optimizer, "optimizer", scaled.optimizer)  # below Accelerate's
    raw.register_step_pre_hook(lambda *_: seen.extend(one.grad.clone() for one in scaled.module.parameters()))
    result = training_step(scaled, loss_of, batches(2), 2, 0.1, LIMIT)
    assert scaler_of(scaled).get_scale() >= 65536
    assert result.gradient_norm is not None
    torch.testing.assert_close(result.gradient_norm, whole)
    for found, parameter in zip(seen, reference.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad)
    assert scaled.skipped_steps == 0


def test_a_step_that_overflows_is_skipped_and_counted(scaled: Any) -> None:
    before = copy.deepcopy(scaled.module.state_dict())
    image, target = batches(1)[0]
    overflowing = [(image * float("inf"), target), (image, target)]
    training_step(scaled, loss_of, overflowing, 2, 0.1, LIMIT)
    assert scaled.skipped_steps == 1
    assert all(torch.equal(before[name], value) for name, value in scaled.module.state_dict().items())
    assert scaler_of(scaled).get_scale() == 32768
    training_step(scaled, loss_of, batches(2), 2, 0.1, LIMIT)
    assert scaled.skipped_steps == 1
    assert not any(torch.equal(before[name], value) for name, value in scaled.module.state_dict().items())
    saved = copy.deepcopy(scaled.state())
    training_step(scaled, loss_of, overflowing, 2, 0.1, LIMIT)
    assert scaled.skipped_steps == 2
    scaled.load(saved)
    assert scaled.skipped_steps == 1


def test_fp16_with_loss_scaling_trains_on_the_cpu(tmp_path: Path) -> None:
    """Autocast and scale together: the losses are those of fp32 within fp16's 11 bits."""
    half = torch_engine(tmp_path / "half", "fp16")
    half.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)  # the usual first one is too high for these losses
    whole = TorchEngine(lock_of(tmp_path / "whole"), small_model())
    losses = []
    for engine in (half, whole):
        losses.append(
            torch.stack([training_step(engine, loss_of, batches(2), 2, 0.01, LIMIT).losses for _ in range(5)])
        )
    assert half.skipped_steps == whole.skipped_steps == 0
    torch.testing.assert_close(losses[0], losses[1], rtol=5e-3, atol=0)
    assert losses[0][-1].mean() < losses[0][0].mean()


def test_the_optimizer_is_fused_if_torch_supports_it(tmp_path: Path) -> None:
    lock = lock_of(tmp_path)
    model = small_model()
    assert all(group["fused"] and not group["foreach"] for group in make_optimizer(model, lock).param_groups)
    model.register_parameter("phase", nn.Parameter(torch.ones(2, 2, dtype=torch.complex64)))
    assert not fused_for(model.parameters())
    assert all(group["foreach"] and not group["fused"] for group in make_optimizer(model, lock).param_groups)


def plain_step(weight: float, gradient: float, training: Any, state: dict[str, float]) -> float:
    """One update by the formulas of torch's documentation."""
    rate = training.learning_rate
    if training.optimizer in ("adamw", "lion"):
        weight *= 1 - rate * training.weight_decay
    else:
        gradient += training.weight_decay * weight
    if training.optimizer == "sgd":
        state["velocity"] = gradient + training.momentum * state["velocity"] if "velocity" in state else gradient
        return weight - rate * state["velocity"]
    first, second = training.betas
    if training.optimizer == "lion":  # algorithm 2 of its paper
        mean = state.get("mean", 0)
        state["mean"] = second * mean + (1 - second) * gradient
        return weight - rate * math.copysign(1, first * mean + (1 - first) * gradient)
    count = state["count"] = state.get("count", 0) + 1
    state["mean"] = first * state.get("mean", 0) + (1 - first) * gradient
    state["square"] = second * state.get("square", 0) + (1 - second) * gradient**2
    mean, square = state["mean"] / (1 - first**count), state["square"] / (1 - second**count)
    return weight - rate * mean / (square**0.5 + 1e-8)


@pytest.mark.parametrize(
    ("optimizer", "momentum"), [("adamw", None), ("adam", None), ("sgd", 0.9), ("sgd", 0.0), ("lion", None)]
)
def test_updates_equal_their_formulas_and_norms_have_no_weight_decay(
    tmp_path: Path, optimizer: str, momentum: float | None
) -> None:
    lock = with_training(lock_of(tmp_path), optimizer=optimizer, weight_decay=0.1, momentum=momentum)
    model = nn.Linear(1, 1).double()
    made = make_optimizer(model, lock)
    facts = optimizer_facts(made)
    assert facts["optimizer"] == optimizer
    assert {name: facts[name] for name in own_values(lock)} == own_values(lock)
    assert [group["weight_decay"] for group in made.param_groups] == [0.1, 0.0]
    plain: Any = [model.weight.item(), model.bias.item()]
    states: list[dict[str, float]] = [{}, {}]
    apart = lock.training.replace(weight_decay=0.0)
    for gradient in (0.5, -2.0, 1.0):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        made.step()
        plain[0] = plain_step(plain[0], gradient, lock.training, states[0])
        plain[1] = plain_step(plain[1], gradient, apart, states[1])
    assert [model.weight.item(), model.bias.item()] == pytest.approx(plain, rel=1e-9)
    engine = TorchEngine(lock, small_model())
    if momentum is not None:
        with pytest.raises(RuntimeFinding, match="engine differs"):
            engine.verify(with_training(lock, momentum=0.5))


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("torch.optim:Optimists", "R509", "cannot be imported"),
        ("torch.nn:ReLU", "R581", "a torch.optim.Optimizer"),
        ("os:getcwd", "R580", "Python's own library"),
        ("torch.optim:LBFGS", "R509", "needs 'closure' in each step"),
        ("none_optimizer:makes_lbfgs", "R509", "needs 'closure' in each step"),
        ("none_optimizer:Fails", "R509", "cannot be called"),
        ("none_optimizer:make", "R509", "returned NoneType"),
    ],
)
def test_invalid_custom_optimizers_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: str, words: str
) -> None:
    (tmp_path / "none_optimizer.py").write_text(
        "import torch\n"
        "def make(params):\n    return None\n"
        "def makes_lbfgs(params):\n    return torch.optim.LBFGS(params[0]['params'])\n"
        "class Fails(torch.optim.SGD):\n    def __init__(self, params): raise ValueError\n"
    )
    monkeypatch.chdir(tmp_path)
    lock = with_training(lock_of(tmp_path), optimizer=name)
    with pytest.raises(RuntimeFinding, match=words) as raised:
        make_optimizer(small_model(), lock)
    assert raised.value.code == code


def test_a_custom_optimizer_gets_parameter_groups_and_arguments(tmp_path: Path) -> None:
    arguments = {"momentum_decay": 0.01}
    lock = with_training(lock_of(tmp_path), optimizer="torch.optim:NAdam", weight_decay=0.1, optimizer_args=arguments)
    engine = TorchEngine(lock, small_model())
    engine.verify(lock)
    found = [(group["weight_decay"], group["lr"], group["momentum_decay"]) for group in engine.parameter_groups]
    rate = lock.training.learning_rate
    assert found == [(0.1, rate, 0.01), (0.0, rate, 0.01)]


def test_muon_is_refused_for_a_model_without_matrices(tmp_path: Path) -> None:
    lock = with_training(lock_of(tmp_path), optimizer="muon", momentum=0.95)
    with pytest.raises(RuntimeFinding, match="that muon can train"):
        make_optimizer(nn.Sequential(nn.Embedding(3, 2), nn.Conv1d(2, 2, 1)), lock)


class Words(nn.Module):
    """A model with a weight of each kind: embedding, convolution, matrix, bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(5, 4)
        self.mixed = nn.Conv1d(4, 4, 3)
        self.out = nn.Linear(4, 2)


def test_muon_trains_matrices_and_adamw_the_others(tmp_path: Path) -> None:
    lock = with_training(lock_of(tmp_path), optimizer="muon", weight_decay=0.1, momentum=0.9, betas=[0.8, 0.95])
    model, plain = Words(), Words()
    made = make_optimizer(model, lock)
    assert optimizer_facts(made)["optimizer"] == "muon"
    assert {name: optimizer_facts(made)[name] for name in own_values(lock)} == {"momentum": 0.9, "betas": (0.8, 0.95)}
    rate = lock.training.learning_rate
    others = [
        {"params": [plain.words.weight, plain.mixed.weight], "weight_decay": 0.1},
        {"params": [plain.mixed.bias, plain.out.bias], "weight_decay": 0.0},
    ]
    apart = [
        torch.optim.Muon([plain.out.weight], lr=rate, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.8, 0.95), fused=True),
    ]
    for number in range(3):
        torch.manual_seed(number)
        for one, other in zip(model.parameters(), plain.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimizer in (made, *apart):
            optimizer.step()
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert [len(made.state[p]) for p in model.parameters()] == [3, 3, 3, 1, 3]


def test_muon_calls_a_closure_like_other_optimizers(tmp_path: Path) -> None:
    model = Words()
    made = make_optimizer(model, with_training(lock_of(tmp_path), optimizer="muon", momentum=0.9))
    before = model.out.weight.detach().clone()

    def closure() -> torch.Tensor:
        loss = (model.out.weight**2).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = made.step(closure)
    assert loss == (before**2).sum()
    assert not torch.equal(model.out.weight, before)


class Large(nn.Module):
    """A model with weights of more than 4096 numbers, which bitsandbytes packs, and an embedding, which it does not."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(80, 64)
        self.first = nn.Linear(64, 81)  # its last block of 256 is not full
        self.small = nn.Linear(81, 1)


@EIGHT_BITS
@pytest.mark.parametrize(("optimizer", "averages"), [("adamw", 2), ("lion", 1)])
def test_only_large_weights_have_states_of_8_bits(tmp_path: Path, optimizer: str, averages: int) -> None:
    """The updates are those of the optimizer with states in fp32, within the rounding of 8 bits."""
    lock = with_training(lock_of(tmp_path), optimizer=f"{optimizer}_8bit", weight_decay=0.1, betas=[0.9, 0.99])
    model, plain = Large(), Large()
    made = make_optimizer(model, lock)
    exact = make_optimizer(plain, with_training(lock, optimizer=optimizer))
    assert optimizer_facts(made) == {**optimizer_facts(exact), "optimizer": f"{optimizer}_8bit"}
    for number in range(5):
        torch.manual_seed(number)
        for one, other in zip(model.parameters(), plain.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        made.step()
        exact.step()
    widths = {
        name: [made.state[one][f"state{number + 1}"].element_size() for number in range(averages)]
        for name, one in model.named_parameters()
    }
    wide, narrow = [4] * averages, [1] * averages
    assert widths == {
        "words.weight": wide, "first.weight": narrow, "first.bias": wide, "small.weight": wide, "small.bias": wide,
    }  # fmt: skip
    rate = lock.training.learning_rate
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        difference = (one - other).abs()
        if name != "first.weight":
            assert difference.max() < 1e-3 * rate, name
        else:  # a sign may turn where an average is almost zero
            assert difference.median() < 0.05 * rate
            assert 0 < difference.max() <= 10.1 * rate


@EIGHT_BITS
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("state1", torch.zeros(81, 64)),  # the kernel of fp32 would read no table
        ("state1", torch.zeros(81, 63, dtype=torch.uint8)),
        ("state2", torch.zeros(81, 64)),
        ("state2", None),
        ("absmax1", torch.zeros(20)),  # 81 x 64 numbers are 21 blocks
        ("absmax2", torch.zeros(21, dtype=torch.float64)),
        ("qmap1", torch.zeros(255)),
        ("qmap2", "x"),
        ("unorm_vec", torch.zeros(1)),
    ],
)
def test_invalid_packed_optimizer_states_are_refused(tmp_path: Path, key: str, value: Any) -> None:
    lock = with_training(lock_of(tmp_path), optimizer="adamw_8bit")
    engine = TorchEngine(lock, Large())
    for parameter in engine.module.parameters():
        parameter.grad = torch.ones_like(parameter)
    engine.optimizer.step()
    saved = copy.deepcopy(engine.state())
    engine.load(copy.deepcopy(saved))
    state = saved["optimizer"]["state"][1]  # of `first.weight`: after `words.weight`, among the decayed
    assert state["__bnb_optimizer_quant_state__"]["state1"].shape == (81, 64)
    state["__bnb_optimizer_quant_state__"][key] = value
    with pytest.raises(ValueError, match="its optimizer's"):
        engine.load(saved)


@pytest.mark.parametrize(
    ("optimizer", "momentum"),
    [
        ("sgd", 0.9),
        ("sgd", 0.0),
        ("adafactor", None),
        ("muon", 0.95),
        ("lion", None),
        pytest.param("adamw_8bit", None, marks=EIGHT_BITS),
        pytest.param("lion_8bit", None, marks=EIGHT_BITS),
    ],
)
def test_an_optimizer_continues_from_its_state(tmp_path: Path, optimizer: str, momentum: float | None) -> None:
    lock = with_training(lock_of(tmp_path), optimizer=optimizer, learning_rate=0.1, momentum=momentum)
    first, second = (TorchEngine(lock, small_model()) for _ in range(2))
    training_step(first, loss_of, batches(2), 2, 0.01, LIMIT)
    second.load(copy.deepcopy(first.state()))
    second.verify(lock)
    for engine in (first, second):
        training_step(engine, loss_of, batches(2), 2, 0.01, LIMIT)
    assert all(torch.equal(a, b) for a, b in zip(first.module.parameters(), second.module.parameters(), strict=True))


def test_a_checkpoint_made_with_other_kernels_is_continued(tmp_path: Path) -> None:
    """torch takes the saved implementation over with the state; here it stays that of the device."""
    first, second = (TorchEngine(lock_of(tmp_path), small_model()) for _ in range(2))
    training_step(first, loss_of, batches(2), 2, 0.01, LIMIT)
    saved = copy.deepcopy(first.state())
    for group in saved["optimizer"]["param_groups"]:
        group["fused"], group["foreach"] = False, True
    second.load(saved)
    assert all(group["fused"] for group in second.optimizer.param_groups)
    for engine in (first, second):
        training_step(engine, loss_of, batches(2), 2, 0.01, LIMIT)
    assert all(torch.equal(a, b) for a, b in zip(first.module.parameters(), second.module.parameters(), strict=True))


@pytest.mark.parametrize("length", [21, 22, 23, 17, 1, 3])
@pytest.mark.parametrize(("world", "micro", "accumulation"), [(1, 2, 2), (2, 1, 2), (2, 2, 1), (1, 4, 1)])
def test_a_kept_last_step_trains_on_every_sample_once(
    tmp_path: Path, length: int, world: int, micro: int, accumulation: int
) -> None:
    """Whatever the split, and its weights make the mean over micro-batches and ranks the mean over samples."""
    parallel = {**BASE["parallel"], "world_size": world, "processes_per_node": world}
    lock = lock_of(
        tmp_path,
        training__last_batch="keep",
        training__micro_batch_size=micro,
        training__gradient_accumulation_steps=accumulation,
        parallel=parallel,
    )
    orders = [TrainOrder(length, lock, rank) for rank in range(world)]
    last, rest = orders[0].steps - 1, length % 4
    assert orders[0].steps == -(-length // 4)
    whole, seen, mean = [list(order) for order in orders], [], 0.0
    for order, mine in zip(orders, whole, strict=True):
        assert len(mine) == order.steps * accumulation
        order.first_step = last
        assert list(order) == mine[-accumulation:]
        sizes, weights = order.last_sizes(last), order.weights(last)
        if rest == 0:
            assert sizes is weights is None
            continue
        assert max(sizes) <= micro
        for micro_batch, size, weight in zip(list(order), sizes, weights, strict=True):
            assert len(micro_batch) == max(1, size)
            seen += micro_batch[:size]
            mean += weight * sum(micro_batch) / len(micro_batch) / (world * accumulation)
    if rest:
        steps = [one for mine in whole for one in mine[: last * accumulation]]
        assert sorted(seen + [position for one in steps for position in one]) == list(range(length))
        assert mean == pytest.approx(sum(seen) / rest)


def test_each_epoch_drops_different_samples(tmp_path: Path) -> None:
    """With `drop` each epoch leaves out fewer samples than a global batch, of another permutation."""
    order = TrainOrder(23, lock_of(tmp_path), 0)
    assert (order.steps, order.weights(4), order.last_sizes(4)) == (5, None, None)
    left_out = []
    for order.epoch in range(40):
        left_out.append(set(range(23)) - {position for one in order for position in one})
    assert all(len(one) == 3 for one in left_out)
    assert set.union(*left_out) == set(range(23))


def test_weighted_micro_batches_equal_one_batch_of_their_samples(tmp_path: Path) -> None:
    """Micro-batches of 3 and 1 samples, weighted, are one batch of 4."""
    engine, reference = (TorchEngine(lock_of(tmp_path), small_model()) for _ in range(2))
    image, target = batches(1)[0]
    parts = [(image[:3], target[:3]), (image[3:], target[3:])]
    found = training_step(engine, loss_of, parts, 2, 0.01, LIMIT, [1.5, 0.5])
    reference.accumulation = 1
    expected = training_step(reference, loss_of, [(image, target)], 1, 0.01, LIMIT)
    torch.testing.assert_close(found.losses.mean(), expected.losses.mean())
    torch.testing.assert_close(found.gradient_norm, expected.gradient_norm)


def test_a_missing_deepspeed_gives_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from ratc_runtime.engine import make_engine
    from ratc_runtime.errors import RuntimeFinding

    monkeypatch.setitem(sys.modules, "deepspeed", None)
    parallel = {**BASE["parallel"], "world_size": 2, "processes_per_node": 2}
    lock = lock_of(tmp_path, engine__deepspeed=True, engine__zero_stage=2, parallel=parallel)
    with pytest.raises(RuntimeFinding) as found:
        make_engine(lock, small_model(), tmp_path)
    assert found.value.code == "R529"
    assert "WORLD_SIZE" not in os.environ
