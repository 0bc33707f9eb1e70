"""An edited lock is refused with a code: no traceback, no endless read, no control sequences in the message."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ratc_runtime.errors import RuntimeFinding, visible
from ratc_runtime.preflight import check

from tests.effort import examples
from tests.helpers.lockfile import lock_content, write_lock


def refused(path: Path) -> str:
    with pytest.raises(RuntimeFinding) as caught:
        check(path, {}, launched=False)
    said = caught.value.render()
    assert visible(said) == said
    return said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training__learning_rate", 10**400),
        ("training__learning_rate", float("nan")),
        ("training__weight_decay", float("inf")),
        ("training__epochs", 10**30),
        ("seed", -(10**25)),
        ("model__args", {"width": float("nan")}),
        ("model__args", {"a": [{"b": float("-inf")}]}),
        ("model__args", {"a": "b\0"}),
        ("experiment_name", "a\0b"),
        ("artifacts", {"a\0b": "sha256:0"}),
        ("artifacts", {"a\x1b[31mb": "sha256:0"}),
        ("artifacts", {"../other": "sha256:0"}),
        ("artifacts", {"/dev/zero": "sha256:0"}),
        ("artifacts", {"none.yaml": "sha256:\x1b[2J"}),
        ("task_type", "\x1b[2J\u202e"),
    ],
)
def test_values_that_no_compiler_writes_are_refused(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "lock.yaml"
    path.write_text(yaml.safe_dump(lock_content(**{key: value}), allow_unicode=True))
    refused(path)


@pytest.mark.parametrize("text", ["1" + "0" * 4400, "2024-01-01", "!!binary aGk=", "!!set {a}", "{? [1] : 2}"])
def test_yaml_values_of_unusual_types_are_refused(tmp_path: Path, text: str) -> None:
    path = write_lock(tmp_path)
    path.write_text(path.read_text().replace("feature_dims: 16", f"feature_dims: {text}"))
    assert text in path.read_text()
    assert "set_int_max_str_digits" not in refused(path)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
@pytest.mark.parametrize("what", ["artifact", "lock"])
def test_endless_files_are_not_read(tmp_path: Path, kind: str, what: str) -> None:
    path = tmp_path / "lock.yaml"
    path.write_text(yaml.safe_dump(lock_content(artifacts={"run.sh": "sha256:0"})))
    at = tmp_path / "run.sh" if what == "artifact" else path
    at.unlink(missing_ok=True)
    if kind == "link":
        at.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(at)
    else:
        at.mkdir()
    assert ("R501" if what == "artifact" else "R505") in refused(path)


ODD: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**400, "\x1b[2J"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@given(data=st.data())
@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_at_any_key_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    content = lock_content()
    node: Any = content
    while True:
        key = data.draw(st.sampled_from(sorted(node)))
        if not (isinstance(node[key], dict) and node[key] and data.draw(st.booleans())):
            break
        node = node[key]
    node[key] = data.draw(ODD)
    path = tmp_path / "lock.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True))
    said = ""
    try:
        check(path, {}, launched=False)
    except RuntimeFinding as finding:
        said = finding.render()
    assert visible(said) == said
