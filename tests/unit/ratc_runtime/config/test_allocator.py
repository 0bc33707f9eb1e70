"""A run with another CUDA allocator than the lock's is refused; torch's answers are stand-ins here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ratc_runtime import preflight
from ratc_runtime.config import allocator
from ratc_runtime.config.lock import read_lock
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.training import loop

from tests.effort import HANGS_S
from tests.helpers.lockfile import write_lock

NATIVE, EXPANDABLE = "native", "expandable_segments"
ON, OFF = "expandable_segments:True", "expandable_segments:False"
CUDA = torch.device("cuda")


@pytest.fixture
def lock(tmp_path):
    """A lock for a GPU with the given allocator."""
    read = read_lock(write_lock(tmp_path))

    def make(asked, device="cuda"):
        training = read.training.replace(allocator=asked)
        return read.replace(training=training, hardware=read.hardware.replace(device=device))

    return make


def test_a_lock_without_an_allocator_is_read(lock, tmp_path):
    assert read_lock(write_lock(tmp_path)).training.allocator is None


@pytest.mark.parametrize(
    ("asked", "variables", "wrong"),
    [
        (NATIVE, {}, []),
        (EXPANDABLE, {}, []),
        (NATIVE, {"PYTORCH_CUDA_ALLOC_CONF": ""}, []),
        (NATIVE, {"PYTORCH_CUDA_ALLOC_CONF": OFF, "PYTORCH_ALLOC_CONF": OFF}, []),
        (EXPANDABLE, {"PYTORCH_CUDA_ALLOC_CONF": ON, "PYTORCH_ALLOC_CONF": f"max_split_size_mb:128, {ON}"}, []),
        (NATIVE, {"PYTORCH_ALLOC_CONF": "roundup_power2_divisions:[256:1,>:4]"}, []),
        (NATIVE, {"PYTORCH_CUDA_ALLOC_CONF": ON}, ["PYTORCH_CUDA_ALLOC_CONF"]),
        (NATIVE, {"PYTORCH_ALLOC_CONF": f"a:[1,2],{ON}"}, ["PYTORCH_ALLOC_CONF"]),
        (NATIVE, {"PYTORCH_HIP_ALLOC_CONF": ON}, ["PYTORCH_HIP_ALLOC_CONF"]),
        (NATIVE, {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"}, ["PYTORCH_CUDA_ALLOC_CONF"]),
        (EXPANDABLE, {"PYTORCH_CUDA_ALLOC_CONF": OFF}, ["PYTORCH_CUDA_ALLOC_CONF"]),
        # Some versions of torch read this one, and then not the other.
        (
            EXPANDABLE,
            {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128", "PYTORCH_ALLOC_CONF": ON},
            ["PYTORCH_CUDA_ALLOC_CONF"],
        ),
        (None, {"PYTORCH_CUDA_ALLOC_CONF": ON}, []),
    ],
)
def test_r552_for_variables_that_contradict_the_lock(lock, asked, variables, wrong):
    assert list(allocator.contradictions(lock(asked), variables)) == wrong
    assert not allocator.contradictions(lock(asked, "cpu"), variables)
    if wrong:
        with pytest.raises(RuntimeFinding, match=f"R552.*training.allocator: {asked}") as refused:
            allocator.check_variables(lock(asked), variables)
        assert wrong[0] in refused.value.note
    else:
        allocator.check_variables(lock(asked), variables)


@pytest.mark.parametrize(("asked", "value"), [(NATIVE, OFF), (EXPANDABLE, ON)])
def test_unset_allocator_variables_are_set_before_torch_reads_them(lock, monkeypatch, asked, value):
    told = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", told.append, raising=False)
    environment = {"PYTORCH_CUDA_ALLOC_CONF": f"max_split_size_mb:128,{value}"}
    allocator.prepare(lock(asked), environment)
    assert environment == {
        "PYTORCH_CUDA_ALLOC_CONF": f"max_split_size_mb:128,{value}",
        "PYTORCH_ALLOC_CONF": value,
    }
    assert told == [f"max_split_size_mb:128,{value}"], "torch was imported before"
    for device, one in (("cpu", asked), ("cuda", None)):
        untouched: dict[str, str] = {}
        allocator.prepare(lock(one, device), untouched)
        assert not untouched
    monkeypatch.setattr(os, "environ", {})
    loop.prepare_environment(lock(asked))
    assert os.environ["PYTORCH_ALLOC_CONF"] == os.environ["PYTORCH_CUDA_ALLOC_CONF"] == value


def answering(monkeypatch, backend="native", settings=None):
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: backend)
    told = {} if settings is None else {"allocator_settings": settings}
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda: told)


@pytest.mark.parametrize(
    ("backend", "settings", "used"),
    [
        ("native", {"PYTORCH_CUDA_ALLOC_CONF": "", "expandable_segments": False}, NATIVE),
        ("native", {"PYTORCH_CUDA_ALLOC_CONF": ON, "expandable_segments": True}, EXPANDABLE),
        ("cudaMallocAsync", None, "cudaMallocAsync"),
        ("native", None, None),
        ("native", {}, None),
    ],
)
@pytest.mark.parametrize("asked", [NATIVE, EXPANDABLE])
def test_the_allocator_that_torch_reports_is_checked(lock, monkeypatch, asked, backend, settings, used):
    answering(monkeypatch, backend, settings)
    assert allocator.in_use() == used
    allocator.check(lock(asked), torch.device("cpu"))
    allocator.check(lock(None), CUDA)
    if used in (None, asked):
        allocator.check(lock(asked), CUDA)
    else:
        with pytest.raises(RuntimeFinding, match=f"R552.*runs with {used}.*training.allocator: {asked}"):
            allocator.check(lock(asked), CUDA)


def test_a_torch_that_cannot_report_its_allocator_is_accepted(lock, monkeypatch):
    answering(monkeypatch)
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda: 1 / 0)
    assert allocator.in_use() is None
    allocator.check(lock(NATIVE), CUDA)


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_torch_reads_both_names_of_the_allocator_variable(name):
    if not hasattr(torch._C, "_accelerator_getAllocatorSettings"):
        pytest.skip("this torch does not say what it has read")
    code = "import torch; print(torch._C._accelerator_getAllocatorSettings())"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, name: ON}, capture_output=True, text=True, timeout=HANGS_S
    )
    assert done.stdout.strip() == ON, done.stderr


def test_another_allocator_is_refused_by_ranks_and_warned_of_by_preflight(lock, tmp_path, monkeypatch, capsys):
    path = write_lock(tmp_path)
    wanted = lock(NATIVE)
    monkeypatch.setattr(preflight, "read_lock", lambda path: wanted)
    for check in ("check_artifacts", "check_world_size", "check_batch", "check_card"):
        monkeypatch.setattr(preflight, check, lambda *given: None)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", ON)
    with pytest.raises(RuntimeFinding, match="R552"):
        preflight.check(Path(path), os.environ, launched=True)
    assert preflight.main([str(path)]) == 0
    said = capsys.readouterr().err
    assert f"warning: PYTORCH_CUDA_ALLOC_CONF={ON} is replaced: the lock says training.allocator: native" in said
