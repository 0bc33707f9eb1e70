"""`ratc validate --fix` corrects mistyped keys and leaves every other byte as it was."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratc.cli import main
from ratc.diagnostics import Edit, Source, Span
from ratc.yaml import edit as fixes
from tests.effort import examples

GOOD = """\
# what it is for
experiment_name: demo   # a name

training:
    batch_size:   8      # kept
    "epochs": 3
data: {data_dir: data, image_size: 128}
resources: {num_gpus: 0, cpus: 4}
"""


@pytest.fixture
def spec(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Path("spec.yaml")


def fix(capsys, *words: str) -> tuple[int, str]:
    capsys.readouterr()
    status = main(["validate", "spec.yaml", "--fix", *words])
    return status, capsys.readouterr().err


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_fix_changes_only_the_mistyped_keys(spec, capsys, end, mark):
    right = (mark + GOOD.replace("\n", end)).encode()
    wrong = right.replace(b"batch_size", b"batch_sise").replace(b'"epochs"', b'"epohcs"')
    spec.write_bytes(wrong.replace(b"experiment_name", b"experment_name").replace(b"image_size", b"imgae_size"))
    status, said = fix(capsys)
    assert status == 0, said
    assert spec.read_bytes() == right.replace(b'"epochs"', b"epochs")
    assert said.count("fixed: spec.yaml:") == 4
    assert "`batch_sise` is `batch_size` now" in said


def test_fix_does_not_write_a_valid_spec(spec, capsys):
    spec.write_text(GOOD)
    before = spec.stat()
    assert fix(capsys)[0] == 0
    assert (spec.stat().st_mtime_ns, spec.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


@pytest.mark.parametrize(
    "wrong",
    [
        GOOD + "zzz: 1\n",
        GOOD.replace('    "epochs": 3', "    batch_sise: 9"),
        GOOD.replace("batch_size", "batch"),
    ],
    ids=["like nothing", "given already", "too far away"],
)
def test_fix_leaves_ambiguous_errors(spec, capsys, wrong):
    spec.write_text(wrong)
    assert fix(capsys)[0] == 1
    assert spec.read_text() == wrong


def test_fix_corrects_keys_inside_a_corrected_section(spec, capsys):
    spec.write_text(GOOD.replace("training:", "trainig:").replace("batch_size", "batch_sise"))
    assert fix(capsys)[0] == 0
    assert "training:\n    batch_size:   8      # kept" in spec.read_text()


def test_fix_corrects_overlays_but_not_variables(spec, capsys, monkeypatch):
    spec.write_text(GOOD)
    overlay = Path("slurm_spec.yaml")
    overlay.write_text("training: {epohcs: 5}\n")
    monkeypatch.setenv("RAT_EPOHCS", "5")
    fix(capsys, "--target", "slurm")
    assert overlay.read_text() == "training: {epochs: 5}\n"


def test_fix_keeps_symlink_and_file_mode(spec, capsys):
    real = Path("real.yaml")
    real.write_text(GOOD.replace("batch_size", "batch_sise"))
    real.chmod(0o640)
    spec.symlink_to("real.yaml")
    assert fix(capsys)[0] == 0
    assert spec.is_symlink()
    assert real.read_text() == GOOD
    assert real.stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user to be refused")
def test_unwritable_spec_is_reported(spec, capsys, monkeypatch):
    wrong = GOOD.replace("batch_size", "batch_sise")
    spec.write_text(wrong)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    status, said = fix(capsys)
    assert status == 1
    assert "error[R403]: cannot fix `spec.yaml`: Permission denied" in said
    assert spec.read_text() == wrong


words = st.text(st.sampled_from("ab: \n\r\té\x85"), max_size=60)


@settings(max_examples=examples(300), deadline=None)
@given(words, st.lists(st.tuples(st.integers(1, 6), st.integers(1, 8), st.integers(0, 4), words), max_size=4))
def test_applied_edits_change_only_their_spans(text, wanted):
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x85", "\n")
    source = Source("x", lines)
    edits = [Edit(Span(source, line, column, line, column + many), new) for line, column, many, new in wanted]
    out, done = fixes.apply(text, edits)
    assert len(out) == len(text) + sum(len(edit.text) - (edit.span.end_column - edit.span.column) for edit in done)
    assert set(done) <= set(edits)
    if not done:
        assert out == text
    same, _ = fixes.apply(
        text,
        [
            Edit(edit.span, source.line(edit.span.line)[edit.span.column - 1 : edit.span.end_column - 1])
            for edit in done
        ],
    )
    assert same == text


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("image_size: 64x64, x", "image_size: [64, 64], x"),
        ("image_size: (48, 64), x", "image_size: [48, 64], x"),
        ('learning_rate: "1e-3"', "learning_rate: 1e-3"),
        ('batch_size: "8"', "batch_size: 8"),
        ("mixed_precision: yes", "mixed_precision: true"),
        ("loss: own.losses.Focal", "loss: own.losses:Focal"),
        ("loss: own/losses.py:Focal", "loss: own.losses:Focal"),
        ("name: own.net.Small", "name: own.net:Small"),
        ("callbacks: [own.Freeze]", "callbacks: [own:Freeze]"),
        ("account: 0123", 'account: "0123"'),
        ("walltime: 36h", 'walltime: "36:00:00"'),
    ],
)
def test_value_of_the_wrong_form_is_suggested_and_fixed(spec, capsys, wrong, right):
    section = {"image_size": "data", "account": "resources", "walltime": "resources", "name": "model"}.get(
        wrong.partition(":")[0], "training"
    )
    right, wrong = right.removesuffix(", x"), wrong.removesuffix(", x")
    data = "{data_dir: data}" if section != "data" else None
    text = "experiment_name: demo\n" + (f"data: {data}\n" if data else "")
    text += f"{section}:\n  {wrong}  # kept\n" + ("" if data else "  data_dir: data\n")
    spec.write_text(text)
    capsys.readouterr()
    assert main(["validate", "spec.yaml"]) == 1
    shown = right.partition(": ")[2]
    assert f"help: write `{shown if section == 'data' else shown.strip('[]')}`" in capsys.readouterr().err
    fix(capsys)
    assert spec.read_text() == text.replace(wrong, right)


@pytest.mark.parametrize("wrong", ['learning_rate: &rate "1e-3"', "walltime: 24", 'walltime: "90"', "walltime: 1.5"])
def test_ambiguous_value_or_yaml_anchor_is_not_fixed(spec, capsys, wrong):
    section = "resources" if "walltime" in wrong else "training"
    spec.write_text(text := f"experiment_name: demo\ndata: {{data_dir: data}}\n{section}: {{{wrong}}}\n")
    assert fix(capsys)[0] == 1
    assert spec.read_text() == text
