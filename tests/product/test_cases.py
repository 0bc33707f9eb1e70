"""One loop over the golden folders of `tests/cases`.

A folder holds `spec.yaml`, the files beside it, and optionally `args.txt` (options, split as a shell would). It expects
the files of `expected/`, the text of `stderr.txt`, or both; a folder that expects nothing is a mistake. After an
intended change, `make golden` writes them again. Read the difference: a golden proves unchanged, not correct.
"""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from ratc import consumers
from ratc.cli import main
from ratc.targets.artifact import Artifact
from tests.places import CASES

OUTPUT = "out"


def run_case(case: Path, folder: Path, capsys, monkeypatch) -> tuple[int, str, dict[str, str]]:
    """Compile a copy of the case; returns the exit status, what was said, and the files."""
    shutil.copytree(case, folder, ignore=shutil.ignore_patterns("expected", "stderr.txt"))
    monkeypatch.chdir(folder)
    options = folder / "args.txt"
    arguments = shlex.split(options.read_text()) if options.exists() else []
    status = main(["compile", "spec.yaml", "-o", OUTPUT, *arguments])
    said = capsys.readouterr().err
    return status, said, texts(folder / OUTPUT)


def texts(folder: Path) -> dict[str, str]:
    """The text of every file in a folder and below it, by its path there."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in files}


@pytest.mark.parametrize("case", sorted(path.name for path in CASES.iterdir() if path.is_dir()))
def test_a_case_gives_its_expected_files_and_messages(case, tmp_path, capsys, monkeypatch):
    expected, words = CASES / case / "expected", CASES / case / "stderr.txt"
    assert expected.is_dir() or words.is_file(), "the case expects nothing"
    status, said, files = run_case(CASES / case, tmp_path / "case", capsys, monkeypatch)
    assert said == (words.read_text() if words.is_file() else ""), "what is said differs"
    assert status == (0 if expected.is_dir() else 1)
    assert files == texts(expected)


def test_bash_reads_every_golden_script():
    """A compilation has it read scripts with lines of the spec's own only."""
    scripts = [
        path for path in sorted(CASES.glob("*/expected/**/*")) if path.is_file() and path.read_bytes()[:2] == b"#!"
    ]
    assert {path.name for path in scripts} >= {"run.sh", "node.sh", "job.sbatch", "job.lsf"}
    for path in scripts:
        done = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), path


def test_compiling_new_files_starts_no_process(tmp_path, capsys, monkeypatch):
    def none(*_args, **_options):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", none)
    monkeypatch.setattr(os, "posix_spawn", none)
    case = CASES / "product-document-a100x8"
    status, _, files = run_case(case, tmp_path / "case", capsys, monkeypatch)
    assert status == 0
    assert {"lock.yaml", "accelerate.yaml"} < set(files)


@pytest.mark.slow(every=True)
@pytest.mark.parametrize(("package", "name"), [("accelerate", "accelerate.yaml"), ("deepspeed", "deepspeed.json")])
def test_the_reading_package_accepts_every_golden_file(package, name):
    """And refuses one that is wrong."""
    pytest.importorskip(package)
    files = sorted(CASES.glob(f"*/expected/**/{name}"))
    worlds = [yaml.safe_load((file.parent / "lock.yaml").read_text())["parallel"]["world_size"] for file in files]
    given = [(file.read_text(), world) for file, world in zip(files, worlds, strict=True)]
    answers = consumers.ask(package, [*given, ("[]", 1)])
    assert len(given) > 5
    assert {answers.get(pair, "") for pair in given} == {""}
    assert answers["[]", 1]


def test_a_file_that_its_package_refuses_gives_a_finding_with_its_message(monkeypatch):
    monkeypatch.setattr(consumers, "find_spec", lambda name: name)
    monkeypatch.setattr(consumers, "ask", lambda package, given: dict.fromkeys(given, f"no, says {package}"))
    files = [
        Artifact("a.yaml", "a: 1\n", "accelerate"),
        Artifact("d.json", "{}", "deepspeed"),
        Artifact("t", "", "text"),
    ]
    found = consumers.verify([(f"at/{one.path}", one, 2) for one in files])
    assert [(item.code, item.notes, item.message.split("`")[1]) for item in found] == [
        ("R402", ("no, says accelerate",), "at/a.yaml"),
        ("R402", ("no, says deepspeed",), "at/d.json"),
    ]


