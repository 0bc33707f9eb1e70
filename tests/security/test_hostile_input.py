"""Invalid input of every kind gives a diagnostic: exit status 1, no traceback, nothing on stdout, no file lost."""

import json
import os
import pty
import subprocess
import sys
import threading
import tracemalloc

import pytest

from tests.places import ROOT
from tests.security.commands import IS_ROOT, SPEC, shell, write

pytestmark = pytest.mark.usefixtures("in_a_folder")


# ---------------------------------------------------------------------- what is in a file

HEAD = "experiment_name: demo\ndata: {data_dir: data}\n"
BAD = {
    "empty": ("R004", ""),
    "comments only": ("R004", "# nothing\n  # here\n"),
    "only a document start": ("R004", "---\n"),
    "a list": ("R004", "- a\n- b\n"),
    "one word": ("R004", "spec\n"),
    "two documents": ("R004", HEAD + "---\n" + HEAD),
    "byte-order mark alone": ("R004", b"\xef\xbb\xbf"),
    "UTF-16": ("R002", HEAD.encode("utf-16")),
    "Latin-1": ("R002", HEAD.encode() + b"description: caf\xe9\n"),
    "half a character at the end": ("R002", HEAD.encode() + b"description: \xf0\x9f\xa7"),
    "a surrogate in UTF-8": ("R002", HEAD.encode() + b"description: \xed\xa0\x80\n"),
    "NUL byte": ("R003", HEAD + "description: a\0b\n"),
    "escape byte": ("R003", HEAD + "description: \x1b[31mred\n"),
    "U+FFFE": ("R003", HEAD + "description: \ufffe\n"),
    "tab at the start": ("R003", "\t" + HEAD),
    "tab that indents": ("R003", HEAD + "training:\n\tepochs: 3\n"),
    "open bracket": ("R003", HEAD + "training: {epochs: 3\n"),
    "open quote": ("R003", HEAD + "description: 'a\n"),
    "a binary file": ("R002", bytes(range(256)) * 40),
    "unknown alias": ("R003", HEAD + "training: *t\n"),
    "an alias of itself": ("R003", HEAD + "training: &t {loss_args: *t}\n"),
    "an alias as a key": ("R003", "a: &a b\n*a : c\n"),
    "a mapping as a key": ("R003", "{a: b}: c\n"),
    "merging a word": ("R003", HEAD + "training: {<<: epochs}\n"),
    "an escaped surrogate": ("R003", HEAD + 'description: "\\ud800"\n'),
    "another YAML version": ("R003", "%YAML 3.0\n---\n" + HEAD),
    "duplicate key": ("R005", HEAD + "seed: 1\nseed: 2\n"),
    "duplicate key, quoted": ("R005", HEAD + "seed: 1\n'seed': 2\n"),
    "100000 duplicate keys": ("R005", "a: 1\n" * 100_000),
    "deep blocks": ("R006", "".join("  " * n + "a:\n" for n in range(200))),
    "deep lists": ("R006", "[" * 100_000),
    "deep dashes": ("R006", "- " * 400_000),
    "deep keys": ("R003", "? " * 100_000),
    "alias bomb": ("R006", "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]\n" for n in range(1, 12))),
    "alias tree": ("R006", "a0: &a0 {}\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))),
    "2 MB of comments": ("R006", "#" * (2 << 20)),
    "!!python/object": ("R007", "!!python/object/apply:os.system [touch pwned]\n"),
    "!!python/object in a value": ("R007", HEAD + "seed: !!python/object/apply:os.system [touch pwned]\n"),
    "!!python/name": ("R007", HEAD + "seed: !!python/name:os.system\n"),
    "!!binary": ("R007", HEAD + "description: !!binary aGk=\n"),
    "!!set": ("R007", HEAD + "model: !!set {a}\n"),
    "own tag": ("R007", HEAD + "seed: !seed 4\n"),
    "infinity": ("R008", HEAD + "training: {learning_rate: .inf}\n"),
    "not a number": ("R008", HEAD + "training: {learning_rate: .nan}\n"),
    "1e999": ("R008", HEAD + "training: {learning_rate: 1e999}\n"),
    "100000 digits": ("R008", HEAD + f"seed: {'9' * 100_000}\n"),
    "hexadecimal digits": ("R008", HEAD + f"seed: 0x{'f' * 100_000}\n"),
    "an escaped NUL": ("R008", HEAD + 'output_dir: "a\\0b"\n'),
    "an escaped NUL in a key": ("R008", HEAD + 'model: {args: {"a\\0b": 1}}\n'),
    "unknown key": ("R101", HEAD + "trainin: {}\n"),
    "20000 unknown keys": ("R101", HEAD + "".join(f"k{n}: 1\n" for n in range(20_000))),
    "20000 unknown keys on one line": ("R101", f"{HEAD}model: {{{', '.join(f'k{n}: 1' for n in range(20_000))}}}\n"),
    "20000 near keys": ("R101", HEAD + f"training: {{{', '.join(f'epoc{n}: 1' for n in range(20_000))}}}\n"),
    "20000 keys near a missing one": ("R105", "data: {}\n" + "".join(f"experiment_nam{n}: 1\n" for n in range(20_000))),
    "20000 items of another type": ("R102", HEAD + f"training: {{callbacks: [{', '.join(['[a]'] * 20_000)}]}}\n"),
    "a key with control characters": ("R101", HEAD + '"\\e[2J\\n\\tk": 1\n'),
    "a very long key": ("R101", HEAD + f"? {'k' * 100_000}\n: 1\n"),
    "an empty key": ("R101", HEAD + "'': 1\n"),
    "a fault below empty keys": ("R102", HEAD + "tasks: {'': {'': {'': null}, task_type: null}, a: {}}\n"),
    "a fault below keys like numbers": ("R102", HEAD + "tasks: {007: {task_type: null}, +7: {weight: a}}\n"),
    "a section is a number": ("R102", HEAD + "training: 5\n"),
    "a section is empty": ("R102", HEAD + "training:\n"),
    "a number is a text": ("R102", HEAD + "seed: '42'\n"),
    "a number is a mapping": ("R102", HEAD + "seed: {a: 1}\n"),
    "a text is a date": ("R102", "experiment_name: 2024\ndata: {data_dir: data}\n"),
    "a boolean is a word": ("R102", HEAD + "debug: yes\n"),
    "a choice is a list": ("R102", HEAD + "training: {optimizer: [adamw]}\n"),
    "a choice of several types is a list": ("R103", HEAD + "training: {activation_checkpointing: [a]}\n"),
    "a choice of several types is a mapping": ("R103", HEAD + "training: {activation_checkpointing: {a: 1}}\n"),
    "a choice is a long text": ("R103", HEAD + f"training: {{precision: {'x' * 100_000}}}\n"),
    "zero epochs": ("R104", HEAD + "training: {epochs: 0}\n"),
    "a missing section": ("R105", "experiment_name: demo\n"),
    "a name with a space": ("R106", "experiment_name: de mo\ndata: {data_dir: data}\n"),
    "a name that leaves its folder": ("R106", "experiment_name: ../demo\ndata: {data_dir: data}\n"),
    "a name with a command": ("R106", "experiment_name: $(touch pwned)\ndata: {data_dir: data}\n"),
    "a name with a line end": ("R106", 'experiment_name: "demo\\n"\ndata: {data_dir: data}\n'),
    "a variable's name with a command": ("R106", HEAD + "environment: {variables: {'A=$(touch pwned)': 1}}\n"),
    "a variable's name with a quote": ("R106", HEAD + "environment: {variables: {'a\"b': 1}}\n"),
    "a secret's name with a command": ("R106", HEAD + "environment: {secrets: ['A}; touch pwned; {']}\n"),
    "a callable with a command": ("R106", HEAD + "model: {name: 'a:b; touch pwned'}\n"),
    "heads beyond counting": ("R104", HEAD + "model: {feature_dims: 999999999, num_heads: 1000000000}\n"),
    "blocks beyond counting": ("R104", HEAD + "model: {num_blocks: 1000000000, stride: 3}\n"),
    "blocks that leave no image": ("R209", HEAD + "model: {num_blocks: 1000, stride: 3}\n"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_an_invalid_spec_is_refused_with_its_code(kind, refused):
    code, data = BAD[kind]
    said = refused(code, "validate", write("spec.yaml", data))
    assert len(said) < 60_000
    assert all(char == "\n" or char.isprintable() for char in said), "nothing reaches the terminal that commands it"
    assert os.listdir() == ["spec.yaml"], "nothing was run or written"


def test_the_first_of_many_unknown_keys_get_suggestions(refused):
    keys = "".join(f"  epoch{n}: 1\n" for n in range(1000))
    assert "did you mean `epochs`?" in refused("R101", "validate", write("spec.yaml", f"{HEAD}training:\n{keys}"))


@pytest.mark.parametrize(
    "kind", ["empty", "Latin-1", "tab at the start", "alias bomb", "!!python/object", "duplicate key"]
)
def test_invalid_facts_and_overlays_are_refused_with_their_code(kind, refused):
    code, data = BAD[kind]
    write("spec.yaml", SPEC)
    assert "bad.yaml" in refused(code, "compile", "spec.yaml", "--facts", write("bad.yaml", data))
    write("slurm_spec.yaml", data)
    assert "slurm_spec.yaml" in refused(code, "validate", "spec.yaml", "--target", "slurm")


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + SPEC.encode(),
        SPEC.replace("\n", "\r\n").encode(),
        SPEC.replace("\n", "\r").encode(),
        b"%YAML 1.2\n---\n" + SPEC.encode() + b"...\n",
        b"\n" * 1000 + SPEC.encode(),
        SPEC.encode().rstrip(),
        SPEC.encode() + "description: née à 東京 🧠\n".encode(),
    ],
    ids=["byte-order mark", "CRLF", "CR", "directives", "blank lines", "no last line end", "unicode"],
)
def test_unusual_valid_specs_compile(data, ratc):
    assert ratc("validate", write("spec.yaml", data))[0] == 0
    assert ratc("compile", "spec.yaml", "-o", "out")[0] == 0


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_positions_are_right_for_every_line_ending(end, refused):
    said = refused("R101", "validate", write("spec.yaml", (HEAD + "sed: 1\n").replace("\n", end)))
    assert "spec.yaml:3:1" in said
    assert "3 | sed: 1\n" in said


