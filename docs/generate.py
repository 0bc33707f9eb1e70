"""Writes the parts of the documentation that follow from the sources: `make docs`. A test fails when they drift."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ratc.schema import is_section

DOCS = Path(__file__).parent
SCHEMAS = DOCS.parent / "schemas"


def texts() -> dict[str, str]:
    """The text of every generated page, by its path below this folder."""
    return {
        "reference/spec.md": _reference("experiment", _SPEC),
        "reference/facts.md": _reference("facts", _FACTS),
        "reference/clusters.md": _reference("cluster", _CLUSTERS),
        "reference/cards.md": _cards((DOCS / "reference" / "cards.md").read_text(encoding="utf-8")),
        "reference/lock.md": _lock("lock", _LOCK),
        "reference/program-lock.md": _lock("program-lock", _PROGRAM_LOCK),
        "reference/cli.md": _command_line(),
    }


_SPEC = """# The spec

A spec is one YAML file that describes a training run. This page is generated from `schemas/experiment.schema.json`
(`ratc schema` prints it).

The file is read as YAML 1.2: `1e-4` is a number and `on` is text. Unknown keys are errors. Values may also come from
outside the file, in [layers](../concepts/layers.md). A layer overrides those above it in this table, and
`ratc explain SPEC PATH` names the one that decided:

| layer | |
| --- | --- |
| defaults | the last column of the tables below |
| the spec | |
| `cluster_SPEC` | a file beside the spec, for `slurm` and `lsf` |
| `slurm_SPEC`, `lsf_SPEC` | likewise, for one scheduler |
| variables | `RAT_DATA_DIR`, `RAT_BATCH_SIZE` … as the short options; any key as `RAT_TRAINING__WEIGHT_DECAY` |
| options | `--data-dir`, `--batch-size` … (`ratc compile --help`), any key with `--set training.weight_decay=0.1` |

Relative paths in a file start at the spec's folder. Relative paths in an option or a variable start at the shell's
folder. `package.module:callable` is imported from the spec's folder or from the environment that trains.
"""

_FACTS = """# Hardware facts

The file of `--facts FILE` describes one type of machine. Without the option, ratc takes the card that
`resources.gpu` names from the [catalogue](cards.md); if the spec names none, it takes this machine. This page is
generated from `schemas/facts.schema.json`.
"""


_CLUSTERS = """# Clusters

One YAML file describes a Slurm or LSF cluster: its nodes, its partitions and their limits. With this file, `ratc
compile --target slurm` (or `lsf`) plans for the cluster's own nodes, and writes requests in the form that the site
expects. ratc refuses a request that the queue would refuse. Examples are too many nodes, too much time, and a card
that the cluster does not have. This page is generated from `schemas/cluster.schema.json`
(`ratc schema cluster` prints it).

To write and use such a file, see the guide [A cluster of yours](../guides/cluster.md).
"""

_LOCK = """# The lock

`lock.yaml` is the only file that the compiler hands to the runtime. It holds every value of a run; none of them is
worked out later. It is YAML that reads the same under YAML 1.1 and 1.2. For an example, see
[the lock of `specs/brain`](../../specs/brain/compiled/brain/local/lock.yaml). This page is generated from
`schemas/lock.schema.json` (`ratc schema lock` prints it). The schema is made from the runtime's model of the lock,
`runtime/ratc_runtime/config/lock.py` and `sections.py`.

The runtime refuses a lock with [R505](codes.md) if

- a key is unknown, or one is missing that may not be absent,
- a value has another type. An integer is accepted for a number, but `true` is not, and `2.0` is not an integer,
- a number is not finite, or an integer needs more than 64 bits; the schema does not say this,
- two values contradict each other, such as `num_classes` and the length of `class_names`,
- an artifact lies outside of the lock's folder.

When the script runs, two paths may be replaced, because the place of the data does not change training. The option
`--data-dir` of the runtime or the variable `RAT_DATA_DIR` replaces `data.data_dir`; `--output-dir` or
`RAT_OUTPUT_DIR` replaces `output_dir`.

## The lock of an array

