"""`schemas/lock.schema.json` accepts the same locks as the model, as far as a JSON Schema can."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError
from ratc_runtime.config.lock import Lock, read_lock

from tests.helpers.lockfile import lock_content
from tests.places import ROOT

SCHEMA: dict[str, Any] = json.loads((ROOT / "schemas/lock.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
#: Whole locks, and those of an array's points; the lock that points share is not whole.
GOLDEN = list(json.loads((ROOT / "tests/unit/ratc_runtime/config/fingerprints.json").read_text()))
#: Of every type that JSON has, and beside the limits of the model's numbers and lists.
VALUES: list[Any] = [None, True, 0, 1, -1, 0.5, 1.5, "", "rat", [], [1], [1, 2, 3], [1] * 4, ["a"], [None], {}]
VALUES += [{"a": 1}, {"a": "b"}, [{"a": 1}], {"a": {}}, "fp16", "auto"]


def whole() -> dict[str, Any]:
    """A lock with every section that there is: its values are right one by one."""
    content = lock_content()
    part = {"folder": ".", "dataset": "isic", "args": {}, "num_classes": 1, "class_names": ["a"], "ignore_index": 0}
    head = {"queries": 10, "decoder_layers": 1}
    loss = {"name": "dice", "args": {}}
    content["training"] |= {
        "allocator": "native",
        "optimizer": "sgd",
        "momentum": 0.9,
        "optimizer_args": {},
        "frozen": [],
        "parameter_groups": [{"match": ["head.*"], "learning_rate_factor": 0.1, "weight_decay": 0.0}],
    }
    content["training"]["early_stopping"] = {"metric": "dice", "patience": 3, "min_delta": 0.01}
    content["training"]["init_from"] = {
        "path": "weights.pt",
        "digest": "sha256:" + "0" * 64,
        "strict": True,
        "load": ["*"],
        "skip": ["head.*"],
    }
    content["training"]["callback_args"] = []
    content["data"]["folds"] = {"number": 5, "index": 0, "seed": 0, "group": "^P[0-9]+"}
    content["evaluation"]["scores"] = {}
    content["training"]["extensions"] = [{"after": 1, "learning_rate": 0.1, "warmup_epochs": 0.0}]
    content["model"]["output"] = "out"
    content["hardware"]["cpu_architecture"] = "aarch64"
    content["parallel"]["strategy"] = "fsdp2"
    content["checkpoint"]["own_code"] = "warn"
    split = {"world_size": 2, "micro_batch_size": 1, "gradient_accumulation_steps": 2, "prefetch_factor": 2}
    content["elastic"] = {"2": {**split, "peak_allocated_bytes": 1, "peak_reserved_bytes": 1}}
    return {
        **content,
        "detection": head,
        "tasks": {"one": {"task_type": "detection", "weight": 1.0, "loss": loss, "data": part, "detection": head}},
        "compression": {
            "sparsity": 0.5,
            "structured": False,
            "begin_epoch": 1,
            "end_epoch": 2,
            "quantization": "none",
            "aware": False,
            "metric": "dice",
            "tolerance": 0.1,
        },
        "fsdp2": {"shard": "full", "shard_size": 2, "wrap": ["Block"], "offload": False, "weights": "fp32"},
        "health": {"matrix_tflops": 989.4, "memory_gb_s": 3350.0, "network_gb_s": None, "max_excluded_nodes": 2},
        "job": {"nodes": 1},
        "own_code": {"losses.py": {"digest": "sha256:0", "parts": {"f": "0"}}},
        "point": "0001",
    }


def places(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a mapping or a list."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*at, key)
        yield from places(value, (*at, key))


def is_accepted(content: dict[str, Any]) -> bool:
    try:
        Lock.model_validate(content)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("folder", GOLDEN)
def test_every_golden_lock_is_valid(folder: str) -> None:
    path = ROOT / folder / "lock.yaml"
    content = yaml.safe_load(path.read_text())
    VALIDATOR.validate(read_lock(path).model_dump() if "shared" in content else content)


def test_the_complete_lock_has_every_key() -> None:
    content = whole()
    VALIDATOR.validate(content)
    read = Lock.model_validate(content).model_dump(exclude_unset=True)
    assert read == Lock.model_validate(content).model_dump()


def test_schema_and_model_agree_on_values() -> None:
    content, accepted = whole(), 0
    found = []
    for at in places(content):
        for value in VALUES:
            other = copy.deepcopy(content)
            node = other
            for key in at[:-1]:
                node = node[key]
            node[at[-1]] = value
            # A fault cannot hide behind another one: only the section that holds it is looked at.
            top = VALIDATOR.evolve(schema=SCHEMA["properties"][at[0]])
            says = top.is_valid(other[at[0]])
            accepted += says
            if says != is_accepted(other):
                found.append((at, value, says))
    assert not found
    assert accepted > 500


def test_schema_and_model_agree_on_keys() -> None:
    content = whole()
    sections = [(), *(at for at in places(content))]
    found, refused = [], 0
    for at in sections:
        owner: Any = content
        for key in at:
            owner = owner[key]
        if not isinstance(owner, dict):
            continue
        for change in [{"zzz": 1}, *owner]:
            other: Any = copy.deepcopy(content)
            node = other
            for key in at:
                node = node[key]
            if isinstance(change, dict):
                node.update(change)
            else:
                del node[change]
            says = VALIDATOR.is_valid(other)
            refused += not says
            if says != is_accepted(other):
                found.append((at, change, says))
    assert not found
    assert refused > 100
