"""Generated files equal the output of their generators, and the claims of the documentation hold."""

import importlib.util
import json
import re
from pathlib import Path

import jsonschema
import pytest

from ratc.cli import COMMANDS, main
from ratc.facts import MIB, card_names, find_card
from ratc.spec import generate
from tests.places import ROOT


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name", ["experiment.schema.json", "facts.schema.json", "cluster.schema.json", "lock.schema.json"]
)
def test_committed_schemas_equal_those_of_the_models(name):
    assert (ROOT / "schemas" / name).read_text() == generate.schemas()[name], "run `make schema`"


def test_committed_declarations_of_keys_equal_those_of_the_models():
    assert (ROOT / "ratc" / "spec" / "keys.json").read_text() == generate.declarations(), "run `make docs`"


def test_schemas_are_valid_and_describe_each_key():
    for path in (ROOT / "schemas").glob("*.json"):
        schema = json.loads(path.read_text())
        jsonschema.Draft202012Validator.check_schema(schema)
        for key, value in schema["properties"].items():
            for name, child in {key: value, **value.get("properties", {})}.items():
                assert child.get("title"), (path.name, name)
                assert child.get("description"), (path.name, name)


def test_examples_in_the_schema_are_valid():
    schema = json.loads((ROOT / "schemas" / "experiment.schema.json").read_text())
    seen = 0
    for value in schema["properties"].values():
        for child in [value, *value.get("properties", {}).values()]:
            for example in child.get("examples", []):
                jsonschema.validate(example, child)
                seen += 1
    assert seen > 30


def test_reference_pages_equal_those_generated_from_the_schemas():
    for name, text in load(ROOT / "docs" / "generate.py").texts().items():
        assert (ROOT / "docs" / name).read_text() == text, "run `make docs`"


def test_every_relative_link_of_the_documentation_has_a_target():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    assert len(pages) > 5
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} -> {target}"


def test_test_files_named_in_the_documentation_exist():
    pages = [*(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "Makefile", ROOT / ".ci" / "run"]
    named = {name for page in pages for name in re.findall(r"(?<![\w/])tests/[\w/-]+(?:\.\w[\w.]*)?", page.read_text())}
    assert len(named) > 50
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]


def test_the_table_of_cards_equals_the_catalogue():
    table = (ROOT / "docs" / "reference" / "cards.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z0-9-]+)` \|(.*)$", table, re.M))
    assert list(rows) == card_names() or sorted(rows) == sorted(card_names())
    for name, row in rows.items():
        card = find_card(name)
        assert f"{card.memory_bytes / MIB / 1024:.1f}" in row, name
        assert not card.compute_capability or card.compute_capability in row, name


def test_the_readme_names_every_command(capsys):
    text = (ROOT / "README.md").read_text()
    for name in COMMANDS:
        assert f"ratc {name}" in text, name
        assert main([name, "--help"]) == 0
    assert "Usage: ratc" in capsys.readouterr().out


def test_each_test_that_the_docs_name_exists():
    """`file.py::test_name`, or the beginning of a name and an ellipsis."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    found = {name for page in pages for name in re.findall(r"([\w/]+\.py)::(test_\w+)(…?)", page.read_text())}
    assert len(found) > 20
    for file, name, more in found:
        sources = "".join(
            path.read_text() for path in (ROOT / "tests").rglob(Path(file).name) if str(path).endswith(file)
        )
        assert re.search(rf"def {name}{'' if more else '[(]'}", sources), f"{file}::{name}"
