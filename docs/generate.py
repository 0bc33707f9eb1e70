"""Writes the parts of the documentation that follow from the sources: `make docs`. A test fails when they drift."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
SCHEMAS = DOCS.parent / "schemas"


def texts() -> dict[str, str]:
    """The text of every generated page, by file name."""
    return {
        "spec.md": _reference("experiment", _SPEC),
        "facts.md": _reference("facts", _FACTS),
        "clusters.md": _reference("cluster", _CLUSTERS),
        "reference/cli.md": _command_line(),
    }


_SPEC = """# The spec

What to train, in one YAML file. This page is generated from `schemas/experiment.schema.json` (`ratc schema` prints it).

The file is read as YAML 1.2: `1e-4` is a number and `on` is text. Unknown keys are errors. Values may also come from
outside the file; later layers win, and `ratc explain SPEC PATH` tells which one decided:

| layer | |
| --- | --- |
| defaults | the last column below |
| the spec | |
| `cluster_<spec>` | a file beside the spec, for `slurm` and `lsf` |
| `slurm_<spec>`, `lsf_<spec>` | likewise, for one scheduler |
| environment | `RAT_DATA_DIR`, `RAT_BATCH_SIZE` … as the short options; any key as `RAT_TRAINING__WEIGHT_DECAY` |
| options | `--data-dir`, `--batch-size` … (`ratc compile --help`), any key with `--set training.weight_decay=0.1` |

Relative paths in a file start at the spec's folder; those of an option or a variable start where the shell is.
`package.module:callable` is imported from the spec's folder or from the environment that trains.
"""

_FACTS = """# Hardware facts

What `--facts FILE` holds: one machine type. This page is generated from `schemas/facts.schema.json`. Without the option
the facts are the card that `resources.gpu` names in the [catalogue](cards.md), or what this machine has.
"""


_CLUSTERS = """# Clusters

What a Slurm or LSF cluster has and allows, in one YAML file. With it `ratc compile --target slurm` or `lsf` plans for
the cluster's own nodes, asks for them as the site wants to be asked, and refuses what the queue would refuse: too many
nodes, GPUs, cores, too much memory or time, a partition or a card that is not there. This page is generated from
`schemas/cluster.schema.json` (`ratc schema cluster` prints it).

## Use one

A spec names its cluster, or a command does:

```yaml
resources:
  cluster: ours          # clusters/ours.yaml in the spec's folder or in one above it
  partition: gpu         # `queue` on LSF; the default one if absent
  gpu: h100              # or node_type: where a partition has several kinds of nodes
  num_gpus: 16
  nodes: 2
  walltime: "10:00:00"
```

```sh
ratc compile spec.yaml --target slurm
ratc compile spec.yaml --target slurm --cluster /etc/ratc/ours.yaml
```

A value with a `/` or the end `.yaml` is a path. A plan is made for nodes that are all alike: where a partition has
several kinds, the spec's `gpu` or `node_type` chooses, and the script says so to the scheduler (`gpu_type` or
`constraint`). Cores and memory that the spec leaves open are the share of a node that goes with its GPUs. Without a
walltime the partition's default is taken, with a warning. Without cluster facts the script is written all the same,
with a warning that nothing was checked. `--facts FILE` beside a cluster describes the nodes in its place; what the
partition allows still holds.

## Write one

`ratc probe` asks the scheduler, on a login node:

```sh
ratc probe slurm -o clusters/ours.yaml
ratc probe lsf -o clusters/ours.yaml
ratc probe local -o facts.yaml          # this machine, as hardware facts for --facts
```

Nodes of a partition that differ become node types of their own. What the scheduler does not tell stays a question: a
comment `# ?` where the answer belongs, and a line under `questions` that a compilation repeats as a warning as soon as
the answer matters. Answer under the key and remove the line. The commands that are run only read:
`scontrol show config`, `scontrol show partition -o`, `scontrol show node -o`; `lsid`, `bqueues -l`, `bhosts -w`,
`lshosts -w`, `lshosts -gpu -w`, `lsload -gpuload -w`, `bmgroup -w -r`.

Two commented examples lie in `specs/clusters/`: `example-slurm.yaml` and `example-lsf.yaml`.
"""


_CLI = """# The command line

Every command with its arguments, options and examples. This page is generated from the commands themselves; `ratc COMMAND --help`
says the same. Options and arguments may be mixed; after `--` nothing is read as an option. Options are written in full.

Exit status: 0 clean, 1 findings or differences, 2 misuse or an internal error, 130 interrupted.
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

    from ratc.cli.command import Argument, LaidOver

    context = click.Context(command, above, info_name=name)
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [f"\n### `ratc {name}`\n\n{command.help.strip()}\n\n```text\nratc {name} {usage}\n```\n\n"]
    rows, laid = [], []
    for parameter in command.params:
        if isinstance(parameter, LaidOver):
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
        parts.append(f"\nValues laid over the spec: {', '.join(laid)}.\n")
    width = max(len(line) for line in command.examples)
    examples = "".join(f"{line:<{width}}  # {text}\n" for line, text in command.examples.items())
    return "".join((*parts, f"\n```sh\n{examples}```\n"))


def _reference(name: str, introduction: str) -> str:
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))
    plain = {key: value for key, value in schema["properties"].items() if "properties" not in value}
    sections = {key: value for key, value in schema["properties"].items() if "properties" in value}
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
