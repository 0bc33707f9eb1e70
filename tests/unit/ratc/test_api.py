"""The Python API: the results of the commands as typed values, without output, and from several threads."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import ratc
from ratc.cli import main

SPEC = """experiment_name: demo
data: {data_dir: data, image_size: 256}
training: {batch_size: 2, target_batch_size: 8}
resources: {num_gpus: 0, cpus: 4}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("spec.yaml").write_text(SPEC)


def test_compile_gives_the_files_of_the_command_and_prints_nothing(capsys):
    found = ratc.compile(ratc.CompileRequest("spec.yaml", sets=("seed=7",)))
    assert found.ok
    assert found.plan.values["training.gradient_accumulation_steps"].value == 4
    assert found.folder == "./compiled/demo/local"
    assert not Path("compiled").exists()
    assert "lock.yaml" in found.write()
    assert capsys.readouterr() == ("", "")
    before = {path: path.read_bytes() for path in Path("compiled").rglob("*.*")}
    assert main(["compile", "spec.yaml", "--set", "seed=7"]) == 0
    assert {path: path.read_bytes() for path in Path("compiled").rglob("*.*")} == before
    assert ratc.check(".") == ()
    Path("compiled/demo/local/run.sh").write_text("edited")
    assert [item.code for item in ratc.check()] == ["R426"]


def test_errors_are_returned_as_diagnostics_with_their_place(capsys):
    found = ratc.compile(ratc.CompileRequest("spec.yaml", text=SPEC.replace("seed", "s").encode() + b"optimizer: x\n"))
    assert (found.ok, found.plan, found.artifacts) == (False, None, ())
    assert [(item.code, item.span.line) for item in found.diagnostics] == [("R101", 5)]
    assert ratc.compile(ratc.CompileRequest("spec.yaml", target="pbs")).diagnostics[0].code == "R401"
    assert ratc.compile(ratc.CompileRequest("gone.yaml")).diagnostics[0].code == "R001"
    with pytest.raises(ValueError, match="errors"):
        found.write()
    assert capsys.readouterr() == ("", "")


def test_environment_variables_count_only_if_passed(monkeypatch):
    monkeypatch.setenv("RAT_EPOCHS", "3")
    alone, given = (
        ratc.compile(ratc.CompileRequest("spec.yaml", variables=variables)) for variables in ({}, {"RAT_EPOCHS": "3"})
    )
    assert given.plan.values["training.epochs"].value == 3
    assert alone.plan.values["training.epochs"].value != 3


def test_diff_returns_the_changes_or_diagnostics():
    Path("other.yaml").write_text(SPEC.replace("target_batch_size: 8", "target_batch_size: 16"))
    found = ratc.diff("spec.yaml", "other.yaml")
    paths = [change.path for change in found.comparison.changes]
    assert "training.global_batch_size" in paths
    assert ratc.diff("spec.yaml", "spec.yaml").comparison.is_empty
    missing = ratc.diff("spec.yaml", "gone.yaml")
    assert missing.comparison is None
    assert missing.diagnostics[0].code == "R001"


def test_unwritable_cache_prints_nothing_from_python(tmp_path, capsys):
    """The commands say it once; from Python nothing is printed."""
    from ratc import cache_folder
    from ratc.console import silence

    (tmp_path / "file").write_text("")
    with silence():
        cache_folder.keep(str(tmp_path / "file" / "traces" / "a.json"), b"{}", 1)
    assert capsys.readouterr() == ("", "")
    cache_folder.keep(str(tmp_path / "file" / "other" / "a.json"), b"{}", 1)
    assert "cannot write the cache" in capsys.readouterr().err


def test_fit_with_an_unknown_card_returns_a_diagnostic():
    found = ratc.fit(ratc.CompileRequest("spec.yaml"), cards=("no-such-card",))
    assert (found.rows, [item.code for item in found.diagnostics]) == ((), ["R301"])


@pytest.mark.parametrize("path", ["nowhere", "", "a\0b", "x" * 5000])
def test_check_of_an_invalid_path_raises_an_error(path):
    with pytest.raises(OSError, match=r"No such file|null character|too long"):
        ratc.check(path)


def test_check_of_a_folder_without_compiled_files_is_no_clean_result():
    Path("empty").mkdir()
    with pytest.raises(FileNotFoundError, match="there is no compiled folder in it: 'empty'"):
        ratc.check("empty")