def test_packages_read_the_files_only_with_verify(tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(consumers, "find_spec", lambda name: name)
    monkeypatch.setattr(consumers, "ask", lambda package, given: asked.append(package) or dict.fromkeys(given, ""))
    run_case(CASES / "product-document-a100x8", tmp_path / "case", capsys, monkeypatch)
    assert main(["check", OUTPUT]) == 0
    assert asked == []
    options = ["--facts", "facts.yaml", "--batch-size", "4", "--verify"]
    assert main(["compile", "spec.yaml", "-o", OUTPUT, *options]) == 0
    assert sorted(asked) == ["accelerate", "deepspeed"]
    assert "--verify" not in "".join(texts(Path(OUTPUT)).values()), "files do not depend on it"
    assert main(["check", OUTPUT, "--verify"]) == 0
    assert len(asked) == 4


def test_a_refused_file_is_not_written_and_fails_a_check(tmp_path, capsys, monkeypatch):
    run_case(CASES / "product-document-a100x8", tmp_path / "case", capsys, monkeypatch)
    monkeypatch.setattr(consumers, "find_spec", lambda name: name)
    monkeypatch.setattr(consumers, "ask", lambda package, given: dict.fromkeys(given, "no"))
    options = ["--facts", "facts.yaml", "--batch-size", "4"]
    assert main(["compile", "spec.yaml", "-o", "new", *options, "--verify"]) == 1
    assert not Path("new").exists()
    assert main(["check", OUTPUT, "--verify"]) == 1
    assert f"deepspeed cannot read the `{OUTPUT}/deepspeed.json`" in capsys.readouterr().err


def test_r441_if_the_reading_package_is_missing(tmp_path, capsys, monkeypatch):
    run_case(CASES / "product-document-a100x8", tmp_path / "case", capsys, monkeypatch)
    monkeypatch.setattr(consumers, "find_spec", lambda name: None)
    assert main(["check", OUTPUT, "--verify"]) == 0
    assert capsys.readouterr().err.count("warning[R441]") == 2


def test_compiling_again_writes_no_file(tmp_path, capsys, monkeypatch):
    case = CASES / "product-document-a100x8"
    run_case(case, tmp_path / "case", capsys, monkeypatch)
    before = {path: path.stat().st_mtime_ns for path in Path(OUTPUT).iterdir()}
    assert main(["compile", "spec.yaml", "-o", OUTPUT, "--facts", "facts.yaml", "--batch-size", "4"]) == 0
    assert {path: path.stat().st_mtime_ns for path in Path(OUTPUT).iterdir()} == before
    assert main(["compile", "spec.yaml", "-o", OUTPUT, "--facts", "facts.yaml", "--batch-size", "4", "--check"]) == 0


@pytest.mark.parametrize("name", ["run.sh", "lock.yaml", "accelerate.yaml", "deepspeed.json"])
def test_check_reports_the_line_of_one_changed_byte(name, tmp_path, capsys, monkeypatch):
    run_case(CASES / "product-document-a100x8", tmp_path / "case", capsys, monkeypatch)
    path = Path(OUTPUT) / name
    text = path.read_text().splitlines()
    text[2] += " "
    path.write_text("\n".join(text) + "\n")
    changed = path.read_bytes()
    assert main(["compile", "spec.yaml", "-o", OUTPUT, "--facts", "facts.yaml", "--batch-size", "4", "--check"]) == 1
    assert f"{OUTPUT}/{name}:3:1" in capsys.readouterr().err
    assert path.read_bytes() == changed, "--check writes nothing"
    path.unlink()
    assert main(["compile", "spec.yaml", "-o", OUTPUT, "--facts", "facts.yaml", "--batch-size", "4", "--check"]) == 1
    assert "is missing" in capsys.readouterr().err


def test_a_file_that_the_plan_no_longer_has_is_removed(tmp_path, capsys, monkeypatch):
    run_case(CASES / "product-document-a100x8", tmp_path / "case", capsys, monkeypatch)
    assert (Path(OUTPUT) / "deepspeed.json").exists()
    (Path(OUTPUT) / "mine.txt").write_text("not ratc's")
    arguments = [
        "compile",
        "spec.yaml",
        "-o",
        OUTPUT,
        "--facts",
        "facts.yaml",
        "--batch-size",
        "4",
        "--set",
        "training.deepspeed=false",
    ]
    assert main([*arguments, "--check"]) == 1
    assert main(arguments) == 0
    assert sorted(path.name for path in Path(OUTPUT).iterdir()) == [
        "accelerate.yaml",
        "lock.yaml",
        "mine.txt",
        "run.sh",
    ]
