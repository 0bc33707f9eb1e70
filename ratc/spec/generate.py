"""Generates the schemas and the table of keys from pydantic models: ``python -m ratc.spec.generate``.

``schemas/*.schema.json`` are of specs, clusters, facts and locks; the lock's model is the runtime's, which prints its
schema in a process of its own. ``ratc/spec/keys.json`` holds the declarations of the fields of specs.

References are written out and optional values become plain type lists, so that editors complete from the file without
following references and an error names one place.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from ratc.spec import keys
from ratc.spec.derived import DERIVED
from ratc.spec.keys import Key, Row

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
        **{f"{name}.schema.json": _text(schema, f"ratc {name}") for name, schema in _locks().items()},
    }


def declarations() -> str:
    """Return the text of ``ratc/spec/keys.json``: the declarations of the models' fields and of the plan alone."""
    from ratc.spec.experiment import Spec

    return keys.text([*(keys.Row(None, path, key) for path, key in DERIVED.items()), *_declared(Spec, "")])


def _declared(model: type[BaseModel], prefix: str, above: Key | None = None) -> Iterator[Row]:
    """Yield the declarations of a model's fields, with the patterns of their paths; a section's is for all its keys."""
    for name, field in model.model_fields.items():
        path = prefix + (field.alias or name)
        key = next((one for one in field.metadata if isinstance(one, Key)), None)
        inner = _sections(field.annotation)
        if key:
            script = key.script or bool(above and above.script)
            plan = key.plan or (None if script else path + (".*" if inner else ""))
            # A section that may be absent is a value of its own then.
            absent = not field.is_required() and field.get_default(call_default_factory=True) is None
            wide = ("*" if absent else ".*") if inner else ""
            yield Row(path + wide, plan, key)
        for section, is_named in inner:
            yield from _declared(section, f"{path}.*." if is_named else f"{path}.", key or above)


def _sections(annotation: Any) -> list[tuple[type[BaseModel], bool]]:
    """The models that a field holds, and whether it holds them by names that are free. A list of them is one value."""
    if get_origin(annotation) is list:
        return []
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [(annotation, False)]
    inside = [one for part in get_args(annotation) for one in _sections(part)]
    return [(one, True) for one, _ in inside] if get_origin(annotation) is dict else inside


def _locks() -> dict[str, dict[str, Any]]:
    """The schemas of both kinds of lock, by name."""
    command = [sys.executable, "-m", "ratc_runtime.config.schema"]
    found: dict[str, dict[str, Any]] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return found


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
    if "properties" in node and "integer" not in node.get("type", ()):
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
        # No type beside it: an option's text is then read as YAML, so that `false` is not text.
        return {**merged, "enum": [True, False, *merged["enum"]]}
    if "integer" in types and "number" in types:
        types.remove("integer")
    return {"type": types, **merged}


def main() -> int:
    """Write the schema files into the folder named on the command line; or into the checkout's ``schemas/``, and
    ``keys.json`` beside the models.
    """
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "schemas"
    for name, text in schemas().items():
        (folder / name).write_text(text, encoding="utf-8")
    if len(sys.argv) == 1:
        (Path(__file__).parent / "keys.json").write_text(declarations(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