def test_check_in_a_deleted_working_folder_raises_an_error(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(FileNotFoundError):
        ratc.check()
    assert main(["check"]) == 1


@pytest.mark.parametrize("value", [3, True, b"spec.yaml", ["spec.yaml"]])
def test_argument_of_a_wrong_type_raises_a_type_error_with_its_name(value):
    def named(name):
        return pytest.raises(TypeError, match=rf"`{name}(\[0\])?` is not")

    for name in ("spec", "facts", "output"):
        with named(name):
            ratc.CompileRequest(**{"spec": "spec.yaml", name: value})
    for old, new, name in ((value, "spec.yaml", "old"), ("spec.yaml", value, "new")):
        with named(name):
            ratc.diff(old, new)
    with named("facts"):
        ratc.diff("spec.yaml", "spec.yaml", facts=value)
    with named("target"):
        ratc.diff("spec.yaml", "spec.yaml", target=value)
    with named("path"):
        ratc.check(value)
    with named("path"):
        ratc.load_config_with_auto_optimization(value)
    for call in (ratc.compile, ratc.fit):
        with named("request"):
            call(value)
    with named("cards"):
        ratc.fit(ratc.CompileRequest("spec.yaml"), cards=[value])


@pytest.mark.parametrize(
    "given",
    [
        {"target": None},
        {"target": ["local"]},
        {"predict": "no"},
        {"sets": "training.epochs=3"},
        {"sets": [3]},
        {"sets": None},
        {"short": ["epochs"]},
        {"short": {"epochs": 3}},
        {"text": "experiment_name: demo"},
        {"variables": {"RAT_EPOCHS": 3}},
        {"variables": {3: "x"}},
        {"samples": "100"},
        {"samples": True},
        {"loader_rate": "100"},
        {"loader_rate": True},
    ],
)
def test_request_field_of_a_wrong_type_raises_a_type_error(given):
    with pytest.raises(TypeError, match=f"`{next(iter(given))}"):
        ratc.CompileRequest("spec.yaml", **given)


@pytest.mark.parametrize(
    "given",
    [
        {"short": {"epoch": "3"}},
        {"samples": 0},
        {"samples": 10**400},
        {"loader_rate": 0},
        {"loader_rate": float("nan")},
        {"output": "a\0"},
    ],
)
def test_request_value_out_of_range_raises_a_value_error(given):
    with pytest.raises(ValueError, match=f"`{next(iter(given))}`"):
        ratc.CompileRequest("spec.yaml", **given)


def test_fit_refuses_a_string_of_cards_and_unknown_precisions():
    request = ratc.CompileRequest("spec.yaml")
    with pytest.raises(TypeError, match="`cards`"):
        ratc.fit(request, cards="a100-80")
    with pytest.raises(ValueError, match="bf16, fp16, fp32"):
        ratc.fit(request, precisions=("fp3",))


def test_paths_may_be_path_objects():
    request = ratc.CompileRequest(Path("spec.yaml"), output=Path("out"), sets=["seed=3"])
    assert (request.spec, request.output, request.sets) == ("spec.yaml", "out", ("seed=3",))
    assert ratc.compile(request).write()
    assert ratc.diff(Path("spec.yaml"), Path("spec.yaml")).comparison.is_empty
    assert ratc.check(Path()) == ()
    assert ratc.load_config_with_auto_optimization(Path("spec.yaml"))["experiment_name"] == "demo"


def test_names_and_options_of_the_original_framework_work(capsys):
    config = ratc.load_config_with_auto_optimization("spec.yaml")
    assert config["experiment_name"] == "demo"
    assert config["training"]["gradient_accumulation_steps"] == 4
    Path("bad.yaml").write_text("experiment_name: demo\nspeed: 3\n")
    with pytest.raises(ValueError, match="R101"):
        ratc.load_config_with_auto_optimization("bad.yaml")
    for words in (["--config", "spec.yaml"], ["--config=spec.yaml"], ["spec.yaml"]):
        assert main(["validate", *words]) == 0
        assert capsys.readouterr().err.endswith("spec.yaml: valid\n")


def test_examples_of_the_python_guide_run(capsys):
    text = (Path(ratc.__file__).parents[1] / "docs" / "guides" / "python.md").read_text()
    examples = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    assert len(examples) >= 3
    Path("old.yaml").write_text(SPEC.replace("target_batch_size: 8", "target_batch_size: 16"))
    for example in examples:
        exec(compile(example, "docs/guides/python.md", "exec"), {})
    assert "training.global_batch_size" in capsys.readouterr().out


def test_concurrent_compiles_in_threads_are_independent():
    def one(number):
        text = SPEC.replace("demo", f"demo{number}").replace("target_batch_size: 8", f"target_batch_size: {number * 2}")
        return ratc.compile(ratc.CompileRequest("spec.yaml", text=text.encode()))

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(one, range(1, 33)))
    assert [one.plan.values["training.gradient_accumulation_steps"].value for one in found] == list(range(1, 33))
    assert [one.folder for one in found] == [f"./compiled/demo{number}/local" for number in range(1, 33)]


def test_import_of_ratc_loads_no_submodule():
    code = "import sys, ratc; print([name for name in sys.modules if name.startswith('ratc.')]); ratc.CompileRequest"
    environment = {"PYTHONPATH": str(Path(ratc.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "[]\n"


def test_a_mapping_that_a_caller_changes_changes_no_later_compilation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "experiment_name: demo\ntraining: {batch_size: 2}\ndata: {data_dir: data}\nresources: {num_gpus: 0, cpus: 4}\n"
    )

    def lock():
        found = ratc.compile(ratc.CompileRequest(spec, target="local"))
        return next(one.text for one in found.artifacts if one.path == "lock.yaml")

    def spoil(value):
        if isinstance(value, dict):
            for one in value.values():
                spoil(one)
            value["spoilt"] = 1
        elif isinstance(value, list):
            value.append("spoilt")

    before = lock()
    spoil(ratc.load_config_with_auto_optimization(spec))
    for value in ratc.compile(ratc.CompileRequest(spec, target="local")).plan.settings.values():
        spoil(value.value)
    assert lock() == before
