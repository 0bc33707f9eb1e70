"""`ratc validate` reports the errors of `ratc compile` and looks up the names in a spec, without running its code."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from ratc.cli import main
from tests.places import CASES
from tests.product.test_codes import blocks, explanations

OWN = """\
from torch import nn
from dataclasses import dataclass

open("ran", "w")

class Base(nn.Module):
    def __init__(self, width, depth=2, *, bias=True):
        pass

class Small(Base):
    pass

class Plain(nn.Module):
    pass

class Free(nn.Module):
    def __init__(self, first, **others):
        pass

@dataclass
class Record:
    width: int

class Pairs:
    def __init__(self, data_dir, split, level=1):
        pass

def loss(gamma=2.0):
    return None

def dice(logits, target):
    return None

if True:
    Alias = Small
"""


def codes(said: str) -> set[tuple[str, str]]:
    return set(re.findall(r"^(error|warning)\[(R\d{3})\]", said, re.MULTILINE))


@pytest.fixture
def validate(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("images", "masks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data/splits.json").touch()
    (tmp_path / "own.py").write_text(OWN)

    def run(more: str, *words: str) -> tuple[int, str]:
        text = "experiment_name: demo\n" + ("" if "data:" in more else "data: {data_dir: data}\n") + more + "\n"
        (tmp_path / "spec.yaml").write_text(text)
        status = main(["validate", "spec.yaml", *words])
        assert not (tmp_path / "ran").exists(), "validate ran the user's code"
        return status, capsys.readouterr().err

    return run


@pytest.mark.parametrize("case", sorted(path.name for path in CASES.iterdir() if path.name.startswith("error-")))
def test_validate_reports_the_same_errors_as_compile_in_the_error_cases(case, tmp_path, monkeypatch, capsys):
    shutil.copytree(CASES / case, tmp_path / "case")
    monkeypatch.chdir(tmp_path / "case")
    options = Path("args.txt")
    words = shlex.split(options.read_text()) if options.exists() else []
    expected = {item for item in codes(Path("stderr.txt").read_text()) if item[0] == "error"}
    assert main(["validate", "spec.yaml", *words]) == 1
    assert {item for item in codes(capsys.readouterr().err) if item[0] == "error"} == expected


@pytest.mark.parametrize(
    ("entrypoint", "code"),
    [
        ("{script: nope.py}", "R235"),
        ("{script: data}", "R235"),
        ("{module: nope.train}", "R236"),
        ("{command: [./nope.sh]}", "R235"),
        ("{script: ~/nope.py}", "R235"),
        ("{command: [./own.py]}", "R235"),
        ("{module: json}", "R236"),
        ("{script: own.py}", None),
        ("{module: own}", None),
        ("{command: [nope]}", None),
        ("{command: [bash, nope.sh]}", "R235"),
        ("{command: [python3.11, nope.py, a]}", "R235"),
        ("{command: [python, own.py]}", None),
        ("{command: [bash, -c, nope.sh]}", None),
        ("{module: space}", None),
    ],
)
def test_an_entrypoint_that_is_not_here_is_a_warning(validate, entrypoint, code):
    Path("space").mkdir()
    Path("space/__main__.py").touch()
    settings = "training: {target_batch_size: 8, batch_size: 4}\nresources: {num_gpus: 0}"
    status, said = validate(f"entrypoint: {entrypoint}\n{settings}")
    assert (status, codes(said)) == (0, {("warning", code)} if code else set())


def test_setup_lines_that_are_no_whole_commands_are_an_error(validate):
    status, said = validate("resources: {num_gpus: 0, cpus: 2}\nenvironment: {setup: [fi]}")
    assert (status, codes(said)) == (1, {("error", "R407")})


def examples() -> list[str]:
    """The codes whose failing example is a spec that is validated or compiled."""
    last = {code: [text for kind, _, text in blocks(code, "Fails") if kind == "sh"] for code in explanations()}
    return [
        code
        for code, commands in last.items()
        if blocks(code, "Fails")
        and (not commands or re.match("ratc (validate|compile) (?!.* -o )", commands[-1].splitlines()[-1]))
    ]


@pytest.mark.parametrize("code", examples())
def test_errors_of_validate_are_errors_of_compile(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for kind, info, text in blocks(code, "Fails"):
        if kind == "yaml":
            (tmp_path / f"{info or 'spec'}.yaml").parent.mkdir(exist_ok=True)
            (tmp_path / f"{info or 'spec'}.yaml").write_text(text)
    lines = "".join(text for kind, _, text in blocks(code, "Fails") if kind == "sh").splitlines()
    for line in lines[:-1]:
        if line.startswith("ratc "):
            main(shlex.split(line)[1:])
        else:
            subprocess.run(["bash", "-c", line], check=True)
    words = shlex.split(lines[-1])[2:] if lines else ["spec.yaml"]
    words += ["--facts", "facts.yaml"] if not lines and (tmp_path / "facts.yaml").exists() else []
    shared = [word for word in words if word not in ("--check", "--verify", "--no-predict", "--fix")]
    capsys.readouterr()
    refused = []
    for command in (["validate", *shared], ["compile", *shared, "--no-predict"]):
        main(command)
        refused.append({found for found in codes(capsys.readouterr().err) if found[0] == "error"})
    assert refused[0] <= refused[1], "compile takes what validate refuses"


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ("resources: {gpu: gtx-none, num_gpus: 1}", "R301"),
        ("resources: {gpu: a100, num_gpus: 1}", "R301"),
        ("resources: {gpu: h100, num_gpus: 3}\ntraining: {target_batch_size: 8}", "R304"),
        ("resources: {num_gpus: 0}\ntraining: {epochs: 1, warmup_epochs: 3}", "R313"),
        ("resources: {num_gpus: 0}\nenvironment: {container: x.sif}", "R401"),
        ("resources: {num_gpus: 0, nodes: 2}", "R401"),
        ("resources: {num_gpus: 0}\nsweep: {grid: {training.warmup_epochs: [1, 900]}}", "R313"),
        ("resources: {num_gpus: 0}\nsweep: {grid: {training.epochs: [1, 2]}}", "R401"),
    ],
)
def test_validate_reports_errors_of_the_resolve_stage(validate, more, code):
    status, said = validate(more)
    assert (status, ("error", code) in codes(said)) == (1, True), said


def test_resolve_errors_come_before_warnings_about_this_machine(validate):
    status, said = validate("data: {data_dir: none/such}\nresources: {gpu: nocard, num_gpus: 1}")
    assert status == 1
    assert said.index("error[R301]") < said.index("warning[R235]")


def test_missing_gpus_of_this_machine_are_a_warning(validate, monkeypatch):
    monkeypatch.setattr("ratc.probe.local._gpus", lambda visible: (0, None))
    status, said = validate("resources: {num_gpus: 64}")
    assert (status, codes(said)) == (0, {("warning", "R309")})
    assert "not checked" in said


@pytest.mark.parametrize(
    ("more", "severity", "code", "words"),
    [
        ("data: {data_dir: none/such}", "warning", "R235", "none/such"),
        ("data: {data_dir: .}", "warning", "R235", "`.` has no `images` and no `masks` and no `splits.json`"),
        ("data: {data_dir: data/..}", "warning", "R235", "has no `images`"),
        (
            "task_type: detection\ndata: {data_dir: data, dataset: coco, num_classes: 2, image_size: 256}",
            "warning",
            "R235",
            "no `annotations`",
        ),
        ("environment: {venv: none/venv}", "warning", "R235", "none/venv"),
        ("model: {name: 'own:Smal'}", "error", "R236", "did you mean `Small`"),
        ("model: {name: 'own.net:Small'}", "warning", "R236", "own.net"),
        ("model: {name: 'nobody_has_this:Small'}", "warning", "R236", "nobody_has_this"),
        ("training: {loss: 'own:los'}", "error", "R236", "did you mean `loss`"),
        ("training: {callbacks: ['own:Freeze']}", "error", "R236", "no `Freeze`"),
        ("training: {callbacks: [{'own:Small': {width: 1, depht: 3}}]}", "error", "R237", "did you mean `depth`"),
        ("model: {name: 'own:Small', args: {width: 1, depht: 3}}", "error", "R237", "did you mean `depth`"),
        ("model: {name: 'own:Small'}", "error", "R237", "needs an argument `width`"),
        ("model: {name: 'own:Plain', args: {width: 1}}", "error", "R237", "no argument `width`"),
        ("model: {name: 'own:Free'}", "error", "R237", "needs an argument `first`"),
        ("training: {loss: 'own:loss', loss_args: {alpha: 1}}", "error", "R237", "no argument `alpha`"),
        ("evaluation: {scores: {mine: 'own:dice'}}", "error", "R237", "a function that returns the score"),
        ("evaluation: {scores: {dice: 'own:Free'}}", "error", "R225", "is a score of segmentation already"),
        ("training: {loss: 'own:dice'}", "error", "R237", "name a class, or a function"),
        ("data: {data_dir: data, dataset: 'own:Pairs', args: {lvl: 1}}", "error", "R237", "no argument `lvl`"),
        ("data: {data_dir: data, dataset: 'own:loss'}", "error", "R237", "no argument `data_dir`"),
        (
            "model: {name: 'own:Small', args: {width: 1}}\nsweep: {grid: {model.args: [{width: 1}, {with: 2}]}}",
            "error",
            "R237",
            "no argument `with`",
        ),
    ],
)
def test_missing_paths_names_and_arguments_of_a_spec_are_reported(validate, more, severity, code, words):
    status, said = validate(f"{more}\nresources: {{num_gpus: 0}}")
    if "own.net" in more:
        severity, status = ("error", 1) if status else (severity, status)
    assert (severity, code) in codes(said), said
    assert words in said
    assert status == (severity == "error")


@pytest.mark.parametrize(
    "more",
    [
        "model: {name: 'own:Small', args: {width: 1, bias: false}}",
        "model: {name: 'own:Free', args: {first: 1, second: 2}}",
        "model: {name: 'own:Record', args: {anything: 1}}",
        "model: {name: 'own:Alias', args: {anything: 1}}",
        "training: {loss: 'own:loss', loss_args: {gamma: 1}}",
        "data: {data_dir: data, dataset: 'own:Pairs', args: {level: 2}}",
    ],
)
def test_valid_custom_code_and_arguments_give_no_finding(validate, more):
    status, said = validate(f"{more}\nresources: {{num_gpus: 0}}\n")
    assert (status, codes(said) - {("warning", "R305")}) == (0, set()), said


def test_module_with_a_syntax_error_is_reported_with_its_line(validate, tmp_path):
    (tmp_path / "own.py").write_text("class A:\n  def\n")
    status, said = validate("model: {name: 'own:A'}\nresources: {num_gpus: 0}")
    assert status == 1
    assert "own.py:2" in said


@pytest.mark.parametrize(
    "path",
    [
        "$SCRATCH/x",
        "${WORK}/x",
        "${oc.env:WORK}/x",
        "%USERPROFILE%/x",
        "~someone/x",
        "/s/$USER",
        "/a/run_$ID",
        "{{ WORK }}/x",
        "$(pwd)/x",
        "`pwd`/x",
        "/data/<name>/x",
    ],
)
@pytest.mark.parametrize(
    "key", ["data.data_dir", "output_dir", "environment.venv", "environment.container", "resources.cluster"]
)
def test_path_with_a_variable_is_a_warning_with_a_replacement(validate, key, path):
    section, _, name = key.rpartition(".")
    more = f"{section}: {{{name}: '{path}'}}" if section else f"{name}: '{path}'"
    said = validate(more)[1]
    assert ("warning", "R234") in codes(said), said
    assert "write the path itself" in said
    if path.startswith("${oc.env"):
        assert "$WORK/x" in said


@pytest.mark.parametrize("key", ["data.data_dir", "output_dir", "environment.venv"])
@pytest.mark.parametrize("path", ["s3://bucket/x", "file:///x", "https://host/x", "/here/gs:/bucket"])
def test_url_in_place_of_a_path_is_a_warning(validate, key, path):
    section, _, name = key.rpartition(".")
    said = validate(f"{section}: {{{name}: '{path}'}}" if section else f"{name}: '{path}'")[1]
    assert f"`{key}` is an address" in said
    assert ("warning", "R234") in codes(said), said


@pytest.mark.parametrize("path", ["C:/x", "a:b/x", "~/x", "it costs $5", "100%/of%", "a ~ b", "data$"])
def test_path_with_special_characters_but_no_variable_gives_no_warning(validate, path):
    assert ("warning", "R234") not in codes(validate(f"data: {{data_dir: '{path}'}}\nresources: {{num_gpus: 0}}")[1])


def test_shell_variable_in_an_environment_value_is_a_warning(validate):
    status, said = validate("environment: {variables: {CACHE: '$HOME/c'}}\nresources: {num_gpus: 0}")
    assert (status, ("warning", "R234") in codes(said)) == (0, True)


def test_class_names_that_differ_only_in_whitespace_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for names in ("[tumour, 'tumour ']", "[grey matter, 'grey  matter']", "[a, a]"):
        data = f"{{data_dir: data, num_classes: 2, class_names: {names}}}"
        Path("spec.yaml").write_text(f"experiment_name: demo\ndata: {data}\nresources: {{num_gpus: 0}}\n")
        assert main(["validate", "spec.yaml"]) == 1
        assert "error[R211]: two classes have the name" in capsys.readouterr().err
