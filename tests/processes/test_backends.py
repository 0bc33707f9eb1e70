"""The same spec gives the same losses on every backend, equal to the committed ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.effort import part_of
from tests.helpers.lockfile import results
from tests.processes.backends import CASES, GOLDEN, TOLERANCE, names_of, prepare, train_cases
from tests.processes.test_distributed import score_of_exported

pytestmark = pytest.mark.slow(every=True)  # they share three launches

#: Those that others are compared with, those that have tests of their own, and a part of the others.
OWN = ("torch", "torch-keep", "ddp-keep", "zero2-keep", "zero3", "fsdp2", "accelerate-fsdp2", "hsdp")
COMMON = [*OWN, *part_of([name for name, case in CASES.items() if not case.compile and name not in OWN])]
GOLDENS: dict[str, list[float]] = json.loads(GOLDEN.read_text())["losses"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("backends")
    prepare(found)
    return found


@pytest.fixture(scope="module")
def losses(folder: Path) -> dict[str, list[float]]:
    worlds = [[name for name in COMMON if CASES[name].world == world] for world in (1, 2, 4)]
    return {name: found for names in worlds for name, found in train_cases(folder, names).items()}


@pytest.mark.parametrize("name", COMMON)
def test_each_backend_gives_the_losses_of_one_process(losses: dict[str, list[float]], folder: Path, name: str) -> None:
    case = CASES[name]
    assert losses[name] == pytest.approx(losses[case.reference], rel=TOLERANCE[case.precision])
    found, expected = results(folder / f"out-{name}"), results(folder / f"out-{case.reference}")
    for key in ("baseline", "parameters"):
        assert found[key] == expected[key]
    assert found["test"]["samples"] == expected["test"]["samples"] == 3


@pytest.mark.parametrize("name", COMMON)
def test_losses_equal_the_committed_ones(losses: dict[str, list[float]], name: str) -> None:
    assert losses[name] == pytest.approx(GOLDENS[name], rel=TOLERANCE[CASES[name].precision] / 2)


def test_every_case_has_committed_losses() -> None:
    assert GOLDENS.keys() == CASES.keys()


def test_a_kept_last_batch_changes_the_losses(losses: dict[str, list[float]]) -> None:
    """It makes a difference far beyond every tolerance, so agreement above is no accident."""
    assert losses["torch-keep"] != pytest.approx(losses["torch"], rel=3 * max(TOLERANCE.values()) / 10)


@pytest.mark.parametrize("name", [name for name in COMMON if "ddp" in name])
def test_gradients_are_reduced_once_a_step(losses: dict[str, list[float]], folder: Path, name: str) -> None:
    """The model's gradients fill one bucket of DDP; two epochs have 5 steps each, 6 with the rest of 21 samples."""
    steps = 12 if CASES[name].last_batch == "keep" else 10
    found = [json.loads((folder / name / f"reductions-{rank}.json").read_text()) for rank in (0, 1)]
    assert found == [steps, steps]


@pytest.mark.parametrize(
    "name",
    [name for name in ("zero2-keep", "zero2-bf16", "zero3", "fsdp2", "accelerate-fsdp2", "hsdp") if name in COMMON],
)
def test_exported_weights_score_as_the_shards_did(losses: dict[str, list[float]], folder: Path, name: str) -> None:
    found = results(folder / f"out-{name}")["test"]["loss"]
    tolerance = max(1e-4, 2 * TOLERANCE[CASES[name].precision])
    assert score_of_exported(folder / f"out-{name}/checkpoints/best", folder) == pytest.approx(found, rel=tolerance)


def test_a_compiled_model_has_the_same_losses(losses: dict[str, list[float]], folder: Path) -> None:
    (name,) = names_of(1, compiled=True)
    found = train_cases(folder, [name])[name]
    assert found == pytest.approx(losses["torch"], rel=TOLERANCE["fp32"])
    assert found == pytest.approx(GOLDENS[name], rel=TOLERANCE["fp32"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and two of them for two processes")
def test_gpu_losses_equal_those_of_the_reference_backend(folder: Path) -> None:
    """Never run where this is developed. Kernels that add in no fixed order make fp32 ten times less alike."""
    worlds = (1, 2) if torch.cuda.device_count() > 1 else (1,)
    found: dict[str, list[float]] = {}
    for world in worlds:
        found |= train_cases(folder, names_of(world), "cuda")
    for name, values in found.items():
        tolerance = 10 * TOLERANCE["fp32"] if CASES[name].precision == "fp32" else TOLERANCE[CASES[name].precision]
        assert values == pytest.approx(found[CASES[name].reference], rel=tolerance), name
