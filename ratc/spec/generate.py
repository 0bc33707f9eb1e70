"""Generates ``schemas/*.schema.json`` from the pydantic models of specs, clusters and locks.

``python -m ratc.spec.generate`` does it. The lock's model is the runtime's, which prints its schema in a process of
its own.

References are written out and optional values become plain type lists, so that editors complete from the file without
following references and an error names one place.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schemas() -> dict[str, str]:
    """The text of every schema file, by file name."""
    from ratc.spec.cluster import Cluster
    from ratc.spec.experiment import Spec
    from ratc.spec.facts import Facts, MeasuredRate

    return {
        "experiment.schema.json": _text(Spec.model_json_schema(), "ratc experiment"),
        "facts.schema.json": _text(Facts.model_json_schema(), "ratc hardware facts"),
        "rate.schema.json": _text(MeasuredRate.model_json_schema(), "ratc measured learning rate"),
        "cluster.schema.json": _text(Cluster.model_json_schema(), "ratc cluster facts"),
        "lock.schema.json": _text(_lock(), "ratc lock"),
    }


def _lock() -> dict[str, Any]:
    command = [sys.executable, "-m", "ratc_runtime.config.schema"]
    schema: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return schema


def _text(schema: dict[str, Any], title: str) -> str:
    definitions = schema.pop("$defs", {})
    body = _flatten(schema, definitions)
    body["title"] = title
    return json.dumps({"$schema": DIALECT, **body}, indent=2, ensure_ascii=False) + "\n"


def _flatten(node: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_flatten(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = definitions[node["$ref"].rpartition("/")[2]]
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    if "anyOf" in node:
        node = {
            **_union(node["anyOf"], definitions),
            **{key: value for key, value in node.items() if key != "anyOf"},
        }
    if "const" in node:
        node = {**{key: value for key, value in node.items() if key != "const"}, "enum": [node["const"]]}
    if "patternProperties" in node:
        ((pattern, value),) = node.pop("patternProperties").items()
        node |= {"propertyNames": {"pattern": pattern}, "additionalProperties": value}
    if "properties" in node:
        node.pop("default", None)  # a section's default says no more than its keys' defaults
    flat = {key: _flatten(value, definitions) for key, value in node.items()}
    if isinstance(flat.get("title"), str):
        flat["title"] = flat["title"].replace("_", " ").capitalize()
    return flat


def _union(choices: list[dict[str, Any]], definitions: dict[str, Any]) -> dict[str, Any]:
    """One schema for choices of different types: keywords speak of one type each, so they can stand side by side."""
    merged: dict[str, Any] = {}
    types: list[str] = []
    for choice in choices:
        part = _flatten(choice, definitions)
        types.append(part.pop("type"))
        clash = merged.keys() & part.keys()
        if clash:
            raise ValueError(f"a union repeats {sorted(clash)}")
        merged |= part
    if "enum" in merged and "null" in types:
        merged["enum"] = [*merged["enum"], None]
    if "enum" in merged and "boolean" in types:
        # No type beside it: an option's text is then read as YAML, so that `false` is no text.
        return {**merged, "enum": [True, False, *merged["enum"]]}
    if "integer" in types and "number" in types:
        types.remove("integer")
    return {"type": types, **merged}


def main() -> int:
    """Write the schema files into the folder named on the command line, or into the checkout's ``schemas/``."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "schemas"
    for name, text in schemas().items():
        (folder / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
