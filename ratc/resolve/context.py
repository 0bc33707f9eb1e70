"""The input of a derivation: settings, facts, the decision of a prediction, and the values derived so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ratc.plan import Value, Values

if TYPE_CHECKING:
    from ratc.memory.decision import Decision

_COMPARED_BY = (
    *("parallel.strategy", "parallel.shard", "parallel.shard_size", "parallel.mixed_precision", "parallel.offload"),
    *("training.zero_stage", "training.deepspeed", "training.offload_optimizer", "training.use_accelerate"),
    *("training.batch_size", "training.optimizer", "training.compile", "training.activation_checkpointing"),
)


@dataclass(slots=True)
class Context:
    """The growing plan. Input paths are ``spec:…``, ``facts:…`` or the path of an earlier value."""

    settings: Values
    facts: Values
    decision: Decision | None = None
    values: dict[str, Value] = field(default_factory=dict)

    @property
    def choice(self) -> Decision | None:
        """The decision, if the spec leaves the micro-batch to it, and with it all that memory decides."""
        return None if self.decision is None or self.decision.is_given else self.decision

    @property
    def compared(self) -> Decision | None:
        """The decision, if it compared strategies and took one."""
        return self.decision if self.decision is not None and self.decision.strategy else None

    def compared_by(self) -> tuple[str, ...]:
        """Return the paths of the settings and facts that decide, beside memory, which strategy `auto` takes."""
        links = [path for path in ("cluster.gpu_link_gb_s", "cluster.network_gb_s") if path in self.facts]
        made = ("parallel.world_size", "training.precision")
        return *made, *(f"spec:{path}" for path in _COMPARED_BY), *(f"facts:{path}" for path in links)

    def keep(self, *paths: str, under: str | None = None) -> None:
        """Take settings into the plan as they are, under their own path or another one."""
        for path in paths:
            given = self.settings[path]
            self.values[under or path] = Value(given.value, given.origin, given.reason, (f"spec:{path}",), given.span)

    def keep_arguments(self, path: str, under: str | None = None) -> None:
        """Take a mapping of arguments into the plan, each under its own path; one that is empty as it is."""
        given = self.settings[path]
        if not given.value:
            self.keep(path, under=under)
        for key, value in given.value.items():
            self.values[f"{under or path}.{key}"] = Value(
                value, given.origin, given.reason, (f"spec:{path}.{key}",), given.span
            )

    def derive(self, path: str, value: Any, reason: str, *inputs: str) -> Any:
        """Put a value that follows from others, and return it."""
        self.values[path] = Value(value, "derived", reason, inputs)
        return value

    def value(self, path: str) -> Any:
        """The bare value derived earlier at a path."""
        return self.values[path].value

    def node_memory(self) -> tuple[int | None, str]:
        """Return the job's host memory on a node, in bytes, and the path of that value."""
        if "job.memory_bytes_per_node" in self.values:
            return self.value("job.memory_bytes_per_node"), "job.memory_bytes_per_node"
        return self.facts["memory_bytes"].value, "facts:memory_bytes"