An [array](../concepts/jobs.md#arrays) has one shared lock, and for each point `points/NAME/lock.yaml` with the other
values:

```yaml
lock_version: 1
shared: "../../lock.yaml"        # the values that all points share
point: "0002"                    # the name of this folder, and of the row of points.tsv
experiment_name: demo-0002
training:
  learning_rate: 0.0003
output_dir: outputs/demo/0002
artifacts: {}                    # only if the point has engine files of its own
```

The point's values are merged over the shared ones, and the result is a lock as below. The shared lock has the digest
of `points.tsv`, whose rows have the digests of the points' files.
"""


_PROGRAM_LOCK = """# The lock of an entrypoint

A spec with [`entrypoint`](../guides/own-program.md) starts a program of yours. Its lock is of another kind: it holds
no model and no loss. It is read as strictly as [the lock of a built-in run](lock.md), and the lock of an array has the
same two parts. This page is generated from `schemas/program-lock.schema.json` (`ratc schema program-lock` prints it).
"""

_CLI = """# The command line

This page has every command with its arguments, options and examples. It is generated from the commands themselves;
`ratc COMMAND --help` says the same. Options and arguments may be mixed. After `--` nothing is read as an
option. Options cannot be abbreviated.

| exit status | meaning |
| --- | --- |
| 0 | no findings, no differences |
| 1 | findings or differences |
| 2 | misuse, or an internal error |
| 130 | interrupted |
"""


def _command_line() -> str:
    # Imported here: only this page needs it.
    import click

    from ratc.cli import COMMAND_LINE, GROUPS

    context = click.Context(COMMAND_LINE, info_name="ratc", help_option_names=["-h", "--help"])
    parts = [_CLI]
    for title, group in GROUPS.items():
        parts.append(f"\n## {title}\n")
        for name in (*group, *(["tune lr"] if "tune" in group else [])):
            found = COMMAND_LINE.get_command(context, name)
            inner = found.commands.items() if isinstance(found, click.Group) else [("", found)]
            parts += [_command(f"{name} {second}".rstrip(), one, context) for second, one in inner]
    return "".join(parts)


def _command(name: str, command: Any, above: Any) -> str:
    """The section of one command. Options of a spec are the same for all: their short names are told in a line."""
    import click

    from ratc.cli.command import Argument, SpecOption

    context = click.Context(command, above, info_name=name)
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [f"\n### `ratc {name}`\n\n{command.help.strip()}\n\n```text\nratc {name} {usage}\n```\n\n"]
    rows, laid = [], []
    for parameter in command.params:
        if isinstance(parameter, SpecOption):
            laid.append(f"`{parameter.opts[0]}`")
        elif isinstance(parameter, Argument):
            rows.append((parameter.make_metavar(context), parameter.text, None))
        elif isinstance(parameter, click.Option) and not parameter.hidden:
            choices = "\\|".join(getattr(parameter.type, "choices", ())) or parameter.metavar
            words = ", ".join(parameter.opts) + (f" {choices}" if choices and not parameter.is_flag else "")
            default = parameter.default if isinstance(parameter.default, (str, int, float)) else None
            rows.append((words, parameter.help or "", None if parameter.is_flag else default))
    if rows:
        parts.append("| | | default |\n| --- | --- | --- |\n")
    parts += [f"| `{words}` | {_cell(text)} | {_code(default)} |\n" for words, text, default in rows]
    if laid:
        parts.append(f"\nValues that override the spec: {', '.join(laid)}.\n")
    width = max(len(line) for line in command.examples)
    examples = "".join(f"{line:<{width}}  # {text}\n" for line, text in command.examples.items())
    return "".join((*parts, f"\n```sh\n{examples}```\n"))


def _lock(name: str, head: str) -> str:
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
    return "".join([head, "\n## Top level\n\n", _keys(schema), *_sections(schema, "")])


def _sections(owner: dict[str, Any], path: str) -> Iterator[str]:
    """The tables of an owner's sections, those of the sections in them behind each."""
    for key, value in owner["properties"].items():
        entry = value.get("additionalProperties")
        mapping = isinstance(entry, dict) and "properties" in entry
        section = entry if mapping else value
        if "properties" in section:
            name = f"{path}{key}.NAME" if mapping else f"{path}{key}"
            yield f"\n## `{name}`\n\n{section['description']}\n\n{_keys(section)}"
            yield from _sections(section, f"{name}.")


def _keys(owner: dict[str, Any]) -> str:
    rows = ["| key | value | |\n| --- | --- | --- |\n"]
    for key, schema in owner["properties"].items():
        absent = "" if key in owner["required"] else " May be absent."
        rows.append(f"| `{key}` | {_type(schema)} | {_cell(schema['description'])}{absent} |\n")
    return "".join(rows)


def _type(schema: dict[str, Any]) -> str:
    """The values of a key, null among them, and those in a list."""
    if "minimum" in schema and schema["minimum"] == schema.get("maximum"):
        return _code(schema["minimum"])
    null = " or null" if "null" in schema.get("type", []) and "enum" not in schema else ""
    null = ", `null`" if None in schema.get("enum", []) else null
    inner = schema.get("items", {}) if "array" in schema["type"] else {}
    return _kind(schema) + (f" of {_kind(inner)}" if inner else "") + null


def _cards(page: str) -> str:
    """The page about cards with its table as `ratc/facts/cards.yaml` has them, in the file's order."""
    cards = yaml.safe_load((DOCS.parent / "ratc" / "facts" / "cards.yaml").read_text(encoding="utf-8"))["cards"]
    rows = ""
    for name, card in cards.items():
        precisions = ", ".join(["fp32", *(kind for kind in ("tf32", "fp16", "bf16", "fp8") if card[kind])])
        capability = card["compute_capability"] or card["gfx"]
        rates = card["tflops"]
        half = rates.get("bf16") or rates.get("fp16") or "-"
        peaks = f"{half} | {rates.get('tf32', '-')} | {rates['fp32']} | {card['bandwidth_gb_s']} | {card['watts']}"
        rows += f"| `{name}` | {card['memory_mib'] / 1024:.1f} | {capability} | {precisions} | {peaks} |\n"
    return _with_rows(_with_rows(page, _CARDS_HEAD, rows), _SLICES_HEAD, _slices())


def _slices() -> str:
    """Rows of the slices of cards as `ratc/facts/slices.yaml` has them."""
    slices = yaml.safe_load((DOCS.parent / "ratc" / "facts" / "slices.yaml").read_text(encoding="utf-8"))
    return "".join(
        f"| `{card}-{profile}` | {one['gib']:g} | {one['multiprocessors']} of {of_card['multiprocessors']} "
        f"| {one['bandwidth']} | {of_card['source']} |\n"
        for card, of_card in slices.items()
        for profile, one in of_card["profiles"].items()
    )


def _with_rows(page: str, heading: str, rows: str) -> str:
    """Return a page with these rows in the place of those below a table's heading."""
    before, _, rest = page.partition(heading)
    after = rest.lstrip("\n").partition("\n\n")[2]
    return f"{before}{heading}{rows}\n{after}"


_SLICES_HEAD = (
    "| id | memory (GiB) | multiprocessors | bandwidth | source of the memory |\n| --- | ---: | ---: | ---: | --- |\n"
)
_CARDS_HEAD = (
    "| id | memory (GiB) | compute capability | precisions | 16 bit | tf32 | fp32 | GB/s | W |\n"
    "| --- | ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |\n"
)


def _reference(name: str, introduction: str) -> str:
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
    plain = {key: value for key, value in schema["properties"].items() if not is_section(value)}
    sections = {key: value for key, value in schema["properties"].items() if is_section(value)}
    parts = [introduction, "\n## Top level\n\n" if sections else "\n", _table(plain, schema)]
    for key, section in sections.items():
        parts += [f"\n## `{key}`\n\n", section["description"] + "\n\n", _table(section["properties"], section)]
    described: list[Any] = []
    for key, mapping in plain.items():
        entry = mapping.get("additionalProperties")
        if isinstance(entry, dict) and "properties" in entry and entry not in described:
            described.append(entry)
            parts += [f"\n## Each of `{key}`\n\n", entry["description"] + "\n\n", _table(entry["properties"], entry)]
    return "".join(parts)


def _table(properties: dict[str, Any], owner: dict[str, Any]) -> str:
    rows = ["| key | value | | default |\n| --- | --- | --- | --- |\n"]
    for key, schema in properties.items():
        needed = key in owner.get("required", [])
        default = "required" if needed else _code(schema.get("default"))
        rows.append(
            f"| `{key}` | {_kind(schema)} | {_cell(schema.get('description', ''))}{_example(schema)} | {default} |\n"
        )
    return "".join(rows)


def _kind(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(_code(option) for option in schema["enum"] if option is not None)
    kinds = schema.get("type", "anything")
    names = {"object": "mapping", "array": "list", "string": "text", "boolean": "true or false"}
    words = [names.get(kind, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds) if kind != "null"]
    limits = [("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<")]
    # A limit that only keeps numbers within reason says nothing to a reader.
    bounds = [f"{sign} {schema[key]:g}" for key, sign in limits if key in schema and schema[key] < 10**9]
    return " or ".join(words) + (f" {', '.join(bounds)}" if bounds else "")


def _example(schema: dict[str, Any]) -> str:
    examples = [example for example in schema.get("examples", []) if example != schema.get("default")]
    return f" E.g. {', '.join(_code(example) for example in examples)}." if examples else ""


def _code(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{_cell(text)}`" if text else "empty"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Write the pages."""
    for name, text in texts().items():
        (DOCS / name).parent.mkdir(exist_ok=True)
        (DOCS / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
