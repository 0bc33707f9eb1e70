"""The metadata of torch's distributed checkpoints is read without running code that it names."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from ratc_runtime.checkpoint.distributed import FOLDER, contents, read_weights


def written(folder: Path, **tensors: object) -> Path:
    dcp.save(dict(tensors), storage_writer=dcp.FileSystemWriter(folder / FOLDER), no_dist=True)
    return folder / FOLDER


def test_only_weights_are_read_from_a_distributed_checkpoint(tmp_path: Path) -> None:
    weight, count = torch.randn(3, 4), torch.tensor(7)
    folder = written(
        tmp_path, **{"model.a.weight": weight, "model.count": count, "optimizer.a.weight:exp_avg": torch.ones(3, 4)}
    )
    found = read_weights(folder)
    assert found.keys() == {"a.weight", "count"}
    assert torch.equal(found["a.weight"], weight)
    assert found["count"] == 7
    assert len(contents(folder).state_dict_metadata) == 3


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_metadata_that_names_a_function_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, **{"model.a": torch.ones(2)})
    (folder / ".metadata").write_bytes(pickle.dumps(Harmful(tmp_path / "made")))
    with pytest.raises(pickle.UnpicklingError, match=r"posix\.mkdir"):
        contents(folder)
    assert not (tmp_path / "made").exists()


def test_values_other_than_tensors_are_refused(tmp_path: Path) -> None:
    """torch would unpickle them without a limit."""
    folder = written(tmp_path, **{"model.a": torch.ones(2), "model.b": {"c": 3}})
    with pytest.raises(pickle.UnpicklingError, match=r"none of tensors|not part of a list"):
        read_weights(folder)


def test_damaged_metadata_raises_a_known_error(tmp_path: Path) -> None:
    folder = written(tmp_path, **{"model.a": torch.ones(2)})
    whole = (folder / ".metadata").read_bytes()
    (folder / ".metadata").write_bytes(whole[: len(whole) // 2])
    from ratc_runtime.checkpoint.header import UNREADABLE

    with pytest.raises(UNREADABLE):
        contents(folder)
