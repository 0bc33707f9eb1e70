"""Layers: later ones win, and every value records its layer."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratc import compiler, layers
from ratc.compiler import File, Inputs
from ratc.yaml.write import mapping
from tests.effort import examples
from tests.helpers.made_specs import EXPERIMENT, exactly

KEYS = {
    "training.epochs": st.integers(3, 900),
    "training.weight_decay": st.floats(0, 1),
    "training.scheduler": st.sampled_from(["cosine", "step", "none"]),
    "data.data_dir": st.text("ab /", min_size=1, max_size=5).map(lambda text: f"/{text}x"),
    "data.pin_memory": st.booleans(),
    "resources.cpus": st.integers(1, 64),
    "seed": st.integers(0, 1000),
}
LAYERS = ("spec", "cluster_spec.yaml", "slurm_spec.yaml", "environment", "option")


@settings(max_examples=examples(400))
@given(st.fixed_dictionaries({}, optional={name: st.fixed_dictionaries({}, optional=KEYS) for name in LAYERS}))
def test_later_layers_win_and_values_record_their_layer(given_values):
    def file(name: str, body: dict[str, Any]) -> File:
        tree: dict[str, Any] = {"experiment_name": "demo", "data": {"data_dir": "d"}} if name == "spec" else {}
        for path, value in body.items():
            *section, key = path.split(".")
            owner = tree.setdefault(section[0], {}) if section else tree
            owner[key] = value
        return File("spec.yaml" if name == "spec" else name, mapping(tree).encode(), name)

    base = file("spec", given_values.get("spec", {}))
    overlays = [file(name, given_values[name]) for name in LAYERS[1:3] if given_values.get(name)]
    variables = {
        f"RAT_{path.upper().replace('.', '__')}" if "." in path else f"RAT_{path.upper()}": _written(value)
        for path, value in given_values.get("environment", {}).items()
    }
    overrides, found = layers.from_environment(variables, EXPERIMENT)
    assert not found
    options = given_values.get("option", {}).items()
    overrides += [layers.from_assignment(f"{path}={_written(value)}") for path, value in options]
    resolved, found = compiler.analyse(Inputs(base, overlays, overrides))
    assert resolved, found
    for path in KEYS:
        holders = [name for name in LAYERS if path in given_values.get(name, {})]
        got = resolved[path]
        if not holders:
            assert got.origin == ("spec" if path == "data.data_dir" else "default")
            continue
        last = holders[-1]
        assert exactly(got.value) == exactly(given_values[last][path])
        assert got.origin == ("spec" if last == "spec" else "layer")
        variable = f"RAT_{path.upper().replace('.', '__')}"
        assert got.reason == {"environment": variable, "option": f"--set {path}"}.get(last, last)


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{a: 1, a: 2}", "the key `a` is given twice"),
        ("{a: 99999999999999999999}", "`99999999999999999999` does not fit in 64 bits"),
        ("{a: *b}", "`*b` refers to an anchor that is not defined above it"),
        ("{a", "not valid YAML"),
    ],
)
def test_unreadable_option_value_is_refused_with_the_reason(text, why):
    base = File("spec.yaml", b"experiment_name: demo\ndata: {data_dir: d}\n", "spec")
    _, found = compiler.analyse(Inputs(base, (), (layers.from_assignment(f"model.args={text}"),)))
    assert [(item.code, item.message) for item in found] == [
        ("R107", f"the value for `model.args` cannot be read: {why}")
    ]
