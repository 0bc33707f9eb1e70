"""The lock is read whole or not at all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from lockfile import lock_content, write_lock
from ratc_runtime.config.lock import read_lock
from ratc_runtime.errors import RuntimeFinding

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reference" / "lock.md"


def test_the_documented_example_is_a_lock(tmp_path: Path) -> None:
    example = re.search(r"```yaml\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert example is not None
    path = tmp_path / "lock.yaml"
    path.write_text(example[1])
    lock = read_lock(path)
    assert lock.training.global_batch_size == 8
    assert lock.data.scales == [1.0]


def test_values_keep_their_types(tmp_path: Path) -> None:
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
        ("training__epochs", True, "training.epochs"),
        ("training__epochs", 0, "more than zero"),
        ("training__precision", "bf32", "'fp32' or 'fp16' or 'bf16'"),
        ("data__image_size", [32], "expected 2"),
        ("data__image_size", 32, "image_size"),
        ("data__scales", [], "more than zero"),
        ("model", ["rat"], "no mapping"),
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


def test_unknown_and_missing_keys_are_named(tmp_path: Path) -> None:
    content = lock_content()
    content["training"]["learning_rat"] = content["training"].pop("learning_rate")
    path = tmp_path / "lock.yaml"
    path.write_text(yaml.safe_dump(content))
    said = refuse(path)
    assert "unknown: learning_rat;" in said
    assert "missing: learning_rate" in said


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
def test_odd_files_are_findings(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lock.yaml"
    path.write_bytes(content)
    refuse(path)


def test_a_folder_and_a_missing_file_are_findings(tmp_path: Path) -> None:
    refuse(tmp_path)
    refuse(tmp_path / "none.yaml")


def test_the_fingerprint_is_that_of_training(tmp_path: Path) -> None:
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
