"""A file of another kind gives one error that names its kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from ratc.cli import main

SPEC = "experiment_name: demo\ndata: {data_dir: data}\ntraining: {batch_size: 2}\nresources: {num_gpus: 0, cpus: 2}\n"
FACTS = "gpus_per_node: 0\ncpus: 8\n"
CLUSTER = "name: ours\nscheduler: slurm\nnode_types: {cpu: {cpus: 8}}\n"
FILES = {
    "spec.yaml": SPEC,
    "facts.yaml": FACTS,
    "cluster.yaml": CLUSTER,
    "accelerate.yaml": "compute_environment: LOCAL_MACHINE\nnum_processes: 2\n",
    "deepspeed.json": '{"zero_optimization": {"stage": 2}, "train_batch_size": 8}',
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)
    assert main(["compile", "spec.yaml", "-o", "out"]) == 0
    Path("out/lock.yaml").rename("kept.yaml")
    capsys.readouterr()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["validate", "kept.yaml"], "`kept.yaml` is a lock of ratc, not a spec"),
        (["compile", "kept.yaml"], "`kept.yaml` is a lock of ratc, not a spec"),
        (["validate", "facts.yaml"], "`facts.yaml` is hardware facts, not a spec"),
        (["fit", "cluster.yaml"], "`cluster.yaml` is a cluster's facts, not a spec"),
        (["validate", "accelerate.yaml"], "`accelerate.yaml` is a configuration of Accelerate, not a spec"),
        (["validate", "deepspeed.json"], "`deepspeed.json` is a configuration of DeepSpeed, not a spec"),
        (["compile", "spec.yaml", "--facts", "spec.yaml"], "`spec.yaml` is a spec, not hardware facts"),
        (["compile", "spec.yaml", "--facts", "cluster.yaml"], "is a cluster's facts, not hardware facts"),
        (
            ["compile", "spec.yaml", "--target", "slurm", "--set", "resources.cluster=./facts.yaml"],
            "is hardware facts, not a cluster's facts",
        ),
    ],
)
def test_file_of_another_kind_gives_only_an_error_that_names_it(
    folder: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 1
    err = capsys.readouterr().err
    assert err.count("error[") == 1, err
    assert "error[R109]" in err
    assert told in err
