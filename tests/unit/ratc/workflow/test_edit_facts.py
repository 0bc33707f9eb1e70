"""Measurements in a facts file: added or replaced, without any other change of the file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from ratc import compiler, facts
from ratc.compiler import File
from ratc.memory import measured
from ratc.workflow import edit_facts
from tests.helpers.measurements import CONDITIONS, GIB, MACHINE, measurement, read


def test_new_facts_file_describes_the_machine_and_can_be_read(tmp_path):
    path = tmp_path / "facts.yaml"
    assert edit_facts.add(str(path), measurement(), MACHINE) is None
    values = read(path)
    assert (values["gpu"].value, values["gpus_per_node"].value, values["cpus"].value) == ("h100", 8, 64)
    assert facts.memory_bytes(values["memory"].value) == 512 << 30
    assert [measured.read(entry) for entry in values["measured"].value] == [measurement()]
    assert yaml.safe_load(path.read_text())["measured"][0]["date"] == "2026-11-23"  # PyYAML would make a date of it


def test_card_outside_the_catalogue_is_written_with_its_memory(tmp_path):
    path = tmp_path / "facts.yaml"
    card = facts.describe_card("Made Up", 10 * GIB, "8.0")
    assert edit_facts.add(str(path), measurement(), replace(MACHINE, card=card)) is None
    assert (read(path)["gpu_memory_mib"].value, read(path)["compute_capability"].value) == (10240, "8.0")


def test_measurement_replaces_that_of_the_same_step_and_keeps_the_rest(tmp_path):
    path = tmp_path / "facts.yaml"
    path.write_text("# ours\ngpus_per_node: 4  # four\ngpu: h100\ncpus: 32\n")
    other = measurement(conditions=replace(CONDITIONS, precision="fp32"))
    for new in (measurement(), other, measurement(date="2026-11-24")):
        assert edit_facts.add(str(path), new, MACHINE) is None
    assert path.read_text().startswith("# ours\ngpus_per_node: 4  # four\ngpu: h100\ncpus: 32\nmeasured:\n")
    found = [measured.read(entry) for entry in read(path)["measured"].value]
    assert [(one.conditions.precision, one.date) for one in found] == [("fp32", "2026-11-23"), ("bf16", "2026-11-24")]


def test_keys_after_the_measurements_are_kept(tmp_path):
    path = tmp_path / "facts.yaml"
    edit_facts.add(str(path), measurement(), MACHINE)
    path.write_text(path.read_text().replace("gpus_per_node: 8\n", "") + "\ngpus_per_node: 2\n")
    assert edit_facts.add(str(path), measurement(date="2027-01-01"), MACHINE) is None
    assert read(path)["gpus_per_node"].value == 2
    assert len(read(path)["measured"].value) == 1


def test_json_facts_file_is_not_edited(tmp_path):
    path = tmp_path / "facts.yaml"
    path.write_text('{"gpus_per_node": 8, "gpu": "h100", "cpus": 64}')
    found = edit_facts.add(str(path), measurement(), MACHINE)
    assert (found.code, found.helps) == ("R403", ("name another file",))
    assert path.read_text() == '{"gpus_per_node": 8, "gpu": "h100", "cpus": 64}'


def test_measurements_from_a_yaml_merge_key_are_not_edited(tmp_path):
    path = tmp_path / "facts.yaml"
    edit_facts.add(str(path), measurement(), MACHINE)
    head, _, block = path.read_text().partition("measured:\n")
    merged = f"{head}<<:\n  measured:\n" + "".join(f"  {line}\n" for line in block.splitlines())
    path.write_text(merged)
    assert len(read(path)["measured"].value) == 1
    other = measurement(conditions=replace(CONDITIONS, precision="fp32"))
    assert edit_facts.add(str(path), other, MACHINE).code == "R403"
    assert path.read_text() == merged


@pytest.mark.parametrize(
    ("text", "code"), [("gpus_per_node: [", "R00"), ("cpus: 1\n", "R105"), ("gpus_per_node: 1\ncpus: x\n", "R102")]
)
def test_invalid_facts_file_is_not_edited(tmp_path, text, code):
    path = tmp_path / "facts.yaml"
    path.write_text(text)
    assert edit_facts.add(str(path), measurement(), MACHINE).code.startswith(code)
    assert path.read_text() == text


def test_missing_folder_is_a_diagnostic(tmp_path):
    assert edit_facts.add(str(tmp_path / "gone/facts.yaml"), measurement(), MACHINE).code == "R403"


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("precision: bf16", "precision: fp8", "R103"),
        ("    torch: ", "    pytorch: ", "R101"),
        ("micro_batch: 2", "micro_batch: 0", "R104"),
        ("sha256:0", "sha256:x", "R106"),
        ("2026-11-23", "yesterday", "R106"),
    ],
)
def test_invalid_measurement_in_a_facts_file_is_refused(tmp_path, old, new, code):
    path = tmp_path / "facts.yaml"
    edit_facts.add(str(path), measurement(), MACHINE)
    text = path.read_text()
    assert old in text
    values, found = compiler.read_facts(File("facts.yaml", text.replace(old, new, 1).encode()))
    assert values is None
    assert code in {item.code for item in found}
