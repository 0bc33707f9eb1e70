"""Secrets: found by name, form or place, refused in a spec, and redacted in all output."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ratc.cli import main
from ratc.diagnostics import Source
from ratc.secrets import excerpt, redact, scripts
from ratc.secrets.names import names_secret

SECRET = "sEcReT1"
HEAD = "experiment_name: demo\ndata: {data_dir: data}\nresources: {num_gpus: 0, cpus: 2}\n"
#: A key of each form, made here so that no scanner takes this file for a leak.
FORMS = {
    "GitHub": "ghp_" + "a1B2" * 9,
    "GitHub, fine-grained": "github_pat_" + "11ABCDE_0123456789abcdef",
    "Hugging Face": "hf_" + "aBcDeFgH" * 4,
    "AWS": "AKIA" + "IOSFODNN7EXAMPLE",
    "OpenAI": "sk-" + "proj-0123456789abcdefghij",
    "Anthropic": "sk-" + "ant-api03-0123456789abcdefghij",
    "Slack": "xoxb-" + "123456789012-abcdefghijkl",
    "GitLab": "glpat-" + "0123456789abcdefghij",
    "Stripe": "sk_live_" + "0123456789abcdefghijklmn",
    "PyPI": "pypi-" + "AgEIcHlwaS5vcmc" + "a1" * 40,
    "JWT": "eyJ" + "hbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0In0.abcdefghijklmnop",
    "private key": "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEowIBAAKCAQEA\n-----END RSA " + "PRIVATE KEY-----",
    "Weights & Biases": "wandb login 0123456789abcdef0123456789abcdef01234567",
    "a header": "curl -H 'X-Api-Key: swordfish'",
    "a header of an option": 'wget --header="PRIVATE-TOKEN: swordfish"',
    "a URL's password": "https://user:pw@host/ml",
    "a URL's password with a slash": "https://user:p@ss/w@host/ml",
    "a URL's query": "https://host/ml?api_key=abc123&x=1",
    "a URL's token": "https://0123456789abcdef0123456789abcdef01234567@host/x.git",
}
NAMES = """
    PGPASSWORD GITHUB_PAT MY_TOKEN2 MY_TOKEN_2 DB_PASS TRACKING_PASSWORD api_key apiKey APIKEY x-api-key SSHPASS
    MYSQL_PWD AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY DBPASSWORD clientSecret auth_token KAGGLE_KEY WANDB_API_KEY
    CREDENTIALS REDIS_CRED Authorization DB_PSWD
"""
HARMLESS_NAMES = """
    TOKENIZERS_PARALLELISM MAX_TOKENS cls_token token_dim num_tokens monkey key query_key PATH PWD OLDPWD COMPASS bypass
    patch compat author WANDB_IDENTITY_TOKEN_FILE secrets pattern num_passes low_pass
