"""Values of a spec in shell scripts: each reaches the training unchanged, and none is run."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ratc.yaml.write import mapping
from tests.effort import HANGS_S
from tests.security.commands import SPEC, assert_consistent, write

pytestmark = pytest.mark.usefixtures("in_a_folder")

PLAIN = ["a b", "it's", 'say "hi"', "$(touch pwned)", "`touch pwned`", "'; touch pwned; '", "a\nb", "a\r\nb", "a\tb",
         "née 東京 🧠",
         "~x", "*", "a\\b", "\\", "$HOME", "${HOME}", "!x",
         "a#b", "# b", "&& touch pwned", "|",
         "'$(touch pwned)'", '"$(touch pwned)"', "{{ 7 * 7 }}", "{% raw %}", "%s", " leads", "trails ", "\u2028",
         "\x85", "a\x1b[31m", "\x7f", "\x01", "EOF", "<(touch pwned)", "a=b", "0",
         "null", "1e5", "trails\n"]  # fmt: skip
DASHES = ["-x", "---", "--data-dir", "-e touch pwned"]
#: Stands for Python: notes its arguments and its environment.
PYTHON = """\
#!/bin/sh
printf '%s\\0' "$@" end-of-call >> "$NOTES/arguments"
env -0 > "$NOTES/environment"
"""


def run_script(value: str, ratc, **variables: str) -> tuple[list[list[str]], dict[str, str]]:
    """Compile a spec that holds the value wherever a text may stand and run the script: its calls and environment."""
    spec = {
        "experiment_name": "demo",
        "description": value,
        "output_dir": value,
        "training": {"batch_size": 2},
        "data": {"data_dir": value},
        "resources": {"num_gpus": 0, "cpus": 4},
        "environment": {"venv": value, "modules": [value], "variables": {"VALUE": value}, "secrets": ["NOTES"]},
    }
    os.makedirs("work/out")
    write("work/spec.yaml", mapping(spec))
    os.makedirs(os.path.join("work", value, "bin"))
    write(os.path.join("work", value, "bin", "activate"), 'export ACTIVATED="$PWD"\n')
    os.mkdir("notes")
    os.mkdir("bin")
    os.chmod(write("bin/python3", PYTHON), 0o755)  # the environment that the spec names has it
    status, _, err = ratc("compile", "work/spec.yaml", "-o", "work/out")
    assert status == 0, err
    subprocess.run(["bash", "-n", "work/out/run.sh"], check=True)
    environment = {
        "PATH": f"{os.path.abspath('bin')}:{os.environ['PATH']}",
        "NOTES": os.path.abspath("notes"),
        "RATC_PYTHON": "/not/the/interpreter/of/the/environment",
        **variables,
        "BASH_FUNC_module%%": '() { printf "%s\\0" "$@" > "$NOTES/module"; }',
    }
    subprocess.run(["bash", "work/out/run.sh"], env=environment, check=True, capture_output=True, timeout=HANGS_S)
    calls = Path("notes/arguments").read_bytes().decode().split("end-of-call\0")
    pairs = (item.partition("=") for item in Path("notes/environment").read_bytes().decode().split("\0"))
    assert Path("notes/module").read_bytes().decode().split("\0")[-2] == value
    return [call.split("\0")[:-1] for call in calls[:-1]], {name: text for name, _, text in pairs}


def files() -> set[str]:
    return {os.path.join(folder, name) for folder, _, names in os.walk(".") for name in names}


@pytest.mark.parametrize("value", PLAIN + DASHES)
def test_values_reach_the_training_unchanged(value, ratc):
    (preflight, training), environment = run_script(value, ratc)
    lock = os.path.abspath("work/out/lock.yaml")
    assert preflight[:3] == ["-m", "ratc_runtime.preflight", lock]
    assert preflight[3:] == [one for one in training if one.startswith("--data-dir=")]
    parser = argparse.ArgumentParser()
    for name in ("--lock", "--data-dir", "--output-dir"):
        parser.add_argument(name)
    got = parser.parse_args(training[training.index("ratc_runtime.train") + 1 :])
    assert (got.lock, got.data_dir, got.output_dir) == (lock, value, value)
    assert environment["VALUE"] == value
    assert environment["ACTIVATED"] == os.path.abspath("work"), "the script runs in the spec's folder"
    compiled = yaml.safe_load(Path("work/out/lock.yaml").read_text())
    assert (compiled["data"]["data_dir"], compiled["output_dir"], compiled["description"]) == (value, value, value)
    assert not [path for path in files() if "pwned" in os.path.basename(path) and not path.endswith("activate")]


@pytest.mark.parametrize(("written", "rest"), [("~", ""), ("~/d", "/d"), ("~/a 'b' $(x)", "/a 'b' $(x)")])
def test_a_tilde_expands_to_the_home_of_the_user_who_runs_the_script(written, rest, ratc):
    write("spec.yaml", mapping({**yaml.safe_load(SPEC), "output_dir": written}))
    assert ratc("compile", "spec.yaml", "-o", "out")[0] == 0
    line = next(line for line in Path("out/run.sh").read_text().splitlines() if line.startswith("ratc_output_dir="))
    shown = subprocess.run(
        ["bash", "-c", f'{line}; printf %s "$ratc_output_dir"'],
        env={"HOME": "/home/some one"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == "/home/some one" + rest


def test_the_script_finds_its_folder_with_any_cdpath(ratc):
    os.makedirs("decoy/work/out")
    (preflight, _), _ = run_script("a b", ratc, CDPATH=os.path.abspath("decoy"))
    assert preflight[2] == os.path.abspath("work/out/lock.yaml")


def test_variables_of_any_name_do_not_disturb_the_script(ratc):
    names = ["here", "python", "data_dir", "output_dir", "job", "status", "PATH_", "_x"]
    spec = {**yaml.safe_load(SPEC), "environment": {"variables": dict.fromkeys(names, "theirs")}}
    write("spec.yaml", mapping(spec))
    assert ratc("compile", "spec.yaml", "-o", "out")[0] == 0
    os.mkdir("notes")
    os.chmod(write("python", PYTHON), 0o755)
    environment = {
        "PATH": os.environ["PATH"],
        "NOTES": os.path.abspath("notes"),
        "RATC_PYTHON": os.path.abspath("python"),
    }
    subprocess.run(["bash", "out/run.sh"], env=environment, check=True, capture_output=True, timeout=HANGS_S)
    noted = Path("notes/environment").read_bytes().decode().split("\0")
    assert {f"{name}=theirs" for name in names} <= set(noted)
    arguments = Path("notes/arguments").read_bytes().decode().split("\0")
    assert os.path.abspath("out/lock.yaml") in arguments
    assert {"data", "--data-dir=data"} & set(arguments)


def test_every_script_passes_shellcheck(ratc):
    shellcheck = Path(sys.executable).parent / "shellcheck"
    if not shellcheck.exists():
        pytest.skip("shellcheck is not installed")
    for number, value in enumerate(PLAIN + DASHES):
        spec = {**yaml.safe_load(SPEC), "description": value, "output_dir": value, "data": {"data_dir": value}}
        environment = {
            "modules": [value],
            "variables": {"VALUE": value},
            "secrets": ["HOME"],
            "setup": ["ulimit -n 64"],
        }
        for kind in ("venv", "conda"):
            spec["environment"] = {**environment, kind: value}
            write("spec.yaml", mapping(spec))
            assert ratc("compile", "spec.yaml", "-o", f"{kind}{number}")[0] == 0
    # These three say that a text in single quotes looks as if it wanted to be expanded or escaped. It must not be.
    command = [str(shellcheck), "--exclude=SC2016,SC2088,SC1003", *map(str, Path().glob("*/run.sh"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("value", [value for value in PLAIN + DASHES if value != "null"])
def test_hostile_values_of_options_run_nothing(value, ratc):
    write("spec.yaml", SPEC)
    status, out, err = ratc("compile", "spec.yaml", "-o", "out", "--set", f"description={value}", f"--data-dir={value}")
    assert (status, out) == (0, "out\n"), err
    lock = yaml.safe_load(Path("out/lock.yaml").read_text())
    assert lock["description"] == value
    again = [line for line in Path("out/run.sh").read_text().split("\n") if line.startswith("# Again")]
    assert len(again) == 1
    assert_consistent()
