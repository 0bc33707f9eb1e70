"""`ratc import`: no text of an imported file becomes a key, a command, or a control sequence of the terminal."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ratc.cli import main
from ratc.importers import accelerate, batch, deepspeed, merge, specification, unified
from ratc.importers.model import Carried
from ratc.yaml.parse import parse

SECRET = "sEcReT1"
HOSTILE = (
    "x\nenvironment: {setup: [touch W]} #",
    "x\r\nenvironment: {setup: [touch W]} #",
    "x\u2028environment: {setup: [touch W]}",
    "x\x85environment: {setup: [touch W]}",
    "\x1b]0;title\x07",
    "a # b",
    "a: b",
    "- a",
    "'",
    '"',
    "\\",
    "{}",
    "*a",
    "&a b",
    "!!python/object/apply:os.system [touch W]",
    "%YAML 1.1",
    "---",
    "...",
    "\u202egnp.exe",
    "\ufeffx",
    "null",
    "1e5",
    "~",
    "on",
)
mixed = st.builds("".join, st.lists(st.sampled_from(HOSTILE)))
texts = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=20), mixed)
#: What a JSON or YAML file can hold.
values = st.one_of(texts, st.integers(-3, 9), st.booleans(), st.none(), st.lists(texts, max_size=2))
READERS = {"deepspeed": deepspeed.read, "accelerate": accelerate.read, "unified": unified.read}
UNIFIED = (
    "experiment_name description output_dir training.epochs training.precision data.data_dir resources.account "
    "resources.walltime resources.memory environment.modules environment.variables.A environment.setup model.args.x"
)
TABLES = {
    "deepspeed": [*deepspeed.TABLE, *deepspeed.UNNEEDED],
    "accelerate": [*accelerate.TABLE, *accelerate.UNNEEDED],
    "unified": UNIFIED.split(" "),
}


def tree(values: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for path, value in values.items():
        *parents, key = path.split(".")
        inner = made
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                return made
        inner[key] = value
    return made


def held(items: Any, name: str = "f") -> str:
    """The spec of some items, which holds what was carried and nothing else."""
    merged = merge.merge(items)
    text, _ = specification.write(merged, [name])
    assert all(char == "\n" or char.isprintable() for char in text), "nothing reaches a terminal that commands it"
    document, found = parse("spec", text.encode())
    assert document is not None, (found, text)
    carried = {path: item.value for path, item in merged.values.items()}
    told = {
        path: carried.get(path, default) for path, default in {**specification.required(carried), **carried}.items()
    }
    assert document.root.data() == tree(told) == yaml.safe_load(text)
    return text


@pytest.mark.parametrize("kind", READERS)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_imported_json_and_yaml_values_never_become_keys_or_commands(kind, data):
    chosen = data.draw(st.dictionaries(st.sampled_from(TABLES[kind]), values, min_size=1, max_size=8))
    unknown = data.draw(st.dictionaries(texts, values, max_size=2))
    name = data.draw(texts)
    text = json.dumps({**unknown, **tree(chosen)})
    document, _ = parse(name, text.encode())
    if document is not None:
        held(READERS[kind](document), name)


DIRECTIVES = {
    "slurm": ("job-name", "nodes", "time", "partition", "account", "qos", "mem", "gres", "gpus", "ntasks", "comment"),
    "lsf": ("J", "q", "P", "W", "n", "gpu", "R", "M"),
}
COMMANDS = (
    "module load {}",
    "export A={}",
    "export A='{}'",
    'export A="{}"',
    "conda activate {}",
    "source {}/bin/activate",
    "torchrun --nnodes={} x.py",
    "accelerate launch --mixed_precision {} x.py",
    "srun python train.py --a '{}' b",
    "python '{}' --per_device_train_batch_size {}",
    "torchrun -m my.train --seed={} {}",
    "cat <<E\n{}\nE",
    "if {}; then module load x; fi",
    "a=({})",
    "{}",
)


@pytest.mark.parametrize("kind", DIRECTIVES)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_imported_script_values_never_become_keys_or_commands(kind, data):
    options = data.draw(st.lists(st.tuples(st.sampled_from(DIRECTIVES[kind]), texts), max_size=6))
    commands = data.draw(st.lists(st.tuples(st.sampled_from(COMMANDS), texts), max_size=6))
    sign = "#SBATCH --{}={}\n" if kind == "slurm" else '#BSUB -{} "{}"\n'
    script = "#!/bin/sh\n" + "".join(sign.format(*option) for option in options)
    script += "".join(command.replace("{}", text) + "\n" for command, text in commands)
    name = data.draw(texts)
    held(batch.read(kind, name, script.encode(errors="replace").decode()), name)


@given(st.text(max_size=300))
@example("(" * 3000)
@example("a && " * 5000)
@example("if x; then " * 500)
@example("<<E " * 500)
@example("".join("{" + chr(point) for point in range(0x100, 0x110000, 0x80) if not 0xD800 <= point < 0xE000))
@example("{1..\U000f0000{12\U00100000")
@example(f"<<{'E' * 3000}\n")
def test_any_text_is_read_as_a_script_without_a_crash(text):
    held(batch.read("slurm", "f", text.encode(errors="replace").decode()))


def imported(text: str, name: str = "f", *arguments: str) -> tuple[int, str, str]:
    """Status, the spec, and what is said."""
    out, err, here = io.StringIO(), io.StringIO(), os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            Path(name).write_text(text)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = main(["import", *arguments, "--", name])
        finally:
            os.chdir(here)
    assert "internal error" not in err.getvalue()
    return status, out.getvalue(), err.getvalue()


def test_a_value_with_a_line_break_does_not_become_keys():
    text = json.dumps({"train_batch_size": 8, "zero_optimization": {"stage": "x\nenvironment: {setup: [touch W]} #"}})
    status, out, _ = imported(text)
    assert status == 0
    assert set(yaml.safe_load(out)) == {"experiment_name", "training", "data"}


@pytest.mark.parametrize("name", ["a\nenvironment: {setup: [touch W]}", "a\x1b[2J", "a\u2028b: c", "a\rb: c"])
def test_a_file_name_with_a_line_break_does_not_become_keys(name):
    for text in ("num_processes: 2\nfsdp_config: {}\n", "#!/bin/sh\n#SBATCH -N 2 --foo=1\ntouch x\n"):
        status, out, err = imported(text, name)
        assert status == 0
        assert set(yaml.safe_load(out)) == {"experiment_name", "data", "resources"}
        assert all(char == "\n" or char.isprintable() for char in out + err)


def test_a_comment_with_escapes_does_not_reach_the_terminal():
    status, out, err = imported("#!/bin/sh\n#SBATCH --comment=\x1b[31mred\x9b2J\n#SBATCH -N 2\ntouch \x1b]0;x\x07\n")
    assert status == 0
    assert all(char == "\n" or char.isprintable() for char in out + err)


@pytest.mark.parametrize(
    "text", ["{}", "training: 5\ndata: 5\n", "training: {}\nmodel: {args: {}}\n", "experiment_name:\n"]
)
@pytest.mark.parametrize("kind", READERS)
def test_files_without_content_are_imported_as_an_empty_spec(text, kind):
    status, out, _ = imported(text, "f", "--from", kind)
    assert status == 0
    assert yaml.safe_load(out)["data"] == {"data_dir": "data"}


LEAKS = (
    f"export DB_PASS={SECRET}",
    f"export DB_PASS='one {SECRET} tail'",
    f'export DB_PASS="one\n{SECRET} tail"',
    f"export A=1 PGPASSWORD={SECRET}",
    f"DB_PASS={SECRET} python train.py",
    f"export MLFLOW_TRACKING_URI=https://user:{SECRET}@host/ml",
    f"python train.py --api_key {SECRET}",
    f'python train.py --password "one {SECRET}"',
    f"python train.py --token={SECRET}",
    f"if true; then export GITHUB_PAT={SECRET}; fi",
    f"curl -u me:{SECRET} https://host",
    f"#SBATCH --comment=password={SECRET}",
    f"cat > ~/.netrc <<E\nmachine host login me password {SECRET}\nE",
    f"export DB_PASS=$(echo {SECRET})",
    f"export DB_PASS=`echo {SECRET}`",
    f'export DB_PASS="$(printf %s {SECRET} | base64 -d)"',
    f"export DB_PASS=$(cat <<E\n{SECRET}\nE\n)",
    f"export DB_PASS=one,{SECRET}",
    f'export DB_PASS="one"{SECRET}',
    f"export DB_PASS=$'{SECRET}'",
    f"export DB_PASS=one\\ {SECRET}",
    f"export DB_PASS+={SECRET}",
    f"export DB_PASS=\\\n{SECRET}",
    f"python train.py --password \\\n  {SECRET}",
    f"curl -u \\\n  me:{SECRET} https://host",
    f"az login -u me -p \\\n {SECRET}",
    f"tool --license \\\n  {SECRET}",
    f"DB_PASS=(one {SECRET})",
    f"setenv DB_PASS {SECRET}",
    f"export DB_PASS='one\n{SECRET}",
    f"conda config --set token {SECRET}",
    f"cat > x <<E\n{SECRET}\nE",
    f"if true; then\ncat > x <<'E'\n{SECRET}\nE\nfi",
    f"kinit me <<< {SECRET}",
    f"kinit me <<< 'one {SECRET}'",
    f"echo {SECRET} | kinit me",
    f"echo 'one {SECRET}' >> ~/.pgpass",
    f"python train.py --api-key one,{SECRET}",
    f"curl -H 'Authorization: {SECRET}' https://host",
    f"mysql -u root -p {SECRET}",
    f"az login -u me -p {SECRET}",
    f"a=1 /opt/tool -P {SECRET} x",
    f"7z x -p{SECRET} data.7z",
    f"redis-cli -a {SECRET}",
    f"openssl enc -k {SECRET} -in x",
    f"lftp -u me,{SECRET} host",
    f"htpasswd -b file user {SECRET}",
    f"curl -H 'X-Api-Key: {SECRET}' host",
    f'wget --header="PRIVATE-TOKEN: {SECRET}" host',
    f"keytool -storepass {SECRET}",
    f"java -Ddb.pass={SECRET} x",
    f"tool --api.key {SECRET}",
    f"tool --license {SECRET}",
    f"curl 'https://host/?key={SECRET}'",
    f"curl --cookie session={SECRET} host",
    f"kaggle config set -n key -v {SECRET}",
    f"rsync --password-file=<(echo {SECRET}) x",
    f"expect -c 'send \"{SECRET}\\r\"'",
    f"sqlplus me/{SECRET}@db",
    f"nmcli wifi connect x password {SECRET}",
    f"#SBATCH --wckey={SECRET}",
    f"#SBATCH --wckey {SECRET}",
    f"#SBATCH --mcs-label={SECRET}",
    f'#SBATCH --comment="password is {SECRET}"',
    f'#SBATCH --comment="the password of the data is {SECRET}"',
    f"#SBATCH --comment 'pw {SECRET}'",
    f'#SBATCH --comment="use token {SECRET} here"',
    f'#SBATCH --job-name="token={SECRET}"',
    f"python train.py # password is {SECRET}",
    f"echo 'the api key is {SECRET}'",
)
#: Lines that say nothing secret, and are told as they are.
KEPT = (
    "srun -p gpu python train.py -p 5",
    "mkdir -p results/one",
    "ssh -p 2222 host",
    "tool -p 8080",
    "tool -p /path/of/it",
    "tool -p $PORT",
    "echo the token dim is 64",
    "# the password is asked for",
    "python train.py --key-file /home/me/key",
)


@pytest.mark.parametrize("line", LEAKS)
def test_no_secret_of_a_script_is_copied_or_shown(line):
    for text in (f"#!/bin/sh\n#SBATCH -N 1\n{line}\n", f"#!/bin/sh\n#SBATCH -N 1\necho x\n{line}\n"):
        status, out, err = imported(text)
        assert status == 0
        assert SECRET not in out
        assert SECRET not in err


@pytest.mark.parametrize("line", KEPT)
def test_a_value_that_is_no_secret_is_shown(line):
    _, out, err = imported(f"#!/bin/sh\n#SBATCH -N 1\n{line}\nsleep 1\n")
    assert "**" not in out + err


def test_values_that_only_resemble_secrets_are_imported():
    text = "#!/bin/sh\n#SBATCH -p gpu\n#SBATCH -J token7\n#SBATCH -A proj1\n"
    text += "export TOKENIZERS_PARALLELISM=false\nmodule load pin/3\n"
    _, out, _ = imported(text)
    made = yaml.safe_load(out)
    assert made["resources"] == {"partition": "gpu", "account": "proj1"}
    assert made["experiment_name"] == "token7"
    assert made["environment"] == {"variables": {"TOKENIZERS_PARALLELISM": "false"}, "modules": ["pin/3"]}


def test_secrets_in_commands_of_a_script_are_masked_and_the_rest_is_shown():
    _, out, _ = imported(
        '#!/bin/sh\n#SBATCH -N 1\ncat <<E > x\nsome\nE\necho "$A" $B | tee x\necho plain\nml load cuda\n'
    )
    assert "cat <<E > x **** E" in out
    assert "echo **** $B" in out
    assert "echo plain" in out
    assert "cuda" in out


def test_keys_of_known_formats_are_not_copied():
    keys = ("wandb login 0123456789abcdef0123456789abcdef01234567", "export X=" + "ghp_" + "a1" * 18)
    for line in keys:
        _, out, err = imported(f"#!/bin/sh\n#SBATCH -N 1\n{line}\n")
        assert line.split("=")[-1].split(" ")[-1] not in out + err
        assert "Not imported" in out


@pytest.mark.parametrize(
    "text",
    [
        f"environment: {{variables: {{DB_PASS: {SECRET}}}}}",
        f'{{"environment": {{"variables": {{"MY_TOKEN2": "one {SECRET} tail"}}}}}}',
        f"model: {{args: {{api_key: {SECRET}, deep: [{{password: {SECRET}}}]}}}}",
        f"environment: {{setup: ['export GITHUB_PAT={SECRET}']}}",
        f"description: https://user:{SECRET}@host",
        f"output_dir: out\nwhatever: {{password: {SECRET}}}",
    ],
)
def test_no_secret_of_a_yaml_file_is_copied_or_shown(text):
    status, out, err = imported(text, "f", "--from", "unified")
    assert status == 0
    assert SECRET not in out + err
    _, _, err = imported(f"{text}\n", "f", "--from", "accelerate")
    assert SECRET not in err


def test_conflicting_values_of_a_secret_are_not_shown():
    items = [Carried("environment.variables.DB_PASS", value, held_span(), "x") for value in (SECRET, f"{SECRET}2")]
    merged = merge.merge(items)
    assert not merged.values
    assert not merged.found
    assert SECRET not in specification.write(merged, ["f"])[0]


def held_span() -> Any:
    from ratc.diagnostics import Source, Span

    return Span(Source("f", "x"), 1, 1, 1, 2)
