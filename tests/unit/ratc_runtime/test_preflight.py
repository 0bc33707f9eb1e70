"""Refusals before torch is imported."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.preflight import check, main

from tests.helpers.lockfile import RUNTIME, environment, run_alone, write_lock

DEEPSPEED = {
    "train_batch_size": 4,
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 2},
}


def code_of(lock: Path, launched: bool = True, **variables: str) -> str:
    with pytest.raises(RuntimeFinding) as caught:
        check(lock, variables, launched)
    return caught.value.code


def test_a_valid_lock_passes(tmp_path: Path) -> None:
    artifacts = {"deepspeed.json": json.dumps(DEEPSPEED), "accelerate.yaml": "num_processes: 1\n"}
    lock = write_lock(tmp_path, artifacts, engine__use_accelerate=True, engine__deepspeed=True, engine__zero_stage=2)
    assert check(lock, {}, launched=True).training.micro_batch_size == 2


def test_r501_for_a_changed_or_missing_artifact(tmp_path: Path) -> None:
    lock = write_lock(tmp_path, {"run.sh": "true\n"})
    (tmp_path / "run.sh").write_text("false\n")
    assert code_of(lock) == "R501"
    (tmp_path / "run.sh").unlink()
    assert code_of(lock) == "R501"
    (tmp_path / "run.sh").mkdir()
    assert code_of(lock) == "R501"


@pytest.mark.parametrize("size", ["2", "", "one", "01"])
def test_r502_for_another_world_size(tmp_path: Path, size: str) -> None:
    lock = write_lock(tmp_path)
    assert code_of(lock, WORLD_SIZE=size) == "R502"
    check(lock, {"WORLD_SIZE": size}, launched=False)


def test_r503_for_inconsistent_batch_sizes(tmp_path: Path) -> None:
    assert code_of(write_lock(tmp_path, training__micro_batch_size=3)) == "R503"


@pytest.mark.parametrize("key", [*DEEPSPEED, "text"])
def test_r503_for_other_values_in_deepspeed_json(tmp_path: Path, key: str) -> None:
    changed = {**DEEPSPEED, key: {"stage": 1} if key == "zero_optimization" else 7}
    text = "{" if key == "text" else json.dumps(changed)
    lock = write_lock(
        tmp_path,
        {"deepspeed.json": text},
        engine__use_accelerate=True,
        engine__deepspeed=True,
        engine__zero_stage=2,
    )
    assert code_of(lock) == "R503"


@pytest.mark.parametrize("text", ["num_processes: 2\n", "num_processes: '1'\n", "{}\n", "num_processes: true\n"])
def test_r503_for_another_number_of_processes_in_accelerate_yaml(tmp_path: Path, text: str) -> None:
    assert code_of(write_lock(tmp_path, {"accelerate.yaml": text})) == "R503"


FAKE_NVML = """
CARDS = [("NVIDIA A100-SXM4-80GB", (8, 0), 85_899_345_920, "GPU-aa"), ("Tesla T4", (7, 5), 16_106_127_360, "GPU-bb")]
def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlDeviceGetCount(): return len(CARDS)
def nvmlDeviceGetHandleByIndex(i): return CARDS[i]
def nvmlDeviceGetName(card): return card[0]
def nvmlDeviceGetCudaComputeCapability(card): return card[1]
def nvmlDeviceGetUUID(card): return card[3]
def nvmlDeviceGetMemoryInfo(card): return type("Memory", (), {"total": card[2]})
"""


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with an A100 and a T4, as NVML would tell."""
    folder = tmp_path / "nvml"
    folder.mkdir()
    (folder / "pynvml.py").write_text(FAKE_NVML)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)


def cuda_lock(folder: Path, **changes: object) -> Path:
    hardware = {"device": "cuda", "card": "a100-80", "compute_capability": "8.0", "memory_bytes": 80 * 2**30}
    return write_lock(folder, hardware={**hardware, **changes}, parallel__backend="nccl")


@pytest.mark.usefixtures("cards")
def test_r504_for_another_card(tmp_path: Path) -> None:
    lock = cuda_lock(tmp_path)
    check(lock, {}, launched=True)
    check(lock, {"CUDA_VISIBLE_DEVICES": "GPU-a"}, launched=True)
    for visible in ("1", "GPU-bb", "", "-1", "7"):
        assert code_of(lock, CUDA_VISIBLE_DEVICES=visible) == "R504"
    assert code_of(cuda_lock(tmp_path, memory_bytes=141 * 2**30)) == "R504"


@pytest.mark.usefixtures("cards")
def test_memory_reported_by_the_driver_satisfies_the_nominal_memory(tmp_path: Path) -> None:
    lock = cuda_lock(tmp_path, compute_capability="7.5", memory_bytes=16 * 2**30)
    check(lock, {"CUDA_VISIBLE_DEVICES": "1"}, launched=True)


SLICES = """
SLICES = [("A100 MIG 3g.40gb", None, 42_949_672_960, f"MIG-{n}") for n in "xy"]
def nvmlDeviceGetMigMode(card):
    if card[1] != (8, 0): raise RuntimeError("not supported")
    return 1, 1
def nvmlDeviceGetMaxMigDeviceCount(card): return 7
def nvmlDeviceGetMigDeviceHandleByIndex(card, number): return {0: SLICES[0], 2: SLICES[1]}[number]
"""


