"""A spec with an own program (`entrypoint`): its placeholders, and its behaviour in commands other than `compile`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ratc_runtime.config.program_lock import ProgramLock, read_any

import ratc
from ratc import program
from ratc.cli import main
from ratc.diagnostics import has_errors

SPEC = """experiment_name: demo
entrypoint: {script: train.py, args: ["${micro_batch_size}"]}
training: {target_batch_size: 16, batch_size: 4}
resources: {gpu: a100-80, num_gpus: 1, cpus: 4}
"""
VALUES = {name: name.upper() for name in (*program.HANDED, *program.SWITCHES)}


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The spec beside a script that must not be run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("open('ran', 'w')\n")
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return path


@given(st.text(alphabet=st.characters(blacklist_characters="$")))
def test_text_without_a_dollar_sign_is_unchanged(text: str) -> None:
    assert program.filled(text, VALUES) == text
    assert program.placeholders(text) == []


@given(st.lists(st.sampled_from([*VALUES, *program.AT_START]), max_size=5), st.text("a -=", max_size=5))
def test_placeholders_are_found_in_order_and_filled_once(names: list[str], between: str) -> None:
    text = between.join(f"${{{name}}}" for name in names)
    assert program.placeholders(text) == names
    wanted = between.join(f"${{{name}}}" if name in program.AT_START else VALUES[name] for name in names)
    assert program.filled(text, VALUES) == wanted


@given(st.text(alphabet="${}ab"))
def test_doubled_dollar_sign_is_no_placeholder(text: str) -> None:
    assert program.placeholders(text.replace("$", "$$")) == []
    assert program.filled(text.replace("$", "$$"), {}) == text.replace("$", "$$")


@pytest.mark.parametrize(("value", "text"), [(True, "true"), (False, "false"), (None, ""), (1e-05, "1e-05"), (3, "3")])
def test_value_is_written_as_one_argument(value: Any, text: str) -> None:
    assert program.word(value) == text


@pytest.mark.parametrize("command", [["fit"], ["profile"], ["profile", "--measure"], ["tune", "lr"], ["data", "check"]])
def test_commands_of_the_built_in_loop_are_refused(
    spec: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert main([*command, str(spec)]) == 1
    said = capsys.readouterr().err
    assert "error[R245]" in said
    assert "spec.yaml:2:" in said
    assert not Path("ran").exists()


def test_fit_from_python_is_refused(spec: Path) -> None:
    assert [item.code for item in ratc.fit(ratc.CompileRequest(str(spec))).diagnostics] == ["R245"]


@pytest.mark.parametrize(
    "command", [["train"], ["train", "--dry-run"], ["compile"], ["explain"], ["validate"], ["report"]]
)
def test_program_of_an_untrusted_folder_is_not_started(
    spec: Path, untrusted: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    spec.write_text(SPEC.replace("gpu: a100-80, num_gpus: 1", "num_gpus: 0"))
    assert main([*command, str(spec)]) == (command[0] == "train")
    assert ("error[R447]" in capsys.readouterr().err) == (command[0] == "train")
    assert not Path("ran").exists()


def test_trust_message_shows_the_whole_command(spec: Path, untrusted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec.write_text(SPEC.replace("script: train.py, args:", "command: [bash, -c, 'rm -rf x'], args:"))
    assert main(["train", str(spec)]) == 1
    said = capsys.readouterr().err
    assert "bash -c 'rm -rf x' " in said
    assert "spec.yaml:2:" in said


def test_report_of_a_program_has_no_model_values(spec: Path) -> None:
    assert main(["report", str(spec)]) == 0
    page = Path("report.html").read_text()
    assert "the spec does not describe the step of the program" in page
    assert "launcher torchrun" in page
    assert "None at" not in page
    assert "feature_dims" not in page


def test_defaults_of_the_built_in_loop_are_not_explained(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(spec), "model.name"]) == 1
    assert "R108" in capsys.readouterr().err
    assert main(["explain", str(spec), "micro_batch_size"]) == 0
    assert main(["explain", str(spec), "training.micro_batch_size"]) == 0
    assert program.OF_A_PROGRAM in capsys.readouterr().out


def test_changed_argument_of_a_program_is_reported_once(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("other.yaml").write_text(SPEC.replace("batch_size: 4", "batch_size: 8"))
    assert main(["diff", str(spec), "other.yaml"]) in (0, 1)
    said = capsys.readouterr().out
    assert "entrypoint.args" in said
    assert "entrypoint.plan" not in said
    assert "up to the program" in said


@pytest.mark.parametrize("key", ["script", "module", "command"])
def test_sweep_over_the_program_itself_is_refused(spec: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    """Its code was looked at when the folder was trusted, and the lock has its digests."""
    value = "[[a], [b]]" if key == "command" else "[a, b]"
    spec.write_text(SPEC + f"sweep: {{grid: {{entrypoint.{key}: {value}}}}}\n")
    assert main(["validate", str(spec)]) == 1
    assert "error[R332]" in capsys.readouterr().err


def test_keys_of_the_built_in_loop_are_only_a_warning(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec.write_text(
        SPEC.replace("batch_size: 4", "batch_size: 4, optimizer: adamw, learning_rate: 0.5") + "data: {image_size: 7}\n"
    )
    assert main(["validate", str(spec)]) == 0
    said = capsys.readouterr().err
    assert said.count("warning[R207]") == 2
    assert "R241" not in said


@pytest.mark.parametrize("key", ["script: 'a${seed}.py'", "command: ['${output_dir}/x', a]"])
def test_placeholder_in_the_program_name_is_refused(spec: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    spec.write_text(SPEC.replace("script: train.py", key))
    assert main(["compile", str(spec)]) == 1
    said = capsys.readouterr().err
    assert "error[R243]" in said
    assert "stands in the name of the program" in said
    assert f"spec.yaml:2:{spec.read_text().splitlines()[1].index('$') + 1}" in said


def test_a_misspelt_placeholder_is_marked_once_in_the_arguments(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = 'args: ["${output_dirr}", "a${output_dirr}", "${sed}"]'
    spec.write_text(re.sub(r"args: \[.*\]", lambda _: args, spec.read_text()))
    assert main(["validate", str(spec)]) == 1
    said = capsys.readouterr().err
    assert said.count("error[R243]: `${output_dirr}`") == 1
    assert said.count("error[R243]: `${sed}`") == 1


@pytest.mark.parametrize("text", ["$micro_batch_size", "${micro_batch_size", "--bs=$micro_batch_size"])
def test_placeholder_without_its_braces_is_a_warning(spec: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    written = spec.read_text()
    spec.write_text(re.sub(r"args: \[.*\]", f'args: ["{text}", "$$micro_batch_size", "$HOME", "${{HOME"]', written))
    assert spec.read_text() != written
    assert main(["validate", str(spec)]) == 0
    said = capsys.readouterr().err
    assert said.count("warning[R243]") == 1
    assert "write `${micro_batch_size}`" in said


def test_other_commands_accept_the_spec_and_its_compiled_folder(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that refuse it are in the tests above."""
    assert main(["compile", str(spec), "-o", "out"]) == 0
    for words in (
        *(["check", "out"], ["diff", "out", str(spec)], ["diff", str(spec), "out", "--format", "markdown"]),
        *(["explain", "out", "seed"], ["validate", str(spec), "--fix"], ["compile", str(spec), "-o", "out", "--check"]),
        ["report", "out"],
    ):
        assert main(words) == 0, (words, capsys.readouterr().err)
    found = ratc.compile(ratc.CompileRequest(str(spec)))
    assert [file.path for file in found.artifacts or ()] == ["run.sh", "lock.yaml"]
    assert not has_errors(ratc.check("out"))
    assert not ratc.diff(str(spec), "out").comparison.changes
    assert ratc.load_config_with_auto_optimization(str(spec))["entrypoint"]["args"] == ["4"]
    assert not Path("ran").exists()


def test_sweep_of_a_program_compiles_to_an_array(spec: Path) -> None:
    spec.write_text(SPEC.replace("gpus: 1,", "gpus: 1, walltime: '1:00:00',") + "sweep: {grid: {seed: [1, 2]}}\n")
    assert main(["compile", str(spec), "--target", "slurm", "-o", "out"]) == 0
    assert sorted(path.name for path in Path("out/points").iterdir()) == ["0001", "0002"]
    lock = read_any(Path("out/points/0002/lock.yaml"))
    assert isinstance(lock, ProgramLock)
    assert lock.handed()["seed"] == 2


def test_study_of_a_program_is_refused(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec.write_text(SPEC + "tuning: {search_space: {seed: {choices: [1, 2]}}, metric: loss}\n")
    assert main(["tune", str(spec)]) == 1
    assert "error[R245]: `tuning` belongs to the built-in loop" in capsys.readouterr().err
