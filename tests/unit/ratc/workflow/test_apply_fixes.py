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
def test_mistyped_keys_are_corrected_and_nothing_else(spec, capsys, end, mark):
    right = (mark + GOOD.replace("\n", end)).encode()
    wrong = right.replace(b"batch_size", b"batch_sise").replace(b'"epochs"', b'"epohcs"')
    spec.write_bytes(wrong.replace(b"experiment_name", b"experment_name").replace(b"image_size", b"imgae_size"))
    status, said = fix(capsys)
    assert status == 0, said
    assert spec.read_bytes() == right.replace(b'"epochs"', b"epochs")
    assert said.count("fixed: spec.yaml:") == 4
    assert "`batch_sise` is `batch_size` now" in said


def test_a_right_spec_is_not_touched(spec, capsys):
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
def test_what_is_not_certain_is_left(spec, capsys, wrong):
    spec.write_text(wrong)
    assert fix(capsys)[0] == 1
    assert spec.read_text() == wrong


def test_a_section_that_is_corrected_lets_more_be_seen(spec, capsys):
    spec.write_text(GOOD.replace("training:", "trainig:").replace("batch_size", "batch_sise"))
    assert fix(capsys)[0] == 0
    assert "training:\n    batch_size:   8      # kept" in spec.read_text()


def test_overlays_are_corrected_and_facts_and_variables_are_not(spec, capsys, monkeypatch):
    spec.write_text(GOOD)
    overlay = Path("slurm_spec.yaml")
    overlay.write_text("training: {epohcs: 5}\n")
    monkeypatch.setenv("RAT_EPOHCS", "5")
    fix(capsys, "--target", "slurm")
    assert overlay.read_text() == "training: {epochs: 5}\n"


def test_a_link_stays_a_link_and_the_mode_stays(spec, capsys):
    real = Path("real.yaml")
    real.write_text(GOOD.replace("batch_size", "batch_sise"))
    real.chmod(0o640)
    spec.symlink_to("real.yaml")
    assert fix(capsys)[0] == 0
    assert spec.is_symlink()
    assert real.read_text() == GOOD
    assert real.stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user to be refused")
def test_a_file_that_cannot_be_written_is_named(spec, capsys, monkeypatch):
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
def test_applied_edits_change_their_words_alone(text, wanted):
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
def test_a_value_of_the_wrong_form_is_shown_and_written_in_the_right_form(spec, capsys, wrong, right):
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
def test_what_can_be_read_in_two_ways_or_is_used_elsewhere_is_not_fixed(spec, capsys, wrong):
    section = "resources" if "walltime" in wrong else "training"
    spec.write_text(text := f"experiment_name: demo\ndata: {{data_dir: data}}\n{section}: {{{wrong}}}\n")
    assert fix(capsys)[0] == 1
    assert spec.read_text() == text
