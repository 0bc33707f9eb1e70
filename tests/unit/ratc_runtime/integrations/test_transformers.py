"""The arguments of the Trainer for a plan, and its callback. tests/processes/test_programs.py trains."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ratc_runtime.errors import RuntimeFinding

from tests.helpers.lockfile import results

pytest.importorskip("transformers")

from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, prepare_data_loader
from ratc_runtime.integrations import transformers as adapter
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler
from transformers import TrainerControl, TrainerState

CARD = {"hardware__device": "cuda", "parallel__backend": "nccl"}


class Stream(IterableDataset[int]):
    """Samples without an order that a sampler could draw."""

    def __iter__(self) -> Any:
        return iter(range(3))


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments themselves: without a card the Trainer's would refuse what is for one."""
    monkeypatch.setattr(adapter, "TrainingArguments", dict)


def test_the_trainer_s_arguments_have_the_values_of_the_plan(make_plan: Any) -> None:
    plan = make_plan(training__learning_rate=0.25, training__epochs=7)
    found = adapter.training_arguments(plan, logging_steps=3, weight_decay=0.5)
    assert (found.per_device_train_batch_size, found.gradient_accumulation_steps) == (8, 2)
    assert (found.learning_rate, found.num_train_epochs, found.seed) == (0.25, 7, 42)
    assert (found.logging_steps, found.weight_decay, found.report_to) == (3, 0.5, [])
    assert found.output_dir == str(plan.checkpoint_dir)
    assert found.use_cpu
    assert not found.bf16
    assert not found.fp16


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_the_precision_has_the_value_of_the_plan(make_plan: Any, given: None, precision: str) -> None:
    found: Any = adapter.training_arguments(make_plan(training__precision=precision, training__tf32=True, **CARD))
    assert (found["bf16"], found["fp16"]) == (precision == "bf16", precision == "fp16")
    assert found["tf32"] is True
    assert found["use_cpu"] is False


def test_several_processes_use_the_backend_of_the_plan(make_plan: Any, given: None) -> None:
    two = {"parallel__nodes": 2, "parallel__world_size": 2, "training__gradient_accumulation_steps": 1}
    found: Any = adapter.training_arguments(make_plan(**two))
    assert found["ddp_backend"] == "gloo"
    found = adapter.training_arguments(make_plan())
    assert found["ddp_backend"] is None


def test_only_arguments_that_the_plan_leaves_open_are_accepted(make_plan: Any, given: None) -> None:
    plan = make_plan()
    found: Any = adapter.training_arguments(plan, learning_rate=1.0, num_train_epochs=1, dataloader_num_workers=9)
    assert (found["learning_rate"], found["num_train_epochs"], found["dataloader_num_workers"]) == (1.0, 1, 9)
    with pytest.raises(TypeError, match="the plan decides output_dir, seed: set them in the spec"):
        adapter.training_arguments(plan, seed=1, output_dir="x")


def of_trainer(**changes: Any) -> Any:
    """What a callback sees of the Trainer's arguments."""
    known = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "world_size": 1, "n_gpu": 0}
    return SimpleNamespace(**{**known, "bf16": False, "fp16": False, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"per_device_train_batch_size": 4}, "micro_batch_size: 4, the lock says 8"),
        ({"n_gpu": 2}, "micro_batch_size: 16, the lock says 8"),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps: 1, the lock says 2"),
        ({"world_size": 2}, "world_size: 2, the lock says 1"),
        ({"bf16": True}, "precision: 'bf16', the lock says 'fp32'"),
    ],
)
def test_r503_for_a_trainer_with_other_values(make_plan: Any, changes: dict[str, Any], said: str) -> None:
    callback = adapter.PlanCallback(make_plan())
    callback.on_train_begin(of_trainer(), TrainerState(), TrainerControl())
    with pytest.raises(RuntimeFinding, match=r"R503") as caught:
        callback.on_train_begin(of_trainer(**changes), TrainerState(), TrainerControl())
    assert said in caught.value.render()


@pytest.mark.parametrize("split", [False, True])
def test_r503_for_a_loader_with_another_micro_batch(make_plan: Any, split: bool) -> None:
    """Of the program's own, as Accelerate prepares it."""
    callback = adapter.PlanCallback(make_plan())
    for size in (8, 10):
        sampler = BatchSampler(SequentialSampler(range(40)), batch_size=size, drop_last=False)
        shard = BatchSamplerShard(sampler, num_processes=1, split_batches=split)
        loader = DataLoaderShard(range(40), batch_sampler=shard)
        if size == 8:
            callback.on_train_begin(of_trainer(), TrainerState(), TrainerControl(), train_dataloader=loader)
            continue
        with pytest.raises(RuntimeFinding, match="R503") as caught:
            callback.on_train_begin(of_trainer(), TrainerState(), TrainerControl(), train_dataloader=loader)
        assert "micro_batch_size: 10, the lock says 8" in caught.value.render()
    callback.on_train_begin(
        of_trainer(), TrainerState(), TrainerControl(), train_dataloader=DataLoader(Stream(), batch_size=None)
    )


