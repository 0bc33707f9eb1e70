"""The Accelerator that is made from a plan."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from ratc_runtime.errors import RuntimeFinding

pytest.importorskip("accelerate")

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from ratc_runtime.integrations.accelerate import load_last, make_accelerator, save_state


@pytest.fixture(autouse=True)
def _first_accelerator() -> Iterator[None]:
    """Accelerate knows one Accelerator a process."""

    def forget() -> None:
        for state in (AcceleratorState, GradientState, PartialState):
            state._shared_state.clear()

    forget()
    yield
    forget()


def test_the_accelerator_has_the_values_of_the_plan(make_plan: Any) -> None:
    accelerator = make_accelerator(make_plan(), step_scheduler_with_optimizer=False)
    assert accelerator.gradient_accumulation_steps == 2
    assert accelerator.mixed_precision == "no"
    assert accelerator.device.type == "cpu"
    assert accelerator.num_processes == 1
    assert accelerator.step_scheduler_with_optimizer is False


def test_a_plan_in_bf16_gives_an_accelerator_in_bf16(make_plan: Any) -> None:
    assert make_accelerator(make_plan(training__precision="bf16")).mixed_precision == "bf16"


def test_the_seed_of_the_plan_is_set(make_plan: Any) -> None:
    make_accelerator(make_plan())
    first = torch.rand(1)
    torch.manual_seed(42)
    assert torch.equal(first, torch.rand(1))


def test_arguments_that_the_plan_decides_are_refused(make_plan: Any) -> None:
    with pytest.raises(TypeError, match="the plan decides cpu, mixed_precision: set them in the spec"):
        make_accelerator(make_plan(), mixed_precision="bf16", cpu=False)


def test_r503_for_an_accelerator_with_other_values(make_plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "5")  # comes before the argument
    with pytest.raises(RuntimeFinding, match=r"R503") as caught:
        make_accelerator(make_plan())
    assert "gradient_accumulation_steps: 5, the lock says 2" in caught.value.render()


def loaders(accelerator: Any, *sizes: int) -> list[Any]:
    """A prepared model, and a prepared loader of 24 numbers for each size."""
    made = [torch.utils.data.DataLoader(torch.arange(24.0), batch_size=size) for size in sizes]
    return list(accelerator.prepare(torch.nn.Linear(1, 1), *made))


def train(accelerator: Any, model: Any, batches: Any) -> None:
    for batch in batches:
        accelerator.backward(model(batch[:, None]).mean())


def refused(size: int) -> Any:
    """Whether batches of that size are refused: the plan's are of eight."""
    return contextlib.nullcontext() if size == 8 else pytest.raises(RuntimeFinding, match="R503")


@pytest.mark.parametrize("size", [8, 3])
def test_r503_for_a_step_that_reads_other_batches(make_plan: Any, size: int) -> None:
    accelerator = make_accelerator(make_plan())
    model, data, checks = loaders(accelerator, size, 6)
    for batch in checks:  # of an evaluation: no step
        model(batch[:, None])
    with refused(size) as caught:
        train(accelerator, model, data)
    assert size == 8 or "micro_batch_size: 3, the lock says 8" in caught.value.render()


@pytest.mark.parametrize("size", [8, 3])
@pytest.mark.parametrize("look", [0, 1])
def test_a_look_at_a_batch_before_hides_no_other_batches(make_plan: Any, size: int, look: int) -> None:
    accelerator = make_accelerator(make_plan())
    model, *both = loaders(accelerator, size, 8)
    next(iter(both[look]))
    with refused(size):
        for _ in range(3):
            train(accelerator, model, both[0])


def test_loops_that_read_more_than_a_batch_for_a_step_are_not_compared(make_plan: Any) -> None:
    accelerator = make_accelerator(make_plan())
    model, data, others, whole = loaders(accelerator, 8, 6, 24)
    for batch in data:
        train(accelerator, model, [batch, next(iter(others))])
    for batch in whole:
        train(accelerator, model, batch.split(8))


def test_r503_comes_before_the_second_step(make_plan: Any) -> None:
    accelerator = make_accelerator(make_plan())
    model, data = loaders(accelerator, 3)
    done = []
    with refused(3):
        for batch in data:
            train(accelerator, model, [batch])
            done.append(batch)
    assert len(done) == 1


