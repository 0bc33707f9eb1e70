"""The digest of the start weights of a spec: its source, and the effect of changed weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import yaml

from ratc.cli import main

SPEC = """\
experiment_name: demo
data: {{data_dir: data}}
training: {{batch_size: 2, init_from: {{path: {path}{more}}}}}
resources: {{num_gpus: 0, cpus: 2}}
"""


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(path: str, more: str = "", name: str = "spec.yaml") -> str:
    Path(name).write_text(SPEC.format(path=path, more=more))
    return name


def write_run(content: bytes, folder: str = "outputs/first") -> Path:
    """The output folder of a run with a best checkpoint, as far as a compiler sees it."""
    checkpoints = Path(folder, "checkpoints")
    checkpoints.mkdir(parents=True, exist_ok=True)
    (checkpoints / "epoch-0003-step-000000.pt").write_bytes(content)
    (checkpoints / "epoch-0004-step-000000.pt").write_bytes(b"newer")
    (checkpoints / "best.pt").unlink(missing_ok=True)
    (checkpoints / "best.pt").symlink_to("epoch-0003-step-000000.pt")
    return checkpoints


def started_from() -> dict[str, object]:
    found = yaml.safe_load(Path("compiled/demo/local/lock.yaml").read_text())["training"]["init_from"]
    assert isinstance(found, dict)
    return found


def test_lock_has_the_weights_file_and_its_digest(capsys: pytest.CaptureFixture[str]) -> None:
    write_run(b"weights")
    assert main(["compile", write("outputs/first", ', skip: ["head.*"]')]) == 0
    assert started_from() == {
        "path": "outputs/first/checkpoints/epoch-0003-step-000000.pt",
        "digest": "sha256:" + hashlib.sha256(b"weights").hexdigest(),
        "strict": True,
        "load": ["*"],
        "skip": ["head.*"],
    }
    assert main(["check", "."]) == 0
    write_run(b"others")
    capsys.readouterr()
    assert main(["check", "."]) == 1
    assert "digest" in capsys.readouterr().err
    assert main(["diff", "compiled/demo/local", "spec.yaml"]) == 1
    told = capsys.readouterr().out
    assert "training starts from other weights" in told
    assert "breaks resume" in told


def test_moved_weights_with_the_same_digest_do_not_break_resume(capsys: pytest.CaptureFixture[str]) -> None:
    Path("one.safetensors").write_bytes(b"same")
    Path("two.safetensors").write_bytes(b"same")
    write("one.safetensors", name="one.yaml"), write("two.safetensors", name="two.yaml")
    assert main(["diff", "one.yaml", "two.yaml"]) == 1
    told = capsys.readouterr().out
    assert "the weights lie in another file or folder" in told
    assert "breaks resume" not in told


def test_given_digest_replaces_a_missing_weights_file(capsys: pytest.CaptureFixture[str]) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()
    assert main(["compile", write("/cluster/weights.pt", f', sha256: "{digest}"')]) == 0
    assert started_from()["digest"] == f"sha256:{digest}"
    Path("weights.pt").write_bytes(b"others")
    assert main(["compile", write("weights.pt", f', sha256: "{digest}"')]) == 1
    assert "R367" in capsys.readouterr().err
    assert main(["compile", write("nowhere.pt")]) == 1
    assert "the weights of `training.init_from` are not there: `nowhere.pt`" in capsys.readouterr().err


def test_sweep_points_may_start_from_different_weights() -> None:
    Path("one.pt").write_bytes(b"1")
    Path("two.pt").write_bytes(b"2")
    spec = write("one.pt") and Path("spec.yaml")
    spec.write_text(spec.read_text() + "sweep: {grid: {training.init_from.path: [one.pt, two.pt]}}\n")
    Path("clusters").mkdir()
    Path("clusters/ours.yaml").write_text(
        "name: ours\nscheduler: slurm\nnode_types:\n  plain: {gpus_per_node: 0, cpus: 4, memory: 16GB}\n"
        'partitions:\n  cpu: {nodes: {plain: 2}, max_walltime: "24:00:00"}\n'
    )
    spec.write_text(spec.read_text().replace("cpus: 2", 'cpus: 2, cluster: ours, walltime: "01:00:00"'))
    assert main(["compile", "spec.yaml", "--target", "slurm"]) == 0
    points = sorted(Path("compiled/demo/slurm/points").glob("*/lock.yaml"))
    digests = [yaml.safe_load(point.read_text())["training"]["init_from"]["digest"] for point in points]
    assert digests == ["sha256:" + hashlib.sha256(content).hexdigest() for content in (b"1", b"2")]
