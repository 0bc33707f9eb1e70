"""Custom code of a spec is run only if the user trusts its folder.

Every model here writes a file beside the spec when its module is imported, so that a test can see that it was run.
"""

import contextlib
import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from ratc.cli import main
from ratc.own_code import trust
from ratc.yaml.parse import parse
from tests.places import ROOT

SPEC = """\
experiment_name: demo
model: {name: "net:net"}
data: {data_dir: data}
resources: {num_gpus: 1, gpu: h100, cpus: 8}
"""
NET = """\
from pathlib import Path
Path(__file__).with_name("RUN").touch()
from torch import nn
def net(): return nn.Conv2d(3, 1, 1)
"""
READING = {
    "validate": ["validate", "spec.yaml"],
    "compile": ["compile", "spec.yaml"],
    "compile-check": ["compile", "spec.yaml", "--check"],
    "check": ["check", "old"],
    "diff": ["diff", "old", "spec.yaml"],
    "diff-of-a-revision": ["diff", "HEAD:", "spec.yaml"],
    "fit": ["fit", "spec.yaml"],
    "report": ["report", "spec.yaml"],
    "explain": ["explain", "spec.yaml", "training.micro_batch_size"],
    "profile": ["profile", "spec.yaml"],
    "profile-measure": ["profile", "spec.yaml", "--measure"],
    "train": ["train", "spec.yaml"],
    "data-check": ["data", "check", "spec.yaml"],
    "tune-lr": ["tune", "lr", "spec.yaml"],
    "train-on-the-cpu": ["train", "spec.yaml", "--num-gpus", "0", "--set", "resources.gpu=null"],
    "compile-given": ["compile", "spec.yaml", "--batch-size", "2"],
}


@pytest.fixture
def untrusted_folder(tmp_path, monkeypatch, untrusted, checks_given):
    """An untrusted folder with custom code, in a git repository, with an empty prediction cache."""
    monkeypatch.setenv("RATC_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "stranger"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "spec.yaml").write_text(SPEC)
    (folder / "net.py").write_text(NET)
    assert main(["compile", "spec.yaml", "-o", "old", "--no-predict"]) == 0
    identity = ["-c", "user.name=n", "-c", "user.email=e"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *words], check=True)
    return folder


