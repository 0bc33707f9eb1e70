"""The order of samples is the same for any world size, and an evaluation reads each sample once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ratc_runtime.data.loading import EvaluationOrder, TrainOrder

from tests.effort import examples
from tests.helpers.lockfile import lock_with


@settings(max_examples=examples(60), deadline=None)
@given(st.integers(1, 60), st.sampled_from([(8, 1, 8), (8, 2, 2), (8, 4, 1), (8, 8, 1), (6, 3, 2)]), st.integers(0, 3))
def test_a_step_holds_the_same_samples_for_any_world_size(
    tmp_path_factory: pytest.TempPathFactory, length: int, split: tuple[int, int, int], epoch: int
) -> None:
    batch, world, micro = split
    folder = tmp_path_factory.mktemp("locks")

    def order(world: int, micro: int, rank: int) -> TrainOrder:
        lock = lock_with(
            folder,
            training__global_batch_size=batch,
            training__micro_batch_size=micro,
            training__gradient_accumulation_steps=batch // world // micro,
            parallel__world_size=world,
            parallel__processes_per_node=world,
        )
        made = TrainOrder(length, lock, rank)
        made.epoch = epoch
        return made

    alone = [index for part in order(1, batch, 0) for index in part]
    assert len(set(alone)) == len(alone) == length // batch * batch
    per_rank = [[index for part in order(world, micro, rank) for index in part] for rank in range(world)]
    share = batch // world
    for step in range(length // batch):
        together = [index for rank in per_rank for index in rank[step * share : (step + 1) * share]]
        assert together == alone[step * batch : (step + 1) * batch]
    resumed = order(world, micro, 0)
    resumed.first_step = 1
    assert [index for part in resumed for index in part] == per_rank[0][share:]


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 6))
def test_an_evaluation_reads_every_sample_once(length: int, world: int, micro: int) -> None:
    ranks = [list(EvaluationOrder(length, micro, rank, world)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    seen = sorted(index for batches in ranks for batch in batches for index in batch)
    assert [index for index in seen if index < length] == list(range(length))
