"""`--dry-run` prints the files and processes that a command would write or start, and does neither."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ratc import facts
from ratc.cli import COMMAND_LINE, COMMANDS, main

SPEC = (
    "experiment_name: demo\ndata: {data_dir: data}\nmodel: {name: rat}\n"
    "resources: {num_gpus: 0, cpus: 2}\ntraining: {batch_size: 2}\n"
)
STUDY = "tuning: {search_space: {learning_rate: [1e-4, 1e-3]}}\n"
#: What neither writes nor starts anything.
READING = {"schema", "completion", "explain", "diff", "check", "why", "lsp"}
#: A command line of each command that does, and what it must say it would do.
WRITING = {
    "compile": (["compile", "spec.yaml"], ["would write: compiled/demo/local/lock.yaml"]),
    "predict": (["predict", "out", "images", "-o", "masks"], ["ratc_runtime predict out images -o masks"]),
    "evaluate": (["evaluate", "out"], ["ratc_runtime evaluate out"]),
    "summary": (["summary", "out", "-o", "scores.json"], ["ratc_runtime summary out -o scores.json"]),
    "train": (["train", "spec.yaml", "--", "--fresh"], ["would run: compiled/demo/local/run.sh --fresh"]),
    "submit": (
        ["submit", "spec.yaml", "--target", "slurm"],
        ["would write: compiled/demo/slurm/job.sbatch", "would submit: compiled/demo/slurm/job.sbatch"],
    ),
    "tune": (["tune", "study.yaml"], ["0001-"]),
    "tune lr": (
        ["tune", "lr", "spec.yaml"],
        [
            "would run: range test of the learning rate",
            "would write: outputs/demo/learning-rate/curve.json",
            "would write: measured_spec.yaml",
        ],
    ),
    "init": (["init", "new/config.yaml"], ["would write: new/config.yaml", "would write: new/.gitignore"]),
    "import": (["import", "ds.json", "-o", "imported.yaml"], ["would write: imported.yaml"]),
    "sample-data": (["sample-data", "brain", "images"], ["would write: the data set brain into images"]),
    "data check": (["data", "check", "spec.yaml"], ["would read: 64 samples", "would write: data-check/samples.png"]),
    "validate": (["validate", "mistyped.yaml", "--fix"], ["would fix: mistyped.yaml:3:1"]),
    "report": (["report", "spec.yaml", "--no-cards"], ["would write: report.html"]),
    "probe": (["probe", "slurm", "-o", "ours.yaml"], ["would ask: scontrol show config", "would write: ours.yaml"]),
    "trust": (["trust", "."], ["would trust: "]),
}


def commands() -> Iterator[tuple[str, click.Command]]:
    """All commands by their words."""
    context = click.Context(COMMAND_LINE, info_name="ratc")
    for name in (*COMMANDS, "tune lr"):
        found = COMMAND_LINE.get_command(context, name)
        if isinstance(found, click.Group):
            yield from ((f"{name} {second}", one) for second, one in found.commands.items())
        elif found is not None:
            yield name, found


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """All that lies in a folder, with the times of the last change."""
    return {
        str(path.relative_to(folder)): (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns)
        for path in [folder, *folder.rglob("*")]
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RATC_CONFIG", str(tmp_path / "settings"))
    (tmp_path / "data").mkdir()
    (tmp_path / "spec.yaml").write_text(SPEC)
    (tmp_path / "study.yaml").write_text(SPEC + STUDY)
    (tmp_path / "mistyped.yaml").write_text(SPEC.replace("model:", "modle:"))
    (tmp_path / "ds.json").write_text('{"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 1}}')
    return tmp_path


def test_each_command_either_only_reads_or_has_a_dry_run():
    have = {name for name, one in commands() if any("--dry-run" in parameter.opts for parameter in one.params)}
    assert {name for name, _ in commands()} - have == READING
    assert have - WRITING.keys() == {"fit", "profile"}, "tried below, and in ratc/render/timeline"


@pytest.mark.parametrize("name", WRITING)
def test_a_dry_run_changes_no_file_and_starts_no_process(folder, monkeypatch, capsys, name):
    words, said = WRITING[name]
    before = snapshot(folder)
    started = []

    class Watched(subprocess.Popen):
        def __init__(self, words, *given, **more):
            started.append(" ".join(map(str, words)))
            super().__init__(words, *given, **more)

    monkeypatch.setattr("subprocess.Popen", Watched)
    place = words.index("--") if "--" in words else len(words)
    status = main([*words[:place], "--dry-run", *words[place:]])
    told = capsys.readouterr()
    assert status == (1 if name == "validate" else 0), told.err
    for line in said:
        assert line in told.err + told.out
    assert snapshot(folder) == before
    # What lints a script may run.
    assert not [line for line in started if re.search("run.sh|ratc_runtime|sbatch|scontrol|-m ray", line)]


def test_a_dry_run_that_traces_keeps_the_trace_as_its_help_states(folder, monkeypatch, capsys):
    monkeypatch.setenv("RATC_CACHE", str(folder / "cache"))
    (folder / "open.yaml").write_text(
        "experiment_name: demo\ndata: {data_dir: data, image_size: 32}\ntraining: {target_batch_size: 1}\n"
        "model: {name: rat, feature_dims: 16, num_blocks: 1, num_heads: 2}\n"
        "resources: {gpu: a100-80, num_gpus: 1}\n"
    )
    before = snapshot(folder)
    assert main(["compile", "open.yaml", "--dry-run"]) == 0, capsys.readouterr().err
    new = snapshot(folder).keys() - before.keys()
    assert any(name.startswith("cache/traces/") for name in new)
    assert not [name for name in new if name.partition("/")[0] != "cache"]
    capsys.readouterr()
    for name in ("compile", "train", "submit", "tune", "tune lr", "report", "fit", "profile"):
        assert main([*name.split(), "--help"]) == 0
        assert "a model is traced, and its trace cached" in " ".join(capsys.readouterr().out.split())


def test_a_dry_run_over_compiled_files_names_only_changed_ones(folder, capsys):
    assert main(["compile", "spec.yaml"]) == 0
    capsys.readouterr()
    assert main(["compile", "spec.yaml", "--dry-run"]) == 0
    assert capsys.readouterr() == ("", "would write: nothing, all files are up to date\n")
    assert main(["compile", "spec.yaml", "--seed", "3", "--dry-run"]) == 0
    assert "would write: compiled/demo/local/lock.yaml\n" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["init", "spec.yaml"], ["import", "ds.json", "-o", "spec.yaml"]])
def test_a_dry_run_refuses_the_same_as_a_real_run(folder, capsys, words):
    assert main([*words, "--dry-run"]) == 1
    assert "error[R403]: `spec.yaml` exists already" in capsys.readouterr().err


def test_a_dry_run_of_trust_remove_keeps_the_trust(folder, capsys):
    assert main(["trust", "."]) == 0
    before = snapshot(folder)
    assert main(["trust", ".", "--remove", "--dry-run"]) == 0
    assert f"would trust no more: {os.path.realpath('.')}\n" in capsys.readouterr().err
    assert snapshot(folder) == before


def test_a_dry_run_of_profile_measures_nothing(folder, monkeypatch, capsys):
    machine = facts.Machine(1, facts.find_card("a100-80"), 8, None, "this machine")
    monkeypatch.setattr("ratc.probe.local.machine", lambda environment: machine)
    options = ["--num-gpus", "1", "--gpu", "a100-80", "--measure", "-o", "facts.yaml"]
    before = snapshot(folder)
    status = main(["profile", "spec.yaml", *options, "--dry-run"])
    said = capsys.readouterr().err
    assert status == 0, said
    assert "would run: a training step at the micro-batches " in said
    assert "would write: facts.yaml" in said
    assert snapshot(folder) == before
