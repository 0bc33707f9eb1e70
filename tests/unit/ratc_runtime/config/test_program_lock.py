"""The lock of an entrypoint: edited values are refused with R505, never with a traceback."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ratc_runtime.config import program_lock
from ratc_runtime.config.program_lock import ProgramLock, read_any
from ratc_runtime.errors import RuntimeFinding, visible
from ratc_runtime.program import __main__ as starter

import ratc.program
from ratc.spec.base import MODULE
from tests.effort import examples
from tests.places import CASES, ROOT
from tests.unit.ratc_runtime.config.test_lock_edited import ODD

GOLDEN = [ROOT / "specs/text/compiled/text/local/lock.yaml", *sorted(CASES.glob("entrypoint-*/expected/lock.yaml"))]
CONTENT: dict[str, Any] = yaml.safe_load((CASES / "entrypoint-script/expected/lock.yaml").read_text())


def lock_file(folder: Path, **changes: Any) -> Path:
    """A lock with other values: `entrypoint__kind="module"` sets `entrypoint.kind`."""
    content = copy.deepcopy(CONTENT)
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        node = content
        for parent in parents:
            node = node[parent]
        node[last] = value
    path = folder / "lock.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML, and has halves of characters
    return path


def refused(path: Path) -> str:
    with pytest.raises(RuntimeFinding) as caught:
        read_any(path)
    assert caught.value.code == "R505"
    said = caught.value.render()
    assert visible(said) == said
    return said


def test_compiler_and_runtime_know_the_same_program_variables() -> None:
    assert program_lock.HANDED == ratc.program.HANDED
    assert program_lock.AT_START == ratc.program.AT_START
    assert f"^{program_lock._MODULE.pattern}$" == MODULE


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.relative_to(ROOT).parts[2])
def test_every_golden_program_lock_is_read_and_passes_on_its_values(path: Path) -> None:
    lock = read_any(path)
    assert isinstance(lock, ProgramLock)
    schema = json.loads((ROOT / "schemas/program-lock.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(yaml.safe_load(path.read_text()))
    assert set(lock.handed()) == {*ratc.program.HANDED, *ratc.program.SWITCHES}
    assert lock.handed()["micro_batch_size"] == lock.training.micro_batch_size


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"entrypoint__plan": {}}, "unknown: plan"),
        ({"entrypoint__args": ["\ud800"]}, "entrypoint.args[0]"),
        ({"entrypoint__args": ["a", "${nope}"]}, "entrypoint.args[1] holds ${nope}"),
        ({"entrypoint__args": ["${micro_batch_size}"]}, "entrypoint.args[0] holds"),
        ({"entrypoint__args": ["\0"]}, "entrypoint.args[0]"),
        ({"entrypoint__args": [7]}, "entrypoint.args[0]"),
        ({"entrypoint__program": ""}, "entrypoint.program"),
        ({"entrypoint__kind": "module", "entrypoint__program": "-c"}, "expected the name of a module"),
        ({"entrypoint__kind": "module", "entrypoint__program": "a.py\n"}, "expected the name of a module"),
        ({"entrypoint__launcher": "torchrun"}, "engine.use_accelerate"),
        ({"training__micro_batch_size": 4}, "training.global_batch_size"),
        ({"inputs": {"a\ud800": "sha256:0"}}, "inputs has the key"),
    ],
)
def test_values_that_no_compiler_writes_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in refused(lock_file(tmp_path, **changes))


@given(data=st.data())
@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_at_any_key_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    """And what is read makes a command and its variables."""
    content: Any = copy.deepcopy(CONTENT)
    node = content
    while True:
        key = data.draw(st.sampled_from(sorted(node)))
        if not (isinstance(node[key], dict) and node[key] and data.draw(st.booleans())):
            break
        node = node[key]
    node[key] = data.draw(ODD | st.lists(st.text("${}-=\0\ud800ab_", max_size=9), max_size=3))
    path = tmp_path / "lock.yaml"
    path.write_text(json.dumps(content))
    said, lock = "", None
    try:
        lock = read_any(path)
    except RuntimeFinding as finding:
        said = finding.render()
    assert visible(said) == said
    if not isinstance(lock, ProgramLock):
        return
    start = starter.parse(["--lock", str(path), "--", "{}"])
    told = starter.at_start(lock, start)
    for text in [*starter.words(lock, ["{}"], told), *starter.variables(lock, start, told).values()]:
        assert "\0" not in text
        text.encode()


def test_the_built_in_loop_refuses_the_lock_of_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ratc_runtime
    from ratc_runtime.config.lock import read_lock

    monkeypatch.chdir(tmp_path)
    path = lock_file(tmp_path)
    for use in (lambda: read_lock(path), lambda: ratc_runtime.UnifiedTrainer(path).train()):
        with pytest.raises(RuntimeFinding, match=r"R505.* is the lock of a program of its own") as caught:
            use()
        assert "start the run.sh" in caught.value.render()


@pytest.mark.parametrize("name", ["results.json", "checkpoints", "logs"])
def test_opening_the_checkpoint_of_a_program_s_folder_is_refused(tmp_path: Path, name: str) -> None:
    from ratc_runtime.inference import open_checkpoint

    (tmp_path / name).mkdir()
    with pytest.raises(RuntimeFinding, match=r"R508.* holds no checkpoint of the built-in loop"):
        open_checkpoint(tmp_path)
