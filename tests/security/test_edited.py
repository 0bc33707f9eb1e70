"""Files that a user has edited or removed: every command reports a code, and none crashes."""

import copy
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ratc.cli import COMMANDS, main
from ratc.scheduler import record
from tests.effort import examples

SPEC = "experiment_name: demo\ndata: {data_dir: data}\nresources: {num_gpus: 0, cpus: 4}\ntraining: {batch_size: 2}\n"
PROGRAM = SPEC.replace("data:", "entrypoint: {command: [echo, '${seed}'], args: ['${lock}', a]}\ndata:")
ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
READING = (
    ["diff", "old", "new"],
    ["diff", "new", "old"],
    ["diff", "new", "spec.yaml"],
    ["check", "new"],
    ["explain", "new", "seed"],
    ["compile", "spec.yaml", "-o", "new", "--check"],
    ["compile", "spec.yaml", "-o", "new"],
)


@pytest.fixture(scope="module", params=["loop", "program"])
def compiled(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("edited")
    before = os.getcwd()
    os.chdir(folder)
    Path("spec.yaml").write_text(SPEC if request.param == "loop" else PROGRAM)
    assert main(["compile", "spec.yaml", "-o", "old"]) == 0
    yield folder
    os.chdir(before)


def edit(data: st.DataObject, tree: dict) -> dict:
    """The tree with something else in one place."""
    tree = copy.deepcopy(tree)
    node = tree
    while True:
        key = data.draw(st.sampled_from(sorted(node)))
        if not (isinstance(node[key], dict) and node[key] and data.draw(st.booleans())):
            break
        node = node[key]
    if data.draw(st.booleans()):
        node[key] = data.draw(ODD)
    else:
        node[data.draw(st.text(max_size=5))] = data.draw(ODD)
    return tree


@given(data=st.data())
@settings(max_examples=examples(100), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_command_crashes_on_an_edited_lock(compiled, capsys, data):
    text = Path("old/lock.yaml").read_text()
    shutil.rmtree("new", ignore_errors=True)
    shutil.copytree("old", "new")
    head = "".join(f"{line}\n" for line in text.splitlines() if line.startswith("#"))
    Path("new/lock.yaml").write_text(head + yaml.safe_dump(edit(data, yaml.safe_load(text)), allow_unicode=True))
    for words in READING:
        main(list(words))
        assert "internal error" not in capsys.readouterr().err, words


@pytest.mark.parametrize("value", ["5", "[1]", "null", "{zz: 1}", "{hausdorff: {a: 1}}"])
@pytest.mark.parametrize("section", ["evaluation", "tasks", "training", "seed", "parallel"])
def test_a_lock_section_of_another_type_is_refused(compiled, capsys, section, value):
    shutil.rmtree("new", ignore_errors=True)
    shutil.copytree("old", "new")
    tree = yaml.safe_load(Path("old/lock.yaml").read_text())
    tree[section] = yaml.safe_load(value)
    Path("new/lock.yaml").write_text(yaml.safe_dump(tree))
    for words in (["diff", "old", "new"], ["diff", "new", "old"]):
        main(words)
        assert "internal error" not in capsys.readouterr().err


@given(data=st.data())
@settings(max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_import_never_crashes_on_any_tree(compiled, capsys, data):
    tree = {"num_processes": 2, "deepspeed_config": {"zero_stage": 2}, "train_batch_size": 8, "model": {"name": "x"}}
    content = data.draw(st.just({}) | st.just(edit(data, tree)) | st.dictionaries(st.text(max_size=5), ODD, max_size=3))
    Path("other").write_text(yaml.safe_dump(content, allow_unicode=True))
    for kind in ("accelerate", "deepspeed", "unified", "slurm", "lsf"):
        main(["import", "other", "-o", "-", "--from", kind])
        assert "internal error" not in capsys.readouterr().err, kind


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "No such file or directory", "out/x"), PermissionError(13, "no", "y")]
)
def test_a_folder_removed_during_a_command_gives_no_internal_error(monkeypatch, capsys, error):
    def fail(request):
        raise error

    assert "tune" in COMMANDS
    monkeypatch.setattr("ratc.workflow.inputs.load", fail)
    assert main(["validate", "spec.yaml"]) == 1
    said = capsys.readouterr().err
    assert "error[R451]" in said
    assert error.filename in said
    assert "internal" not in said


@pytest.mark.parametrize("value", [5, None, ["a"], {"a": 1}])
@pytest.mark.parametrize("key", ["lock", "scheduler", "time", "job"])
def test_a_submission_record_with_invalid_values_is_ignored(key, value):
    good = record.Submission("1", "sha", "slurm", "c", "h", "t")
    text = record.dump([good])
    assert record.load(text) == (good,)
    tree = json.loads(text)
    tree["submissions"][0][key] = value
    expected = None if (key, value) != ("job", None) else (record.Submission(None, "sha", "slurm", "c", "h", "t"),)
    assert record.load(json.dumps(tree)) == expected