# ---------------------------------------------------------------------- what is a file


def test_r001_suggests_a_file_with_a_similar_name(refused):
    write("spec.yaml", SPEC)
    assert "did you mean `spec.yaml`?" in refused("R001", "validate", "spce.yaml")
    refused("R001", "validate", "no/such/folder/spec.yaml")
    refused("R001", "validate", "")
    refused("R001", "compile", "spec.yaml", "--facts", "facts.yaml")


def test_r001_for_a_folder_instead_of_a_spec(refused):
    os.mkdir("folder")
    write("folder/a.yaml", SPEC)
    assert "folder/a.yaml" in refused("R001", "validate", "folder")
    assert "is a folder" in refused("R001", "compile", "folder/a.yaml", "--facts", ".")
    os.mkdir("slurm_a.yaml")
    refused("R001", "validate", write("a.yaml", SPEC), "--target", "slurm")


def test_loops_devices_and_odd_paths_are_refused(refused, tmp_path):
    os.symlink("loop.yaml", "loop.yaml")
    refused("R001", "validate", "loop.yaml")
    refused("R001", "validate", "spec\0.yaml")
    refused("R001", "validate", "n" * 5000)
    refused("R001", "validate", write("spec.yaml", SPEC) + "/below")
    refused("R004", "validate", "/dev/null")
    refused("R006", "validate", "/dev/zero")
    refused("R001", "validate", "/proc/self/mem")
    assert "not UTF-8" in refused("R001", "validate", os.fsdecode(b"caf\xe9.yaml"))


