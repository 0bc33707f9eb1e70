"""A callable that a lock names is checked before its call: its location, and the kind of its result."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ratc_runtime import inference, preflight
from ratc_runtime.checkpoint import files, header, shards, weights
from ratc_runtime.commands import evaluate, export, predict
from ratc_runtime.config.lock import lock_from
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models import import_callable
from torch import nn

from tests.helpers.lockfile import BASE, lock_content, results, run_alone, run_training, write_data, write_lock

ROLES = ("model", "dataset", "loss", "callback")
OWN = """
from __future__ import annotations
import functools, os, subprocess
from os import system
from pathlib import Path
from subprocess import getoutput
from typing import TYPE_CHECKING, Any, Callable, Optional
import torch
from torch import nn, Tensor
from torch.utils.data import Dataset
from ratc_runtime.callbacks import Callback
if TYPE_CHECKING:
    from nowhere import Unknown

class Net(nn.Conv2d):
    def __init__(self, width: int = 1) -> None:
        super().__init__(1, width, 1)
class Duck:
    def __init__(self, data_dir=None, split=None): ...
    def __len__(self): return 1
    def __getitem__(self, index): raise IndexError
class Loss:
    def __call__(self, output, target): return output.sum()
class Note(Callback): ...
class Nothing: ...

touched = Path(__file__).with_name("CALLED")
def bare(): return nn.Conv2d(1, 1, 1)
def annotated() -> nn.Module: return bare()
def maybe() -> Optional[Net]: return Net()
def unknown() -> Unknown: return bare()
def anything() -> Any: return bare()
def data() -> Dataset[int]: return Duck()
def plain() -> Callable[[Tensor, Tensor], Tensor]: return lambda output, target: output.sum()
def squared(output=None, target=None) -> Tensor: touched.touch()
def text() -> str: touched.touch()
def nothing() -> None: touched.touch()
def either() -> nn.Module | str: touched.touch()
wide = functools.partial(Net, width=3)
cached = functools.lru_cache(annotated)
shell = functools.partial(getoutput, "touch CALLED")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The spec's folder, which is the working folder, with `mine.py`."""
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def code_of(role: str, name: str) -> str:
    """The code that a name is refused with."""
    with pytest.raises(RuntimeFinding) as caught:
        import_callable.build(role, name, {})
    return caught.value.code


@pytest.mark.parametrize(
    ("role", "names"),
    [
        ("model", ["Net", "bare", "annotated", "maybe", "unknown", "anything", "wide", "cached"]),
        ("dataset", ["Duck", "data"]),
        ("loss", ["Loss", "plain", "Net"]),
        ("callback", ["Note"]),
    ],
)
def test_callables_beside_the_spec_are_built(role: str, names: list[str], own: Path) -> None:
    for name in names:
        assert import_callable.build(role, f"mine:{name}", {}) is not None


@pytest.mark.parametrize(
    ("role", "names"),
    [
        ("model", ["Nothing", "Duck", "text", "nothing", "either", "plain"]),
        ("dataset", ["Net", "Nothing", "text", "annotated"]),
        ("loss", ["Nothing", "Duck", "squared", "text", "nothing"]),
        ("callback", ["Net", "Nothing", "text", "annotated"]),
    ],
)
def test_callables_of_another_kind_are_not_called(role: str, names: list[str], own: Path) -> None:
    for name in names:
        if (role, name) == ("dataset", "text"):
            continue  # a text has a length and items
        assert code_of(role, f"mine:{name}") == "R581", name
    assert not (own / "CALLED").exists()


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "name",
    [
        "subprocess:getoutput",
        "os:system",
        "builtins:eval",
        "importlib:import_module",
        "json:loads",
        "mine:getoutput",
        "mine:system",
        "mine:os.system",
        "mine:subprocess.getoutput",
        "mine:shell",
        "torch.hub:os.system",
    ],
)
def test_r580_for_the_standard_library_in_every_role(role: str, name: str, own: Path) -> None:
    assert code_of(role, name) == "R580"
    assert not (own / "CALLED").exists()