def test_a_mig_slice_counts_as_a_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "nvml"
    folder.mkdir()
    (folder / "pynvml.py").write_text(FAKE_NVML + SLICES)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    lock = cuda_lock(tmp_path, card=None, memory_bytes=40 * 2**30)
    for visible in ("MIG-x", "MIG-y", "MIG-x,MIG-y", "0", "1"):
        check(lock, {"CUDA_VISIBLE_DEVICES": visible}, launched=True)
    check(lock, {}, launched=True)
    for visible in ("MIG-z", "GPU-aa", "2"):  # no such slice, the card that is cut up, the other card
        assert code_of(lock, CUDA_VISIBLE_DEVICES=visible) == "R504"
    hardware = {"device": "cuda", "card": None, "compute_capability": "8.0", "memory_bytes": 40 * 2**30}
    two = {"world_size": 2, "nodes": 1, "processes_per_node": 2, "backend": "nccl"}
    several = write_lock(
        tmp_path / "two",
        training__gradient_accumulation_steps=1,
        hardware=hardware,
        parallel={"threads_per_process": 1, "timeout_seconds": 120, **two},
    )
    with pytest.raises(RuntimeFinding, match="one slice of a card"):
        check(several, {"CUDA_VISIBLE_DEVICES": "MIG-x,MIG-y"}, launched=False)


def test_r504_without_a_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "nvml"
    folder.mkdir()
    (folder / "pynvml.py").write_text("def nvmlInit(): raise RuntimeError('no driver')\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    assert code_of(cuda_lock(tmp_path)) == "R504"


def test_r553_if_fused_attention_has_no_triton_or_an_old_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = write_lock(tmp_path, model__attention_memory="fused")
    torch = importlib.util.find_spec("torch")
    old = importlib.machinery.ModuleSpec("torch", None, origin=str(tmp_path / "torch/__init__.py"))
    (tmp_path / "torch/nn/attention").mkdir(parents=True)
    (tmp_path / "torch/nn/attention/flex_attention.py").write_text("def flex_attention(): ...")
    for triton, found, code in (
        (None, torch, "R553"),
        (torch, None, "R553"),
        (torch, old, "R553"),
        (torch, torch, None),
    ):
        modules = {"triton": triton, "torch": found}
        monkeypatch.setattr("importlib.util.find_spec", modules.get)
        if code:
            assert code_of(lock) == code
        else:
            check(lock, {}, launched=False)


def test_the_command_imports_no_torch_and_prints_findings(tmp_path: Path) -> None:
    lock = write_lock(tmp_path, {"run.sh": "true\n"})

    def run(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        code = (
            "import sys; from ratc_runtime.preflight import main; status = main(sys.argv[1:]);"
            "assert not {'torch', 'numpy'} & set(sys.modules); sys.exit(status)"
        )
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, env=environment(**extra), capture_output=True, text=True)

    fine = run(str(lock), RAT_BATCH_SIZE="3", RAT_DATA_DIR="/data")
    assert (fine.returncode, fine.stdout) == (0, "")
    assert "RAT_BATCH_SIZE is read when compiling" in fine.stderr
    assert "RAT_DATA_DIR" not in fine.stderr
    (tmp_path / "run.sh").write_text("false\n")
    refused = run(str(lock))
    assert refused.returncode == 1
    assert refused.stderr.startswith("error[R501]: artifact run.sh is not the one that was compiled\n  note: ")
    folder = run(str(tmp_path))
    assert folder.returncode == 1
    assert folder.stderr.startswith("error[R505]")


def test_training_refuses_a_lock_before_importing_torch(tmp_path: Path) -> None:
    lock = write_lock(tmp_path / "compiled")
    # Importing torch would fail here, so the refusal came before it.
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    since = time.perf_counter()
    refused = run_alone(lock, PYTHONPATH=f"{tmp_path}:{RUNTIME}", WORLD_SIZE="4", RANK="0", LOCAL_RANK="0")
    seconds = time.perf_counter() - since
    print(f"refused in {seconds:.2f} s")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error[R502]: the launcher started 4 process(es), the lock says 1")
    quiet = run_alone(lock, WORLD_SIZE="4", RANK="3", LOCAL_RANK="3", TORCHELASTIC_RUN_ID="none")
    assert (quiet.returncode, quiet.stderr) == (1, "")


@pytest.mark.parametrize(
    ("left", "says"),
    [
        ({"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4"}, "the launcher started 4 process(es), the lock says 1"),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, "MASTER_ADDR, MASTER_PORT not"),
        ({"RANK": "3"}, "LOCAL_RANK, WORLD_SIZE is missing"),
        ({"LOCAL_RANK": "3", "WORLD_SIZE": "4"}, "RANK is missing"),
    ],
)
def test_r502_names_variables_that_a_launcher_left_in_the_shell(
    tmp_path: Path, left: dict[str, str], says: str
) -> None:
    refused = run_alone(write_lock(tmp_path), **left)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error[R502]")
    assert says in refused.stderr
    assert "unset RANK" in refused.stderr


def test_r503_checks_the_data_folder_of_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last `--data-dir` counts, then RAT_DATA_DIR, then the lock; what else is said is for training."""
    lock = write_lock(tmp_path / "compiled")
    for name, count in (("few", 1), ("many", 50)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "splits.json").write_text(json.dumps({"train": [str(one) for one in range(count)]}))
    few, many = (str(tmp_path / name) for name in ("few", "many"))
    monkeypatch.setenv("RAT_DATA_DIR", few)
    assert main([str(lock)]) == 1
    assert "error[R503]: the train split has 1 sample," in capsys.readouterr().err
    assert main([str(lock), f"--data-dir={few}", "--fresh", "--data-dir", many, "--output-dir", "out"]) == 0
    monkeypatch.setenv("RAT_DATA_DIR", many)
    assert main([str(lock)]) == 0
    assert main([str(lock), f"--data-dir={many}", f"--data-dir={few}"]) == 1
