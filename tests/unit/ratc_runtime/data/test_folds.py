"""Folds are disjoint, complete, reproducible for a seed, and keep the samples of a group together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ratc_runtime.commands import summary
from ratc_runtime.config.sections import Folds
from ratc_runtime.data.folds import divide
from ratc_runtime.data.joint import open_data_set
from ratc_runtime.errors import RuntimeFinding

from tests.helpers.lockfile import BASE, lock_with, results, run_training, write_data, write_lock


class Named:
    """A data set whose items are their names."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> str:
        return self.names[index]


def folds(number: int, seed: int = 0, group: str | None = None) -> list[Folds]:
    return [Folds(number=number, index=index, seed=seed, group=group) for index in range(number)]


def items(part: Any) -> list[str]:
    return [part[position] for position in range(len(part))]


@given(st.integers(2, 20), st.integers(0, 20), st.integers(2, 6), st.integers(0, 5))
def test_folds_are_disjoint_and_cover_all_samples(train: int, val: int, number: int, seed: int) -> None:
    sources = [Named([f"t{index}" for index in range(train)]), Named([f"v{index}" for index in range(val)])]
    whole = sorted(name for source in sources for name in source.names)
    if train + val < number:
        with pytest.raises(RuntimeFinding, match="cannot be divided"):
            divide(sources, folds(number, seed)[0], by_file=False)
        return
    held = []
    for fold in folds(number, seed):
        trained, validated = divide(sources, fold, by_file=False)
        assert sorted(items(trained) + items(validated)) == whole
        assert items(validated) == validated.names
        held.append(items(validated))
    assert sorted(name for part in held for name in part) == whole
    assert max(map(len, held)) - min(map(len, held)) <= 1


class Asked(Named):
    """A data set that is asked for the target and the files of one sample, as for a baseline."""

    def target(self, index: int) -> str:
        return f"target of {self.names[index]}"

    def files(self, index: int) -> tuple[str]:
        return (f"{self.names[index]}.png",)


def test_a_fold_delegates_to_the_data_set_of_each_sample() -> None:
    sources = [Asked(["t0", "t1", "t2"]), Asked(["v0", "v1", "v2", "v3"])]
    for part in divide(sources, folds(3)[1], by_file=True):
        asked = [part.target(position) for position in range(len(part))]
        assert asked == [f"target of {name}" for name in part.names]
        assert [part.files(position) for position in range(len(part))] == [(f"{name}.png",) for name in part.names]
        assert not hasattr(part, "header")


def test_groups_stay_in_one_fold_and_seeds_give_different_folds() -> None:
    names = [f"P{patient}_{image}" for patient in range(12) for image in range(patient % 3 + 1)]
    divisions = set()
    for seed in range(4):
        for fold in folds(3, seed, "^(P[0-9]+)_"):
            parts = divide([Named(names)], fold, by_file=False)
            trained, validated = ({name.partition("_")[0] for name in items(part)} for part in parts)
            assert not trained & validated
            divisions.add(tuple(sorted(validated)))
    assert len(divisions) > 3
    with pytest.raises(RuntimeFinding, match="belongs to no group"):
        divide([Named(["other"] * 5)], folds(2, 0, "^P")[0], by_file=False)


def test_patches_of_a_volume_stay_in_one_fold() -> None:
    class Patches(Named):
        def files(self, index: int) -> tuple[Path, ...]:
            return (Path(self.names[index].partition(" ")[0]),)

    source = Patches([f"scan{volume} {patch}" for volume in range(4) for patch in range(volume + 1)])
    for fold in folds(4):
        _, validated = divide([source], fold, by_file=True)
        (volume,) = {name.partition(" ")[0] for name in validated.names}
        assert len(validated) == int(volume[-1]) + 1
        assert validated.files(0) == (Path(volume),)


def test_a_run_trains_on_its_fold_and_results_of_folds_are_summarized(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = write_data(tmp_path / "data", train=7, val=2)
    for fold in folds(3):
        data = {**BASE["data"], "folds": fold.model_dump()}
        lock = lock_with(tmp_path / "compiled", data=data)
        samples = {split: open_data_set(lock, tmp_path / "data", split) for split in ("train", "val", "test")}
        assert {split: len(dataset) for split, dataset in samples.items()} == {"train": 6, "val": 3, "test": 3}
        assert sorted(samples["train"].names + samples["val"].names) == sorted(written["train"] + written["val"])
        path = write_lock(tmp_path / "compiled", data=data, training={**BASE["training"], "epochs": 1})
        done = run_training(path, "--output-dir", f"folds/{fold.index}")
        assert done.returncode == 0, done.stderr
        assert "6 train, 3 val, 3 test samples" in done.stdout
    assert summary.main([str(tmp_path / "folds"), "-o", str(tmp_path / "summary.json")]) == 0
    told = capsys.readouterr().out
    dice = [results(tmp_path / f"folds/{index}")["test"]["dice"] for index in range(3)]
    middle = sum(dice) / 3
    sd = (sum((value - middle) ** 2 for value in dice) / 2) ** 0.5
    assert "3 runs" in told
    assert f"{middle:.4f} ± {sd:.4f}" in told
    (tmp_path / "folds/1/results.json").write_text('{"status": "stopped"}')
    assert summary.main([str(tmp_path / "folds")]) == 1
    assert "folds/1 has not finished" in capsys.readouterr().err