def test_installed_packages_other_than_model_libraries_are_refused(own: Path) -> None:
    assert isinstance(import_callable.build("loss", "torch.nn:MSELoss", {}), nn.Module)
    for name in ("yaml:load", "numpy:load", "pip:main", "PIL.Image:open"):
        assert code_of("model", name) == "R580", name
    assert "pip" not in sys.modules
    # Of a library, only what says what it gives.
    for name in ("torch.hub:load", "torch:load", "torch:tensor", "torch.nn:MSELoss.forward"):
        assert code_of("model", name) in ("R580", "R581"), name


def test_a_package_that_requires_torch_is_a_model_library(
    own: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path_factory.mktemp("env") / "site-packages"
    for name, needs in (("nets_of_mine", "torch>=2"), ("tools_of_mine", "torchless; extra == 'x'")):
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text(OWN)
        info = site / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\nRequires-Dist: {needs}\n")
        (info / "top_level.txt").write_text(f"{name}\n")
    monkeypatch.syspath_prepend(str(site))
    assert import_callable.build("model", "nets_of_mine:Net", {}) is not None
    assert import_callable.build("model", "nets_of_mine:annotated", {}) is not None
    assert code_of("model", "nets_of_mine:bare") == "R581"
    assert code_of("model", "tools_of_mine:Net") == "R580"
    assert "tools_of_mine" not in sys.modules
    # Through a module of one's own, which is reviewed and recorded, any class may be had.
    (own / "through.py").write_text("from tools_of_mine import Net\n")
    assert import_callable.build("model", "through:Net", {}) is not None


def test_user_modules_named_like_installed_ones_are_refused(own: Path) -> None:
    for name in ("yaml", "profile"):
        (own / f"{name}.py").write_text(OWN)
        with pytest.raises(RuntimeFinding) as caught:
            import_callable.build("model", f"{name}:Net", {})
        assert caught.value.code == "R580"
        assert f"rename {own / name}.py" in caught.value.help


@pytest.mark.slow
def test_files_beside_the_spec_do_not_hide_standard_modules(tmp_path: Path) -> None:
    """A `random.py` beside the spec is nobody's: training goes on as without it."""
    write_data(tmp_path / "data")
    for name in ("random", "profile", "tokenize", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    done = run_alone(write_lock(tmp_path / "compiled", training__epochs=1))
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "out")["status"] == "finished"


@pytest.mark.parametrize("name", ["random.py", "yaml.py", "profile/__init__.py"])
def test_preflight_names_files_that_would_hide_modules_from_a_launcher(name: str, own: Path) -> None:
    path = write_lock(own / "compiled", engine__use_accelerate=True)
    preflight.check(path, {}, launched=False)
    (own / name).parent.mkdir(exist_ok=True)
    (own / name).touch()
    with pytest.raises(RuntimeFinding, match=rf"R580[\s\S]*{name}"):
        preflight.check(path, {}, launched=False)
    # Without a launcher the folder comes last, and so it does if Python is told so.
    preflight.check(write_lock(own / "alone"), {}, launched=False)
    if sys.version_info >= (3, 11):
        preflight.check(path, {"PYTHONSAFEPATH": "1"}, launched=False)
        # An empty member of PYTHONPATH is the working folder.
        for members in (":/nowhere", ".", str(Path.cwd())):
            with pytest.raises(RuntimeFinding, match="R580"):
                preflight.check(path, {"PYTHONSAFEPATH": "1", "PYTHONPATH": members}, launched=False)
        preflight.check(path, {"PYTHONSAFEPATH": "1", "PYTHONPATH": "/nowhere"}, launched=False)


# Checkpoints.


@pytest.fixture
def checkpoint(own: Path) -> Any:
    """Writes a whole checkpoint under a lock with these changes; returns its path."""

    def made(name: str = "some.pt", **changes: Any) -> Path:
        lock = lock_from(lock_content(**changes))
        content = header.make(lock, {"epoch": 1, "step": 0, "history": []}, [{}])
        net = nn.Conv2d(1, 1, 1)
        files.write_file(own / name, {**content, "model": net.state_dict()})
        return own / name

    return made


def named(name: str, **arguments: Any) -> dict[str, Any]:
    return {**BASE["model"], "name": name, "args": arguments}


@pytest.mark.parametrize("name", ["subprocess:getoutput", "mine:touching"])
def test_an_untrusted_checkpoint_runs_no_code_that_its_lock_names(
    name: str, checkpoint: Any, own: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RATC_TRUST")
    (own / "mine.py").write_text(f"{OWN}\ntouched.touch()\n")
    path = checkpoint(model=named(name, cmd="touch CALLED"))
    commands = {
        predict: [str(path), str(own), "-o", "masks"],
        evaluate: [str(path)],
        export: [str(path), "-o", "model.onnx"],
    }
    for module, arguments in commands.items():
        assert module.main(arguments) == 1
        assert "error[R584]" in capsys.readouterr().err
    assert not (own / "CALLED").exists()
    # Even trusted, Python's own library is not called.
    if name.startswith("subprocess"):
        assert predict.main([*commands[predict], "--trust"]) == 1
        assert "error[R580]" in capsys.readouterr().err
        assert not (own / "CALLED").exists()


def test_a_trusted_checkpoint_opens(checkpoint: Any, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RATC_TRUST")
    path = checkpoint(model=named("mine:bare"))
    with pytest.raises(RuntimeFinding, match="R584"):
        inference.open_checkpoint(path, device="cpu")
    assert isinstance(inference.open_checkpoint(path, device="cpu", trust=True).engine.module, nn.Module)


@pytest.mark.parametrize(
    ("listed", "opens"),
    [(["own", "run"], True), (["."], True), (["own"], False), (["run"], False), (["own/deeper", "run"], False)],
)
def test_the_trust_file_covers_checkpoint_and_code(
    listed: list[str], opens: bool, checkpoint: Any, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `ratc trust` writes it; the checkpoint is in one folder, its code in another."""
    from ratc.own_code import trust

    monkeypatch.delenv("RATC_TRUST")
    monkeypatch.setenv("RATC_CONFIG", str(own / "config"))
    for name in ("own/deeper", "run"):
        (own / name).mkdir(parents=True)
    path = checkpoint("run/some.pt", model=named("mine:bare"))
    (own / "mine.py").rename(own / "own/mine.py")
    for name in listed:
        trust.add(str(own / name))
    monkeypatch.chdir(own / "own")
    if opens:
        assert isinstance(inference.open_checkpoint(path, device="cpu").engine.module, nn.Module)
        return
    with pytest.raises(RuntimeFinding, match="R584"):
        inference.open_checkpoint(path, device="cpu")


@pytest.mark.parametrize(
    "changes", [{"training__loss": {"name": "mine:Loss", "args": {}}}, {"data__dataset": "mine:Duck"}]
)
def test_evaluation_requires_trust_in_data_and_loss(
    changes: dict[str, Any], checkpoint: Any, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint(model=named("mine:bare"), **changes)
    model = inference.open_checkpoint(path, device="cpu", trust=True)
    monkeypatch.delenv("RATC_TRUST")
    untrusted = inference.OpenCheckpoint(**{**vars(model), "trust": False})
    with pytest.raises(RuntimeFinding, match="R584"):
        evaluate.score(untrusted, "test", own)


def test_shards_that_run_code_are_not_read(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RATC_TRUST")
    engine = {**BASE["engine"], "deepspeed": True, "use_accelerate": True}
    lock = lock_from(lock_content(engine=engine))
    folder = own / "epoch-0001-step-000000"
    (folder / weights.TAG).mkdir(parents=True)
    torch.save({"module": {"weight": torch.ones(2)}, "more": _Touching()}, folder / weights.TAG / weights.WHOLE)
    content = header.make(lock, {"epoch": 1, "step": 0, "history": []}, [{}])
    files.write_file(folder / shards.HEADER_FILE, {**content, "files": shards.sync_and_list(folder, 0, 1)})
    with pytest.raises(RuntimeFinding, match="R584"):
        weights.load_weights(folder)
    assert not (own / "CALLED").exists()
    assert weights.load_weights(folder, trust=True)["weight"].tolist() == [1, 1]
    assert (own / "CALLED").exists()


class _Touching:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("CALLED").absolute(),)


# Own code that changed.

LOSS = "def squared():\n    return lambda output, target: {0} * ((output.sigmoid() - target) ** 2).mean()\n"


def recorded(folder: Path, *names: str) -> dict[str, Any]:
    """What a lock records of modules, as `ratc compile` does."""
    from ratc.own_code.digests import modules

    return {path: {"digest": one.digest, "parts": one.parts} for path, one in modules(names, str(folder)).items()}


def lock_of(folder: Path, own_code: str = "strict", **changes: Any) -> Path:
    changes = {"training__loss": {"name": "losses:squared", "args": {}}, **changes}
    path = write_lock(folder / "compiled", **changes)
    content = yaml.safe_load(path.read_text())
    content["own_code"] = recorded(folder, "losses:squared")
    content["checkpoint"]["own_code"] = own_code
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.mark.parametrize("change", ["edited", "gone"])
def test_preflight_refuses_code_that_changed_since_compiling(
    change: str, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own / "losses.py").write_text(LOSS.format(1))
    path = lock_of(own)
    preflight.check(path, {}, launched=False)
    if change == "edited":
        (own / "losses.py").write_text(LOSS.format(100))
    else:
        (own / "losses.py").unlink()
    for policy, refused in (("strict", True), ("warn", False)):
        path.write_text(path.read_text().replace("own_code: strict", f"own_code: {policy}"))
        if refused:
            with pytest.raises(RuntimeFinding, match=r"R582[\s\S]*losses.py"):
                preflight.check(path, {}, launched=False)
        else:
            preflight.check(path, {}, launched=False)
            assert "warning: your own code differs from the compiled code: losses.py" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["losses/__init__.py", "losses.so", "losses.cpython-311-x86_64-linux-gnu.so", "losses.pyc"]
)
def test_preflight_refuses_a_module_that_shadows_the_compiled_one(name: str, own: Path) -> None:
    (own / "losses.py").write_text(LOSS.format(1))
    path = lock_of(own)
    (own / "losses.txt").touch()
    (own / "losses").mkdir()
    preflight.check(path, {}, launched=False)
    (own / name).touch()
    with pytest.raises(RuntimeFinding, match=rf"R582[\s\S]*{name} may be imported in place of losses.py"):
        preflight.check(path, {}, launched=False)


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("import not_installed.part", "losses.py:1 needs not_installed.part"),
        ("from not_installed import part", "losses.py:1 needs not_installed"),
        ("import helper.lost", "losses.py:1 needs helper.lost"),
        ("import torch, os.path, helper.here, sys", None),
        ("if False:\n    import not_installed", None),
        ("try:\n    import not_installed\nexcept ImportError:\n    pass", None),
        ("import sys\nsys.path.append('/elsewhere')\nimport not_installed", None),
        ("from . import not_installed", None),
    ],
)
def test_preflight_names_missing_modules_that_user_code_imports(line: str, missing: str | None, own: Path) -> None:
    (own / "helper").mkdir()
    (own / "helper/__init__.py").touch()
    (own / "helper/here.py").touch()
    (own / "losses.py").write_text(f"{line}\n{LOSS.format(1)}")
    path = lock_of(own)
    if missing is None:
        preflight.check(path, {}, launched=False)
        return
    with pytest.raises(RuntimeFinding, match=rf"R509[\s\S]*{missing}\n"):
        preflight.check(path, {}, launched=False)


def test_preflight_names_the_missing_package_of_a_callable(own: Path) -> None:
    (own / "losses.py").write_text(LOSS.format(1))
    path = lock_of(own, model__name="not_installed.nets:UNet")
    with pytest.raises(RuntimeFinding, match=r"R509[\s\S]*`not_installed.nets:UNet` needs not_installed.nets"):
        preflight.check(path, {}, launched=False)
    assert "not_installed" not in sys.modules


def test_paths_of_a_lock_outside_its_folder_are_not_read(own: Path) -> None:
    (own / "losses.py").write_text(LOSS.format(1))
    path = lock_of(own)
    for name in ("/dev/zero", "../../../../dev/zero"):
        path.write_text(path.read_text().replace("losses.py", name))
        with pytest.raises(RuntimeFinding, match="R582"):
            preflight.check(path, {}, launched=False)


def test_imported_modules_missing_from_the_lock_are_named(tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    (tmp_path / "vendored").mkdir()
    (tmp_path / "vendored/factors.py").write_text("FACTOR = 1\n")
    (tmp_path / "computed.py").write_text("FACTOR = 1\n")
    (tmp_path / "losses.py").write_text(
        "import importlib, sys\nsys.path.append('vendored')\nimport factors\n"
        f"importlib.import_module('comp' + 'uted')\n{LOSS.format('factors.FACTOR')}"
    )
    done = run_training(lock_of(tmp_path, training__epochs=1))
    assert done.returncode == 0, done.stderr
    assert "[R593]" in done.stderr
    assert "no lock" not in done.stderr
    assert "computed.py, vendored/factors.py" in done.stderr
    (tmp_path / "losses.py").write_text(LOSS.format(1))
    done = run_training(lock_of(tmp_path, training__epochs=1, output_dir="other"))
    assert done.returncode == 0, done.stderr
    assert "[R593]" not in done.stderr


@pytest.mark.slow
def test_a_run_continues_only_with_unchanged_code(tmp_path: Path) -> None:
    write_data(tmp_path / "data")

    (tmp_path / "losses.py").write_text(LOSS.format(1))
    lock = lock_of(tmp_path, training__epochs=3, training__callbacks=["stopping:Stop"])
    (tmp_path / "stopping.py").write_text(
        "from ratc_runtime.callbacks import Callback\n"
        "class Stop(Callback):\n    def epoch(self, run, record):\n        open('out/STOP', 'w').close()\n"
    )
    done = run_training(lock)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "out")["status"] != "finished"
    # A remark is nothing that is trained.
    (tmp_path / "losses.py").write_text("# scaled\n\n" + LOSS.format(1))
    done = run_training(lock_of(tmp_path, training__epochs=3, training__callbacks=["stopping:Stop"]))
    assert done.returncode == 0, done.stderr
    (tmp_path / "losses.py").write_text(LOSS.format(100))
    done = run_training(lock_of(tmp_path, training__epochs=3))
    assert done.returncode == 1
    assert "error[R583]" in done.stderr
    assert "losses.py: squared changed" in done.stderr
    done = run_training(lock_of(tmp_path, "warn", training__epochs=3))
    assert done.returncode == 0, done.stderr
    assert "losses.py: squared changed" in done.stderr
    assert results(tmp_path / "out")["status"] == "finished"
    # What is finished is finished with the code that trained it.
    (tmp_path / "losses.py").write_text(LOSS.format(1000))
    done = run_training(lock_of(tmp_path, training__epochs=3))
    assert done.returncode == 1
    assert "error[R583]" in done.stderr
    done = run_training(lock_of(tmp_path, "warn", training__epochs=3))
    assert done.returncode == 0, done.stderr
    assert "already finished" in done.stdout
    assert "your own code has changed since" in done.stderr
