"""A lock is read completely or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from ratc_runtime.config.lock import read_lock
from ratc_runtime.errors import RuntimeFinding

from tests.helpers.lockfile import lock_content, write_lock


def test_lock_values_keep_their_types(tmp_path: Path) -> None:
    lock = read_lock(write_lock(tmp_path, training__learning_rate=1, training__gradient_clipping=None))
    assert isinstance(lock.training.learning_rate, float)
    assert lock.training.gradient_clipping is None
    assert lock.model.args["feature_dims"] == 16


def refuse(path: Path) -> str:
    with pytest.raises(RuntimeFinding) as caught:
        read_lock(path)
    assert caught.value.code == "R505"
    return caught.value.render()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("training__learning_rate", "1e-05", "learning_rate"),
        ("training__epochs", True, "training.epochs is True, expected an integer"),
        ("training__epochs", 2.0, "expected an integer"),
        ("training__learning_rate", True, "expected a number"),
        ("training__learning_rate", None, "expected a number"),
        ("training__learning_rate", 10**400, "training.learning_rate is an integer of many digits"),
        ("training__tf32", 1, "training.tf32 is 1, expected true or false"),
        ("training__max_steps_per_epoch", 2**63, "finite and fits into 64 bits"),
        ("training__callbacks", "a", "expected a list"),
        ("training__callbacks", ["a", 3], "training.callbacks[1] is 3, expected text"),
        ("training__betas", [0.9, float("nan")], "training.betas[1] is nan"),
        ("training__betas", [0.9, 1], "training.betas[1] is 1, expected less than 1"),
        ("training__weight_decay", -0.1, "training.weight_decay is -0.1, expected at least 0"),
        ("training__loss", {"name": "dice"}, "the lock's keys at training.loss"),
        ("data__augmentations", [{"Flip": {"p": float("inf")}}], "data.augmentations[0].Flip.p is inf"),
        ("data__class_names", ["a", "b"], "data.class_names has 2 values, expected 1"),
        ("parallel__timeout_seconds", 0, "more than 0"),
        ("lock_version", True, "lock_version is True, expected an integer"),
        ("lock_version", "1", "lock_version '1'"),
        ("hardware__memory_bytes", "80G", "expected an integer"),
        ("inputs", {"a": 1}, "inputs.a is 1, expected text"),
        ("inputs", {1: "a"}, "inputs has the key 1, expected text"),
        ("task_type", "other", "'segmentation', 'detection', 'classification', 'custom' or 'multi'"),
        ("task_type", "multi", "tasks section goes with task_type multi"),
        ("training__epochs", 0, "training.epochs is 0, expected more than 0"),
        ("training__precision", "bf32", "training.precision is 'bf32', expected 'fp32', 'fp16' or 'bf16'"),
        ("data__image_size", [32], "data.image_size is [32], expected at least 2 values"),
        ("data__image_size", 32, "image_size"),
        ("data__scales", [], "at least 1 value"),
        ("model", ["rat"], "not a mapping"),
        ("model__args", {1: 2}, "model.args"),
        ("lock_version", 2, "lock_version 2"),
        ("task_type", "detection", "detection"),
        ("checkpoint__best_metric", "accuracy", "accuracy"),
        ("data__scales", [1.0, 0.5], "multi_scale is false"),
        ("parallel__nodes", 2, "not its world_size"),
        ("engine__deepspeed", True, "more than one process"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, key: str, value: object, said: str) -> None:
    assert said in refuse(write_lock(tmp_path, **{key: value}))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("job", {"nodes": {None: 1}}, "job.nodes has the key None"),
        ("own_code", {"a.py": {"digest": "sha256:0", "parts": {"f": 1}}}, "own_code.a.py.parts.f is 1"),
        ("detection", {"queries": 0, "decoder_layers": 1}, "detection.queries is 0"),
        ("compression", {"sparsity": 1}, "keys at compression"),
        ("tasks", {"a": {"task_type": "custom"}}, "tasks.a.task_type is 'custom'"),
        ("point", 3, "point is 3, expected text"),
        (1, 3, "unknown: 1"),
    ],
)
def test_a_wrong_value_of_an_optional_key_is_named(tmp_path: Path, key: object, value: object, said: str) -> None:
    path = tmp_path / "lock.yaml"
    path.write_text(yaml.safe_dump({**lock_content(), key: value}))
    assert said in refuse(path)


def test_unknown_and_missing_keys_are_named(tmp_path: Path) -> None:
    content = lock_content()
    content["training"]["learning_rat"] = content["training"].pop("learning_rate")
    path = tmp_path / "lock.yaml"
    path.write_text(yaml.safe_dump(content))
    said = refuse(path)
    assert "unknown: learning_rat;" in said
    assert "missing: learning_rate" in said


def test_several_errors_are_reported_together(tmp_path: Path) -> None:
    content = lock_content(seed="a", data__num_workers=float("nan"), data__channels=None)
    content["engine"]["zero"] = content["engine"].pop("zero_stage")
    del content["memory"]
    path = tmp_path / "lock.yaml"
    path.write_text(yaml.safe_dump(content))
    assert refuse(path).splitlines() == [
        "error[R505]: the lock has 5 errors",
        "  note: data.num_workers is nan, expected text, or a number that is finite and fits into 64 bits",
        "        keys at engine are not those of version 1: unknown: zero; missing: zero_stage",
        "        keys at top level are not those of version 1: missing: memory",
        "        seed is 'a', expected an integer",
        "        data.channels is None, expected an integer",
        "  help: compile the spec again: ratc compile SPEC",
    ]


def test_contradictions_are_reported_together(tmp_path: Path) -> None:
    said = refuse(write_lock(tmp_path, parallel__nodes=2, data__class_names=[], checkpoint__best_metric="map"))
    for words in ("the lock has 3 errors", "parallel.nodes", "data.class_names", "best_metric is 'map'"):
        assert words in said


def test_a_lock_with_hundreds_of_errors_lists_the_first_ones(tmp_path: Path) -> None:
    said = refuse(write_lock(tmp_path, training__callbacks=list(range(500))))
    assert "the lock has 500 errors" in said
    assert "and 480 more" in said
    assert len(said.splitlines()) < 30


def test_replace_refuses_unknown_names(tmp_path: Path) -> None:
    lock = read_lock(write_lock(tmp_path))
    assert lock.replace(seed=7).seed == 7
    assert lock.seed == 42
    with pytest.raises(TypeError, match="sead"):
        lock.replace(sead=7)
    with pytest.raises(ValidationError):
        lock.seed = 7  # type: ignore[misc]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"\x00\x01\x02",
        b"[1, 2",
        b"a: 1\na: 2\n",
        b"!!python/object/apply:os.system ['true']",
        b"[" * 5000,
        b"a: " + b"x" * (5 * 2**20),
        b"a: &a [1]\n<<: *a\n",
        b"? [1, 2]\n: 3\n",
        b"2026-99-99",
    ],
    ids=["empty", "utf16", "binary", "cut", "twice", "object", "deep", "large", "merge", "listkey", "date"],
)
def test_an_unreadable_lock_file_gives_a_finding(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lock.yaml"
    path.write_bytes(content)
    refuse(path)


def test_a_folder_or_a_missing_file_gives_a_finding(tmp_path: Path) -> None:
    refuse(tmp_path)
    refuse(tmp_path / "none.yaml")


def test_the_fingerprint_changes_only_with_training(tmp_path: Path) -> None:
    def fingerprint(**changes: object) -> str:
        return read_lock(write_lock(tmp_path, **changes)).fingerprint()

    base = fingerprint()
    assert fingerprint(data__num_workers=3, training__micro_batch_size=1, output_dir="elsewhere") == base
    changed = [
        fingerprint(training__learning_rate=0.5),
        fingerprint(seed=1),
        fingerprint(data__image_size=[64, 64]),
        fingerprint(model__args={"feature_dims": 32}),
    ]
    assert base not in changed
    assert len(set(changed)) == 4