@pytest.mark.parametrize("words", READING.values(), ids=READING)
def test_no_command_runs_code_of_an_untrusted_folder(words, untrusted_folder, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    main(words)
    said = capsys.readouterr()
    assert not (untrusted_folder / "RUN").exists(), said.err
    if words[0] not in ("validate", "check") and "--no-predict" not in words:
        named = "R515" if "--measure" in words else "net:net"
        assert "R446" in said.err or "R447" in said.err or named in said.out + said.err
    # Nothing is written that a prediction would have made otherwise.
    assert not (untrusted_folder / "compiled").exists() or "--batch-size" in words


@pytest.mark.parametrize("name", ["subprocess:getoutput", "os:system", "builtins:eval", "importlib.util:find_spec"])
@pytest.mark.parametrize("key", ["model", "dataset", "loss", "callback"])
def test_standard_library_callable_is_refused_even_with_trust(name, key, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    parts = {
        "model": f'model: {{name: "{name}", args: {{cmd: "touch RUN"}}}}\ndata: {{data_dir: data}}\n',
        "dataset": f'data: {{data_dir: data, dataset: "{name}"}}\n',
        "loss": f'data: {{data_dir: data}}\ntraining: {{loss: "{name}"}}\n',
        "callback": f'data: {{data_dir: data}}\ntraining: {{callbacks: ["{name}"]}}\n',
    }
    Path("spec.yaml").write_text(f"experiment_name: demo\n{parts[key]}resources: {{num_gpus: 1, gpu: h100, cpus: 8}}\n")
    for command in ("compile", "fit", "report"):
        assert main([command, "spec.yaml", "--trust"]) == 1
        assert "error[R356]" in capsys.readouterr().err
    assert not Path("RUN").exists()


OF_A_LOSS = {
    "loss": 'training: {loss: "net:net"}\ndata: {data_dir: data}\n',
    "loss-of-a-task": (
        "task_type: multi\ndata: {data_dir: data}\n"
        'tasks: {a: {task_type: segmentation, loss: "net:net"}, b: {task_type: segmentation}}\n'
    ),
}


@pytest.mark.parametrize("keys", OF_A_LOSS.values(), ids=OF_A_LOSS)
def test_custom_loss_of_a_built_in_model_needs_trust(keys, untrusted_folder, capsys):
    """Also the loss of one of several tasks, which stands elsewhere in what a trace is asked for."""
    model = "model: {feature_dims: 16, num_heads: 2, num_blocks: 1}\n"
    Path("spec.yaml").write_text(f"experiment_name: demo\n{model}{keys}{SPEC.splitlines()[-1]}\n")
    for words in (["fit", "spec.yaml"], ["compile", "spec.yaml"], ["compile", "spec.yaml", "--batch-size", "2"]):
        main(words)
        assert "would run `net:net`" in capsys.readouterr().err
        assert not Path("RUN").exists()


def test_built_in_model_needs_no_trust(tmp_path, monkeypatch, untrusted, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RATC_CACHE", str(tmp_path / "cache"))
    asked = []
    monkeypatch.setattr("ratc.tracing.fetch.run", lambda work, request, *_: asked.append(request["model"]["name"]))
    built_in = SPEC.replace('{name: "net:net"}', "{feature_dims: 16, num_heads: 2, num_blocks: 1}")
    Path("spec.yaml").write_text(built_in.replace("data_dir: data", "data_dir: data, image_size: 64"))
    main(["fit", "spec.yaml"])
    assert set(asked) == {"rat"}


@pytest.mark.slow
def test_cached_prediction_is_used_without_trust(untrusted_folder, capsys):
    """Another command, and another revision of the same code, take the prediction from what is kept."""
    assert main(["compile", "spec.yaml", "--trust"]) == 0
    (untrusted_folder / "RUN").unlink()
    assert main(["check", "compiled"]) == 0
    assert main(["compile", "spec.yaml", "--check"]) == 0
    capsys.readouterr()
    assert main(["diff", "HEAD:", "spec.yaml"]) == 0
    assert "R446" not in capsys.readouterr().err
    assert not (untrusted_folder / "RUN").exists()
    # Other code is other code.
    (untrusted_folder / "net.py").write_text(NET.replace("3, 1, 1", "3, 1, 3, padding=1"))
    assert main(["check", "compiled"]) == 1
    said = capsys.readouterr().err
    assert "your own code `net.py`" in said
    assert "`net` changed" in said
    assert "warning[R446]" in said
    assert "R404" not in said
    assert not (untrusted_folder / "RUN").exists()


@pytest.mark.slow
def test_modules_in_the_spec_folder_do_not_shadow_installed_ones(untrusted_folder, monkeypatch):
    """Nor for those that are installed: a built-in model runs nothing of a stranger's."""
    evil = 'import pathlib; pathlib.Path(__file__).with_name("RUN").touch()\n'
    for name in ("random", "profile", "json", "torch", "yaml", "numpy", "timm", "sitecustomize", "ratc_runtime"):
        Path(f"{name}.py").write_text(evil)
    built_in = SPEC.replace('{name: "net:net"}', "{feature_dims: 16, num_heads: 2, num_blocks: 1}")
    Path("spec.yaml").write_text(built_in.replace("data_dir: data", "data_dir: data, image_size: 64"))
    for words in (["fit", "spec.yaml"], ["check", "old"], ["validate", "spec.yaml"]):
        done = subprocess.run(
            [sys.executable, "-m", "ratc", *words],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr
        assert "fault of ratc" not in done.stderr
        assert not Path("RUN").exists(), words


def test_trust_command_adds_shows_and_removes_folders(untrusted_folder, untrusted, capsys, monkeypatch):
    assert main(["trust"]) == 0
    assert "this folder is not trusted" in capsys.readouterr().err
    assert main(["trust", "."]) == 0
    assert untrusted.read_text() == f"{untrusted_folder.resolve()}\n"
    assert untrusted.stat().st_mode & 0o077 == 0
    assert main(["trust", "."]) == 0
    assert untrusted.read_text().count("\n") == 1
    (untrusted_folder / "below").mkdir()
    assert trust.is_listed("below")
    assert not trust.is_listed(f"{untrusted_folder}2")
    assert not trust.is_listed("..")
    assert main(["trust", "--remove", "."]) == 0
    assert not trust.is_listed(".")
    assert main(["trust", "--remove", "."]) == 1
    assert main(["trust", "nowhere"]) == 1


def test_symlink_in_a_trusted_folder_does_not_trust_its_target(untrusted_folder, untrusted, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    trust.add(str(other))
    (other / "link").symlink_to(untrusted_folder)
    assert not trust.is_listed(str(other / "link"))


@pytest.mark.parametrize(("answer", "trusted"), [("y\n", True), ("\n", False), ("n\n", False)])
def test_trust_question_is_asked_once_in_a_terminal(answer, trusted, untrusted_folder, untrusted, monkeypatch):
    """The answer yes is kept; the other one holds for the command."""
    trust.begin(False, True)
    leader, follower = pty.openpty()
    os.write(leader, (answer * 2).encode())
    with open(follower) as typed, open(os.dup(follower), "w") as screen, monkeypatch.context() as patch:
        patch.setattr("sys.stdin", typed)
        patch.setattr("sys.stderr", screen)
        assert trust.allows(".", "net:net") is trusted
        assert trust.allows(".", "net:net") is trusted
    shown = b""
    with contextlib.suppress(OSError):  # all that was written is read, and nobody has the other end
        while part := os.read(leader, 4096):  # a terminal hands on what it has so far: the echo of what was typed, say
            shown += part
    os.close(leader)
    shown = shown.decode()
    assert shown.count("[y/N]") == 1
    assert str(untrusted_folder.resolve()) in shown
    assert trust.is_listed(".") is trusted


def test_only_commands_that_write_or_run_ask_for_trust(untrusted_folder, monkeypatch):
    asked = []
    monkeypatch.setattr("ratc.own_code.trust._ask", lambda place, name: asked.append(place))
    monkeypatch.setattr("sys.stdin", _Terminal())
    monkeypatch.setattr("sys.stderr", _Terminal())
    for words in (["fit", "spec.yaml"], ["check", "old"], ["diff", "HEAD:", "spec.yaml"], ["report", "spec.yaml"]):
        main(words)
        assert not asked, words
    assert main(["compile", "spec.yaml"]) == 1
    assert len(asked) == 1


class _Terminal:
    encoding = "utf-8"

    def isatty(self):
        return True

    def write(self, text):
        return len(text)

    def flush(self): ...


def test_trust_option_in_a_recorded_command_is_ignored(untrusted_folder, capsys):
    """The head of a stranger's lock says how to make it again; trust is not for it to give."""
    lock = Path("old/lock.yaml")
    lock.write_text(lock.read_text().replace(" --no-predict", " --trust", 1))
    main(["check", "old"])
    assert not Path("RUN").exists()
    assert "R446" in capsys.readouterr().err


# What the lock holds of own code.

LOSSES = """\
from helpers import scale

# The factor that was agreed on.
FACTOR = 1


class Kept:
    pass


def squared():
    return lambda output, target: scale(FACTOR) * ((output - target) ** 2).mean()
"""
OWN = """\
experiment_name: demo
training: {loss: "losses:squared", batch_size: 2}
data: {data_dir: data}
resources: {num_gpus: 0, cpus: 2}
"""


@pytest.fixture
def own_code_folder(tmp_path, monkeypatch, capsys, untrusted):
    """A compiled, untrusted folder with a custom loss."""
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(OWN)
    Path("losses.py").write_text(LOSSES)
    Path("helpers.py").write_text("def scale(factor):\n    return factor\n")
    Path("unrelated.py").write_text("")
    assert main(["compile", "spec.yaml"]) == 0
    capsys.readouterr()
    return tmp_path


def locked():
    return parse("lock.yaml", Path("compiled/demo/local/lock.yaml").read_bytes())[0].root


def test_lock_has_the_digest_of_every_imported_own_module(own_code_folder):
    assert sorted(locked().find(("own_code",)).value) == ["helpers.py", "losses.py"]
    assert sorted(locked().find(("own_code", "losses.py", "parts")).value) == ["<module>", "Kept", "squared"]
    assert locked().find(("checkpoint", "own_code")).value == "strict"


def test_spec_without_own_code_has_no_own_code_in_its_lock(own_code_folder):
    Path("spec.yaml").write_text(OWN.replace('loss: "losses:squared", ', ""))
    assert main(["compile", "spec.yaml"]) == 0
    assert locked().find(("own_code",)) is None
    assert locked().find(("checkpoint", "own_code")) is None


CHANGES = {
    "function": ("losses.py", "scale(FACTOR) *", "100 * scale(FACTOR) *", "`squared` changed"),
    "class": ("losses.py", "    pass", "    value = 1", "`Kept` changed"),
    "constant": ("losses.py", "FACTOR = 1", "FACTOR = 100", "code outside of functions and classes changed"),
    "new": ("losses.py", "class Kept:", "class Another: ...\nclass Kept:", "`Another` is new"),
    "imported": ("helpers.py", "return factor", "return 100 * factor", "`scale` changed"),
    "comment": (
        "losses.py",
        "# The factor",
        "# A factor",
        "only comments, blank lines or the order of definitions changed",
    ),
}


@pytest.mark.parametrize(("file", "old", "new", "words"), CHANGES.values(), ids=CHANGES)
def test_check_names_the_changed_own_code(file, old, new, words, own_code_folder, capsys):
    Path(file).write_text(Path(file).read_text().replace(old, new))
    for command in (["check"], ["compile", "spec.yaml", "--check"]):
        assert main(command) == 1
        said = capsys.readouterr().err
        assert said.count("error[") == 1
        assert f"error[R448]: your own code `{file}`" in said
        assert words in said


def test_diff_names_own_code_that_changed_between_revisions(own_code_folder, capsys):
    identity = ["-c", "user.name=n", "-c", "user.email=e"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *words], check=True)
    assert main(["diff", "HEAD:", "spec.yaml"]) == 0
    Path("losses.py").write_text(LOSSES.replace("scale(FACTOR) *", "100 * scale(FACTOR) *"))
    for old in ("HEAD:", "HEAD:compiled/demo/local", "compiled/demo/local"):
        capsys.readouterr()
        assert main(["diff", old, "spec.yaml"]) == 1, old
        said = capsys.readouterr().out
        assert "own code losses.py" in said
        assert "`squared` changed" in said
        assert "breaks resume" in said


def test_removed_or_added_own_module_is_reported(own_code_folder, capsys):
    Path("helpers.py").unlink()
    assert main(["check"]) == 1
    assert "your own code `helpers.py` has changed since" in capsys.readouterr().err
    Path("losses.py").write_text(LOSSES.replace("from helpers", "from unrelated"))
    assert main(["check"]) == 1
    assert "your own code `unrelated.py`" in capsys.readouterr().err


def test_modules_named_by_sweep_points_are_in_the_shared_lock(own_code_folder):
    Path("other.py").write_text("from losses import Kept\n\n\ndef net(): ...\n")
    Path("spec.yaml").write_text(
        "experiment_name: demo\nmodel: {}\ntraining: {batch_size: 2}\ndata: {data_dir: data}\n"
        "resources: {nodes: 1, num_gpus: 0, cpus: 2}\nsweep: {points: {a: {model.name: 'other:net'}, b: {seed: 3}}}\n"
    )
    assert main(["compile", "spec.yaml", "--target", "slurm", "--walltime", "1:00:00"]) == 0
    root = parse("lock.yaml", Path("compiled/demo/slurm/lock.yaml").read_bytes())[0].root
    assert sorted(root.find(("own_code",)).value) == ["helpers.py", "losses.py", "other.py"]


def test_imports_of_own_modules_are_followed_as_python_does(tmp_path):
    from ratc.own_code.digests import files

    texts = {
        "pkg/__init__.py": "",
        "pkg/models.py": "from . import blocks\nfrom .deep.parts import Part\nfrom .. import outside\n",
        "pkg/blocks.py": "def later():\n    import pkg.lazy\n",
        "pkg/deep/parts.py": "from importlib import import_module as load\nload('named')\n",
        "pkg/deep/__init__.py": "import importlib\nimportlib.import_module('pkg.aside')\n",
        "pkg/lazy.py": "import random\nimport torch\n",
        "pkg/aside.py": "",
        "named.py": "def broken(:\n",
        "random.py": "",
        "pkg/native.cpython-311-x86_64-linux-gnu.so": "",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    reached = ["named.py", "pkg/__init__.py", "pkg/aside.py", "pkg/blocks.py", "pkg/deep/__init__.py"]
    reached += ["pkg/deep/parts.py", "pkg/lazy.py", "pkg/models.py"]
    assert files(["pkg.models:Net"], str(tmp_path)) == reached
    assert files(["pkg.native:Net"], str(tmp_path)) == [
        "pkg/__init__.py",
        "pkg/native.cpython-311-x86_64-linux-gnu.so",
    ]
    assert files(["../pkg.models:Net", "absent:Net", "rat"], str(tmp_path)) == []