"""
HARMLESS = (
    "export MY_TOKEN=$(cat ~/.token)",
    'export MY_TOKEN="$OTHER"',
    "export MY_TOKEN=$(echo $OTHER | base64 -d)",
    ': "${WANDB_API_KEY:?must be set}"',
    'test -n "$WANDB_API_KEY"',
    "curl -H 'Content-Type: application/json' -H \"X-Api-Key: $KEY\"",
    "docker://host:5000/image@sha256:abcd",
    "git+https://github.com/a/b@v1.2",
    "ssh://git@github.com:22/x",
    "the mask token: learned",
    "password: see the wiki",
    "sk-learn-pipeline-experiment",
    "hf_transfer_learning_baseline",
    "0123456789abcdef0123456789abcdef01234567",  # a commit
    "/scratch/me/experiments/2024-10-01_run/out",
)


@pytest.fixture(autouse=True)
def _working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run_ratc(*arguments: str, capsys) -> tuple[int, str]:
    """Exit status and all that a command prints."""
    status = main(arguments)
    said = capsys.readouterr()
    assert "internal error" not in said.err
    assert "--help`" not in said.err, "the command was misused"
    return status, said.out + said.err


@pytest.mark.parametrize("name", NAMES.split())
def test_secret_is_recognised_by_its_name(name):
    assert names_secret(name)
    assert redact.plain(name, "swordfish") == redact.STARS
    assert list(redact.found("environment.variables", {name: "swordfish"}, strict=True)) == [
        f"environment.variables.{name}"
    ]


@pytest.mark.parametrize("name", HARMLESS_NAMES.split())
def test_harmless_name_is_not_a_secret_name(name):
    assert not names_secret(name)


def test_model_arguments_named_token_or_key_are_no_secrets():
    args = {"token": "mean", "mask_token": "[MASK]", "tokens": 5, "class_token": True, "key": "swordfish", "auth": None}
    assert not list(redact.found("model.args", args))


@pytest.mark.parametrize("form", FORMS)
def test_secret_is_recognised_by_its_form_within_a_text(form):
    text = f"before {FORMS[form]} behind"
    assert redact.has_secret(text)
    shown = redact.redact(text)
    assert len(shown) == len(text)
    assert shown.startswith("before ")
    assert shown.endswith(" behind")
    for part in re.findall(r"[A-Za-z0-9_]{16,}", FORMS[form]):
        assert part not in shown


@pytest.mark.parametrize("text", HARMLESS)
def test_text_that_only_refers_to_a_secret_is_not_one(text):
    assert not redact.has_secret(text)


#: A secret in every field that can hold text, by the kind of the field.
FIELDS = {
    "description": "description: {}",
    "output_dir": "output_dir: {}",
    "setup": "environment: {{setup: [{}]}}",
    "variables": "environment: {{variables: {{OK: {}}}}}",
    "modules": "environment: {{modules: [{}]}}",
    "container": "environment: {{container: {}}}",
    "model.args": "model: {{name: 'a:b', args: {{a: {{b: [{}]}}}}}}",
    "loss_args": "training: {{loss: 'a:b', loss_args: {{a: {}}}}}",
    "account": "resources: {{account: {}, num_gpus: 0}}",
    "project": "logging: {{use_wandb: true, wandb_project: {}}}",
    "experiment": "logging: {{mlflow_experiment_name: {}}}",
}


@pytest.mark.parametrize("form", ["GitHub", "Hugging Face", "AWS", "a URL's password"])
@pytest.mark.parametrize("field", FIELDS)
def test_secret_in_any_text_field_is_refused(field, form, capsys):
    head = HEAD if "resources" not in FIELDS[field] else HEAD.rpartition("resources")[0]
    Path("spec.yaml").write_text(f"{head}{FIELDS[field].format(f'{chr(34)}{FORMS[form]}{chr(34)}')}\n")
    status, said = run_ratc("compile", "spec.yaml", "-o", "out", capsys=capsys)
    assert status == 1
    assert "error[R205]" in said
    assert (":pw@" if "://" in FORMS[form] else FORMS[form]) not in said
    assert not Path("out").exists()


@pytest.mark.parametrize("name", ["api_key", "password", "hub_token", "private_key"])
def test_secret_model_argument_is_refused_by_its_name(name, capsys):
    Path("spec.yaml").write_text(f"{HEAD}model: {{name: 'a:b', args: {{{name}: {SECRET}}}}}\n")
    status, said = run_ratc("validate", "spec.yaml", capsys=capsys)
    assert status == 1
    assert f"`model.args.{name}` looks like it holds a secret" in said
    assert SECRET not in said


#: The same value as YAML can write it.
SPELLINGS = {
    "plain": f"MY_TOKEN: {SECRET}",
    "quoted key": f'"MY_TOKEN": {SECRET}',
    "JSON": f'"variables": {{"MY_TOKEN": "{SECRET}"}}',
    "several words": f'MY_TOKEN: "one {SECRET} tail"',
    "several plain words": f"MY_TOKEN: one {SECRET}, tail",
    "single quotes": f"MY_TOKEN: 'it''s {SECRET}'",
    "an escape": f'MY_TOKEN: "\\"{SECRET}"',
    "an anchor": f"MY_TOKEN: &a {SECRET}",
    "a tag": f"MY_TOKEN: !!str {SECRET}",
    "an alias": f"OTHER: &a {SECRET}\n    MY_TOKEN: *a",
    "the next line": f"MY_TOKEN:\n      {SECRET}",
    "a block": f"MY_TOKEN: |\n      one\n      {SECRET}",
    "a folded text": f"MY_TOKEN: >-\n      one\n      {SECRET}",
    "an explicit key": f"? MY_TOKEN\n    : {SECRET}",
    "a number": "MY_TOKEN: 90817263",
}


@pytest.mark.parametrize("form", ["text", "json", "github", "sarif", "markdown"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_finding_redacts_the_secret_in_every_yaml_spelling(spelling, form, capsys):
    lines = SPELLINGS[spelling]
    lines = lines if spelling == "JSON" else f"variables:\n    {lines}"
    Path("spec.yaml").write_text(f"{HEAD}environment:\n  {lines}\n")
    status, said = run_ratc("validate", "spec.yaml", "--format", form, capsys=capsys)
    assert status == 1
    assert "R205" in said
    assert SECRET not in said
    assert "90817263" not in said


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_quoted_lines_of_a_file_redact_the_secret(spelling):
    """Other findings quote other lines; a file that is no YAML after this one is quoted as well."""
    for behind in ("", "training:\n\tepochs: 3\n", "a: [\n"):
        text = f"{HEAD}environment: # \u00e9 \U0001f9e0\n  variables:\n    {SPELLINGS[spelling]}\n{behind}"
        source = Source("spec.yaml", text)
        lines = [excerpt.line(source, number) for number in range(1, text.count("\n") + 2)]
        assert SECRET not in "\n".join(lines)
        assert [len(line) for line in lines] == [len(line) for line in text.split("\n")]
        assert lines[:3] == HEAD.split("\n")[:3]


@pytest.mark.parametrize("value", [SECRET, f"one {SECRET} tail", f'"{SECRET}"'])
def test_secret_in_options_and_shell_variables_is_redacted(value, capsys, monkeypatch):
    Path("spec.yaml").write_text(HEAD)
    status, said = run_ratc("validate", "spec.yaml", "--set", f"environment.variables.MY_TOKEN={value}", capsys=capsys)
    assert (status, SECRET in said) == (1, False), said
    assert "R205" in said
    for text in (f"{{MY_TOKEN: {value}}}", f"{{MY_TOKEN: {value}"):
        status, said = run_ratc("validate", "spec.yaml", "--set", f"environment.variables={text}", capsys=capsys)
        assert (status, SECRET in said) == (1, False), said
        monkeypatch.setenv("RAT_ENVIRONMENT__VARIABLES", text)
        status, said = run_ratc("validate", "spec.yaml", capsys=capsys)
        assert (status, SECRET in said) == (1, False), said
        monkeypatch.delenv("RAT_ENVIRONMENT__VARIABLES")


_WORDS = st.text(st.characters(codec="ascii", min_codepoint=32, max_codepoint=126), max_size=12)


@given(before=_WORDS, behind=_WORDS, flow=st.booleans(), style=st.sampled_from(["'", '"', "|", ">", None]))
def test_secret_written_by_pyyaml_in_any_style_is_redacted(before, behind, flow, style):
    tree = {"variables": {"DB_PASS": f"{before}Zq{SECRET}qZ{behind}", "other": 1}}
    text = yaml.safe_dump(tree, default_flow_style=flow, default_style=style, width=20)
    assert SECRET not in "\n".join(excerpt.line(Source("x", text), number) for number in range(text.count("\n") + 2))


@given(st.text(max_size=60))
def test_redaction_keeps_lines_and_columns(text):
    shown = redact.redact(text)
    assert [len(line) for line in shown.split("\n")] == [len(line) for line in text.split("\n")]


@pytest.fixture
def cpu_limit_of_10_seconds():
    """A limit for work of a few tenths of a second, which a quadratic pattern turns into minutes."""

    def stop(*_):
        raise AssertionError("more than ten seconds of processor time")

    former = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, 10)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, former)


#: Beginnings of what the patterns look for, between dots: repeated, each makes a naive pattern quadratic.
_BEGINNINGS = r"""
k·a: ·://·//a·-·\·eyJ·eyJ-·eyJ.·sk-·x=sk-·xoxa-1-·-----BEGIN PRIVATE KEY-----·token="·token=$(·token=`·token:·a.token=(
/-token=·setenv token ·--token ·'token'='·wandb login ·wandb login -a ·mysql ·mysql -p·curl ·curl -u ·curl -ua:·login(
login(key=·aws configure set token·read token·echo x |·echo ·sshpass -p ·docker login -p ·bearer ·machine a login b
-H 'key:· -H key·--header ·?sig=·uid=x;pwd=·smbclient -U x·a://b:c@
"""


@pytest.mark.parametrize("end", ["", "!"])
@pytest.mark.parametrize("piece", re.split("[·\n]", _BEGINNINGS.strip()))
@pytest.mark.usefixtures("cpu_limit_of_10_seconds")
def test_redaction_of_hostile_text_takes_linear_time(piece, end):
    text = piece * (200_000 // len(piece)) + end
    redact.redact(text)
    redact.has_secret(text)
    redact.redact(piece + piece[-1] * 200_000 + end)


@pytest.mark.parametrize("piece", ["[", "{a: ", "- ", "? ", "&a [*a, "])
@pytest.mark.usefixtures("cpu_limit_of_10_seconds")
def test_line_of_deeply_nested_yaml_is_shown_quickly(piece):
    deep = piece * 50_000
    assert excerpt.line(Source("deep.yaml", deep), 1)[:4] == deep[:4]


@pytest.mark.parametrize(
    "long", ["sk-" + "a1" * 3000, "eyJ" + "a1" * 3000 + "." + "b2" * 400, "token=" + "ab,c" * 3000]
)
def test_very_long_secret_is_redacted_to_its_end(long):
    shown = redact.redact(f"before {long} behind")
    assert (shown[:7], shown[-7:]) == ("before ", " behind")
    assert not any(piece in shown for piece in ("a1", "b2", "ab,c"))


def test_committed_patterns_equal_those_of_detect_secrets():
    pytest.importorskip("detect_secrets")
    from ratc.secrets.generate import shapes

    path = Path(redact.__file__).parents[1] / "facts" / "secret_shapes.json"
    assert path.read_text() == shapes(), "run `make docs`"


def test_text_without_long_words_compiles_no_pattern():
    """`ratc validate` has to stay fast."""
    from ratc.secrets import shapes

    shapes._patterns.cache_clear()
    assert not redact.has_secret("experiment_name: demo, data_dir: data, learning_rate: 1e-4")
    assert shapes._patterns.cache_info().misses == 0


def test_redaction_does_not_import_detect_secrets(monkeypatch):
    import subprocess
    import sys

    code = (
        "import sys, ratc.secrets.redact; ratc.secrets.redact.redact('a' * 40); print('detect_secrets' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(redact.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_secret_in_cluster_facts_is_refused(capsys):
    Path("clusters").mkdir()
    Path("spec.yaml").write_text(HEAD.replace("num_gpus: 0, cpus: 2", "cluster: ours, num_gpus: 0"))
    facts = "name: ours\nscheduler: slurm\nnode_types: {cpu: {gpus_per_node: 0, cpus: 8, memory: 32GB}}\n"
    facts += "partitions: {main: {nodes: {cpu: 4}}}\n"
    for line in (f"variables: {{MY_TOKEN: {SECRET}}}", f"container_options: ['--env', 'DB_PASS={SECRET}']"):
        Path("clusters/ours.yaml").write_text(f"{facts}{line}\n")
        status, said = run_ratc("compile", "spec.yaml", "--target", "slurm", "-o", "out", capsys=capsys)
        assert (status, "R205" in said, SECRET in said) == (1, True, False), said


@pytest.mark.parametrize("name", ["AUTH_HEADER", "COOKIE", "SESSION_COOKIES"])
def test_names_of_headers_and_cookies_are_secret_names(name):
    assert names_secret(name)


@pytest.mark.parametrize(
    "command",
    [
        "aws configure set aws_secret_access_key s3cr3t-w0rd",
        "read -r TOKEN <<< s3cr3t-w0rd",
        "echo s3cr3t-w0rd | docker login --password-stdin",
        "setenv MY_TOKEN s3cr3t-w0rd",
        "conda config --set token s3cr3t-w0rd",
        "https://host/x?sp=r&sig=s3cr3t-w0rd",
        "DRIVER=x;UID=me;PWD=s3cr3t-w0rd",
        "mlflow.login('s3cr3t-w0rd')",
        "export MY_TOKEN=$(echo s3cr3t-w0rd)",
        "export MY_TOKEN=`printf '%s' s3cr3t-w0rd`",
        'export MY_TOKEN="one"s3cr3t-w0rd',
        "export MY_TOKEN=***,s3cr3t-w0rd",
        "export MY_TOKEN+=s3cr3t-w0rd",
    ],
)
def test_secret_argument_of_a_command_is_redacted(command):
    assert "s3cr3t" not in redact.redact(command)
    assert redact.has_secret(command)


@pytest.mark.parametrize(
    "command",
    [
        "python train.py --password",
        "python train.py --api-key",
        "export DB_PASS=",
        "setenv DB_PASS",
        "aws configure set aws_secret_access_key",
        "curl --user",
        "sshpass -p",
        "docker login -p",
        "openssl enc -k",
        "redis-cli -a",
        "kaggle config set -n key -v",
        "read -r TOKEN <<<",
    ],
)
def test_secret_after_a_line_continuation_of_a_command_is_redacted(command):
    for end in ("\\\n", " \\\n   ", " \\\r\n"):
        text = f"{command}{end}me:s3cr3t --more"
        if not (end == "\\\n" and command[-1] != "="):  # a shell would read one word
            assert redact.has_secret(text)
            assert "s3cr3t" not in redact.redact(text)
            assert "s3cr3t" not in scripts.shown(redact.redact(text))
            assert redact.redact(text).endswith(" --more")


@pytest.mark.parametrize("line", ["export DB_PASS=", "python train.py --token ", "MY_PASSWORD=", "tool --api-key="])
def test_secret_in_the_next_item_after_a_line_continuation_is_refused(line, capsys):
    Path("spec.yaml").write_text(f"{HEAD}environment:\n  setup:\n    - '{line}\\'\n    - {SECRET}\n")
    status, said = run_ratc("validate", "spec.yaml", capsys=capsys)
    assert (status, "`environment.setup[1]` looks like it holds a secret" in said, SECRET in said) == (1, True, False)


@pytest.mark.parametrize(
    "lines", [["export A=\\", "one1"], ["the mask token: \\", "one1"], ["--num-tokens \\", "one1"]]
)
def test_line_continuations_without_a_secret_are_accepted(lines):
    assert not list(redact.found("environment.setup", lines))


def test_here_string_without_a_secret_is_accepted():
    assert not redact.has_secret("read -r first second <<< one")