def test_r006_for_a_file_of_50_megabytes_without_reading_it(refused):
    with open("spec.yaml", "wb") as file:
        file.truncate(50 << 20)
    tracemalloc.start()
    assert "50.0 MiB" in refused("R006", "validate", "spec.yaml")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20 << 20


@pytest.mark.skipif(IS_ROOT, reason="root may read everything")
def test_r001_for_a_file_without_read_permission(refused):
    os.chmod(write("spec.yaml", SPEC), 0)
    refused("R001", "validate", "spec.yaml")


def test_a_spec_can_be_read_from_a_pipe(ratc):
    os.mkfifo("spec.yaml")
    writer = threading.Thread(target=write, args=("spec.yaml", SPEC))
    writer.start()
    assert ratc("validate", "spec.yaml")[0] == 0
    writer.join()


# ---------------------------------------------------------------------- what is not a file: the shell


@pytest.mark.parametrize(
    "arguments",
    [
        ["--set", "training.epoch=3"],
        ["--set", "training.epochs"],
        ["--set", "=3"],
        ["--set", ""],
        ["--set", "training=5"],
        ["--set", "training.epochs=[1"],
        ["--set", "training.epochs=\udcff"],
        ["--set", "training.epochs=\x1b"],
        ["--set", "description=\udcff"],
        ["--set", "\udcff=1"],
        ["--set", "training.epochs.more=1"],
        ["--set", "a" * 100_000 + "=1"],
    ],
    ids=range(12),
)
def test_r107_for_an_invalid_assignment(arguments, refused):
    refused("R107", "validate", write("spec.yaml", SPEC), *arguments)


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("RAT_EPOCHS", "many", "R102"),
        ("RAT_EPOCHS", "", "R102"),
        ("RAT_EPOCHS", "0", "R104"),
        ("RAT_EPOCHS", "[" * 1000, "R107"),
        ("RAT_EPOCHS", "!!python/object/apply:os.getcwd []", "R107"),
        ("RAT_DATA_DIR", "", "R106"),
        ("RAT_DATA_DIR", "caf\udce9", "R107"),
        ("RAT_EXPERIMENT_NAME", "$(touch pwned)", "R106"),
        ("RAT_TRAINING__OPTIMIZER", "adam\n", "R106"),
        ("RAT_TRAINING__PRECISION", "bf16\n", "R103"),
    ],
)
def test_an_invalid_environment_variable_is_refused(name, value, code, refused, monkeypatch):
    monkeypatch.setenv(name, value)
    refused(code, "validate", write("spec.yaml", SPEC))