@pytest.mark.parametrize(
    ("data", "size", "options"),
    [
        (Stream(), 8, {"dispatch_batches": False}),
        (Stream(), 16, {"dispatch_batches": False, "split_batches": True}),
        (Stream(), None, {"dispatch_batches": False}),
        (range(64), 8, {}),
        (range(64), 16, {"split_batches": True}),
        (range(64), None, {"even_batches": False}),
    ],
)
def test_loaders_that_accelerate_shares_among_processes_are_understood(
    make_plan: Any, data: Any, size: int | None, options: dict[str, Any]
) -> None:
    """The last has a batch sampler without a size, as buckets of lengths have."""
    two = {"parallel__nodes": 2, "parallel__world_size": 2, "training__gradient_accumulation_steps": 1}
    by = {"batch_sampler": [[0, 1], [2]]} if "even_batches" in options else {"batch_size": size}
    loader = prepare_data_loader(DataLoader(data, **by), num_processes=2, process_index=0, **options)
    arguments = of_trainer(world_size=2, gradient_accumulation_steps=1)
    callback = adapter.PlanCallback(make_plan(**two))
    callback.on_train_begin(arguments, TrainerState(), TrainerControl(), train_dataloader=loader)


def test_r503_for_a_micro_batch_that_the_trainer_found_itself(make_plan: Any) -> None:
    with pytest.raises(TypeError, match="the plan decides auto_find_batch_size"):
        adapter.training_arguments(make_plan(), auto_find_batch_size=True)
    with pytest.raises(RuntimeFinding, match="R503"):
        adapter.PlanCallback(make_plan()).on_train_begin(
            of_trainer(), TrainerState(train_batch_size=4), TrainerControl()
        )


def test_a_stop_file_saves_and_ends_the_training(make_plan: Any) -> None:
    plan, control = make_plan(), TrainerControl()
    callback = adapter.PlanCallback(plan)
    callback.on_step_end(of_trainer(), TrainerState(), control)
    assert not control.should_save
    assert not control.should_training_stop
    control.should_evaluate = True
    callback.on_epoch_end(of_trainer(), TrainerState(), control)
    assert control.should_evaluate
    (plan.output_dir / "STOP").touch()
    callback.on_step_end(of_trainer(), TrainerState(), control)
    assert control.should_save
    assert control.should_training_stop
    assert not control.should_evaluate, "there may be no time"
    control.should_evaluate = True  # as the Trainer's own callback decides, which comes before
    callback.on_epoch_end(of_trainer(), TrainerState(), control)
    assert not control.should_evaluate
    callback.on_train_end(of_trainer(), TrainerState(), control)
    assert (plan.output_dir / "STOPPED").exists()
    assert not (plan.output_dir / "results.json").exists()


def test_the_last_scores_are_recorded_at_the_end(make_plan: Any) -> None:
    plan = make_plan()
    state = TrainerState(global_step=20, log_history=[{"loss": 2.0, "step": 10}, {"loss": 1.0, "eval_loss": 3.0}])
    adapter.PlanCallback(plan).on_train_end(of_trainer(), state, TrainerControl())
    found = results(plan.output_dir)
    assert found["metrics"] == {"loss": 1.0, "eval_loss": 3.0, "step": 10}
    assert (found["steps"], found["micro_batch_size"], found["gradient_accumulation_steps"]) == (20, 8, 2)
    assert found["memory"]["peak_rss_bytes"] > 10 << 20
    assert not (plan.output_dir / "STOPPED").exists()


def test_the_newest_undamaged_checkpoint_is_loaded(make_plan: Any, capsys: pytest.CaptureFixture[str]) -> None:
    plan = make_plan()
    assert adapter.last_checkpoint(plan) is None
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-2", "checkpoint-11", "checkpoint-12", "runs"):
        (plan.checkpoint_dir / name).mkdir(parents=True)
        if name not in ("checkpoint-11", "runs"):  # of a start that was killed
            state = '{"global' if name == "checkpoint-12" else "{}"
            (plan.checkpoint_dir / name / "trainer_state.json").write_text(state)
    assert adapter.last_checkpoint(plan) == str(plan.checkpoint_dir / "checkpoint-10")
    assert capsys.readouterr().err.count("is not complete") == 2
    assert adapter.last_checkpoint(make_plan(resume=False)) is None
