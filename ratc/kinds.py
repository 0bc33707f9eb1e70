"""The kind of a YAML or JSON file, by its top-level keys: a file of another kind is one mistake, not one for a key."""

from __future__ import annotations

from dataclasses import dataclass

from ratc.diagnostics import Diagnostic
from ratc.yaml.parse import Document


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file, recognised by keys that it must all have. ``use`` names the command that reads it."""

    name: str
    keys: tuple[str, ...]
    use: str


SPEC = Kind("a spec", ("experiment_name",), "pass the spec to `ratc compile` and similar commands")
LOCK = Kind(
    "a lock of ratc",
    ("lock_version",),
    "`ratc explain`, `ratc diff` and `ratc report` take a lock; for other commands name the spec from which it was "
    "compiled",
)
CLUSTER = Kind("a cluster's facts", ("scheduler", "node_types"), "name it in the spec under `resources.cluster`")
FACTS = Kind("hardware facts", ("gpus_per_node", "cpus"), "pass it with `--facts`")
RATE = Kind("a measured learning rate", ("learning_rate", "of", "steps"), "`ratc tune lr` writes it beside its spec")
_IMPORT = "`ratc import` makes a spec of it"
#: The first that fits is meant.
KINDS = (
    LOCK,
    SPEC,
    CLUSTER,
    FACTS,
    RATE,
    Kind("a configuration of Accelerate", ("compute_environment",), _IMPORT),
    Kind("a configuration of Accelerate", ("distributed_type",), _IMPORT),
    Kind("a configuration of DeepSpeed", ("zero_optimization",), _IMPORT),
    Kind("a configuration of DeepSpeed", ("train_micro_batch_size_per_gpu",), _IMPORT),
)


def other(document: Document, wanted: Kind) -> tuple[Diagnostic, ...]:
    """That a file is of another kind than the one that is wanted; nothing if it may be of that one. Code: R109."""
    keys = document.root.value if isinstance(document.root.value, dict) else {}
    kind = next((kind for kind in KINDS if all(key in keys for key in kind.keys)), wanted)
    if kind is wanted:
        return ()
    name, node = document.root.span.source.name, keys[kind.keys[0]]
    message = f"`{name}` is {kind.name}, not {wanted.name}"
    return (Diagnostic("R109", message, node.key_span or node.span, helps=(kind.use,)),)