def test_r102_for_a_number_as_a_section_despite_an_option(refused):
    refused("R102", "validate", write("spec.yaml", HEAD + "training: 5\n"), "--epochs", "3")


def test_exit_status_is_2_for_misuse_and_1_for_invalid_input(ratc):
    write("spec.yaml", SPEC)
    assert ratc("validate")[0] == 2
    assert ratc("validate", "spec.yaml", "--no-such-option")[0] == 2
    assert ratc("compil", "spec.yaml")[0] == 2
    assert ratc("compile", "spec.yaml", "--target", "mars")[0] == 1
    assert ratc("explain", "spec.yaml", "no.such.path")[0] == 1
    assert ratc("explain", "spec.yaml", "\x1b[2J..")[0] == 1
    assert ratc("train", "nothing.yaml")[0] == 1


@pytest.mark.parametrize(
    "name", ["--spec.yaml", "-", "RAT_spec.yaml", "a b.yaml", "$(touch pwned).yaml", "a\nb.yaml", "é\x07.yaml"]
)
def test_specs_with_odd_file_names_compile(name, ratc):
    write(name, SPEC)
    status, out, err = ratc("compile", "-o", "out", "--", f"./{name}" if name[0] == "-" else name)
    assert (status, out) == (0, "out\n"), err
    write(name, SPEC + "sed: 1\n")
    status, _, err = ratc("validate", "--", f"./{name}" if name[0] == "-" else name)
    assert status == 1
    assert ":5:1" in err
    assert sorted(os.listdir()) == sorted([name, "out"])


@pytest.mark.parametrize(
    "folder", ["my exp #1", "123", "true", "null", "1e5", "a: b", "é", "-x", "x\ny", "{{ 7 * 7 }}"]
)
def test_init_writes_a_valid_spec_in_a_folder_of_any_name(folder, ratc):
    os.mkdir(folder)
    os.chdir(folder)
    assert ratc("init")[0] == 0
    assert ratc("validate", "config.yaml")[0] == 0


# ---------------------------------------------------------------------- what is said


def test_stdout_holds_data_only(ratc):
    write("spec.yaml", SPEC)
    assert ratc("validate", "spec.yaml")[1] == ""
    assert ratc("compile", "spec.yaml")[1] == "compiled/demo/local\n"
    assert ratc("compile", "spec.yaml", "--check")[1:] == ("", "")
    json.loads(ratc("schema")[1])
    status, out, err = ratc("explain", "spec.yaml", "training.global_batch_size")
    assert (status, err) == (0, "")
    assert out.startswith("training.global_batch_size = 2")


def coloured(environment: dict[str, str]) -> bool:
    """Whether ratc colours its words for a terminal."""
    main_end, terminal = pty.openpty()
    try:
        shell("validate", "missing.yaml", stdout=subprocess.DEVNULL, stderr=terminal, env=environment)
        return b"\x1b[" in os.read(main_end, 4096)
    finally:
        os.close(main_end)
        os.close(terminal)


def test_colour_is_used_only_on_terminals_that_allow_it():
    assert coloured({"NO_COLOR": "", "TERM": "xterm"})
    assert not coloured({"NO_COLOR": "1", "TERM": "xterm"})
    assert not coloured({"NO_COLOR": "", "TERM": "dumb"})
    assert b"\x1b[" not in shell("validate", "missing.yaml", capture_output=True, env={"NO_COLOR": ""}).stderr


def test_a_full_stdout_gives_no_internal_error():
    with open("/dev/full", "w") as full:
        done = shell("schema", stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr


def test_a_closed_pipe_on_stdout_is_not_an_error():
    command = f"{sys.executable} -m ratc schema | head -c 1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"{", b"")


def test_a_closed_stderr_is_not_an_error():
    write("spec.yaml", SPEC)
    command = f"{sys.executable} -m ratc validate spec.yaml 2>&-"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"")


def test_r001_in_a_removed_working_folder(refused, tmp_path):
    os.mkdir("gone")
    write("spec.yaml", SPEC)
    os.chdir("gone")
    os.rmdir(tmp_path / "gone")
    try:
        refused("R001", "validate", "spec.yaml")
        refused("R001", "compile", str(tmp_path / "spec.yaml"))
    finally:
        os.chdir(tmp_path)