def test_after_one_loader_has_matched_another_may_be_trained_on(make_plan: Any) -> None:
    accelerator = make_accelerator(make_plan())
    model, data, others = loaders(accelerator, 8, 6)
    for batches in (data, others, data, others):
        train(accelerator, model, batches)


@pytest.mark.parametrize("mode", ["without gradients", "in evaluation mode", "as in training"])
def test_batches_of_an_evaluation_are_not_those_of_a_step(make_plan: Any, mode: str) -> None:
    accelerator = make_accelerator(make_plan())
    model, checks = loaders(accelerator, 6)
    for batch in torch.arange(24.0).split(8):  # of a loader that Accelerate does not know
        model.train(mode != "in evaluation mode")
        with torch.no_grad() if mode == "without gradients" else contextlib.nullcontext():
            assert [len(check) for check in checks] == [6] * 4
        model.train()
        train(accelerator, model, [batch])


def test_a_loader_of_another_accelerator_is_compared_by_the_last_one(make_plan: Any) -> None:
    _, data = loaders(make_accelerator(make_plan()), 3)
    accelerator = make_accelerator(make_plan())
    model, data = accelerator.prepare(torch.nn.Linear(1, 1), data)
    with refused(3):
        train(accelerator, model, data)


def test_a_model_without_a_training_mode_is_compared_too(make_plan: Any) -> None:
    accelerator = make_accelerator(make_plan())
    model, data = loaders(accelerator, 3)
    model.eval()  # as a pretrained one comes
    with refused(3):
        train(accelerator, model, data)


def test_a_loader_may_be_prepared_twice(make_plan: Any) -> None:
    accelerator = make_accelerator(make_plan())
    once = accelerator.prepare(torch.utils.data.DataLoader(torch.arange(24.0), batch_size=8))
    assert [len(batch) for batch in accelerator.prepare(once)] == [8, 8, 8]
    assert len(once) == 3


class Numbers(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.arange(24.0))


@pytest.mark.parametrize("dispatch", [True, False])
def test_batches_of_an_iterable_data_set_are_compared(make_plan: Any, dispatch: bool) -> None:
    from accelerate import DataLoaderConfiguration

    accelerator = make_accelerator(
        make_plan(), dataloader_config=DataLoaderConfiguration(dispatch_batches=dispatch or None)
    )
    right, wrong = [torch.utils.data.DataLoader(Numbers(), batch_size=number) for number in (8, 3)]
    model, right, wrong = accelerator.prepare(torch.nn.Linear(1, 1), right, wrong)
    with refused(3):
        train(accelerator, model, wrong)
    train(accelerator, model, right)


def test_the_newest_undamaged_checkpoint_is_loaded(make_plan: Any) -> None:
    plan = make_plan()
    accelerator = make_accelerator(plan)
    model = accelerator.prepare(torch.nn.Linear(1, 1))
    assert load_last(accelerator, plan) == 0
    for step in (9, 10, 11):
        torch.nn.init.constant_(model.weight, step)
        save_state(accelerator, plan, step)
    (plan.checkpoint_dir / ".step-12").mkdir()  # of a start that was killed
    (plan.checkpoint_dir / "step-notes").mkdir()
    torch.nn.init.zeros_(model.weight)
    assert load_last(accelerator, plan) == 11
    assert model.weight.item() == 11
    assert sorted(path.name for path in plan.checkpoint_dir.glob("step-1*")) == ["step-10", "step-11"]
    assert load_last(accelerator, make_plan(resume=False)) == 0
    # The same step again takes the place of the one that is there.
    torch.nn.init.constant_(model.weight, 5)
    save_state(accelerator, plan, 11)
    assert load_last(accelerator, plan) == 11
    assert model.weight.item() == 5


def test_an_unknown_name_is_answered_with_those_of_the_plan(make_plan: Any) -> None:
    plan = make_plan()
    assert plan.get("micro_batch") is None
    with pytest.raises(KeyError, match=r"the plan has no 'micro_batch': it has .*micro_batch_size"):
        plan.verify(micro_batch=3)
