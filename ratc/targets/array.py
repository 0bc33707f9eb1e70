"""The files of an array of runs: one job for all points, their shared values once, and the own values of each.

``lock.yaml`` holds the shared values, and the digests of the job's files and of ``points.tsv``. That table names every
point with its values and the digest of ``points/NAME/lock.yaml``, which holds the rest of the point's lock.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ratc.diagnostics import Span
from ratc.plan import Plan, Value
from ratc.spec import keys
from ratc.targets import job, lock
from ratc.targets.artifact import Artifact, Place, Shape


@dataclass(frozen=True, slots=True)
class Entry:
    """One point: its name, its values on one line, its differences from the first point's plan, and its files.

    In ``values`` a path is None if only the first point's plan has it.
    """

    name: str
    text: str
    values: Mapping[str, Value | None]
    files: tuple[Artifact, ...] = ()


@dataclass(slots=True)
class Array:
    """The points of a sweep as they are resolved: of each, only the values that differ from the first one's plan."""

    place: Place
    max_parallel: int | None
    span: Span | None = None
    entries: list[Entry] = field(default_factory=list)
    first: Plan | None = None
    _reference: Mapping[str, Value] = field(default_factory=dict)
    _engine: Mapping[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> Shape:
        """The array's data for the job script."""
        return Shape(len(self.entries), self.max_parallel, self.span, frozenset(self._varied))

    def add(self, name: str, text: str, plan: Plan) -> list[str]:
        """Add the next point; returns the paths in its request to the scheduler that differ from the first point's."""
        values = {**plan.values, **_own(name, plan)}
        if self.first is None:
            self.first = plan
            self._reference = values
            self._engine = {file.path: file.text for file in job.engine_files(plan, self.place)}
        different: dict[str, Value | None] = {path: None for path in self._reference if path not in values}
        different |= {path: value for path, value in values.items() if self._differs(path, value.value)}
        files: tuple[Artifact, ...] = ()
        if any(keys.memory_of(path) != "apart" for path in different):
            files = tuple(self._own_files(name, plan))
        self.entries.append(Entry(name, text, different, files))
        return [path for path in different if path.startswith(("job.", "parallel.nodes", "parallel.processes"))]

    def _differs(self, path: str, value: object) -> bool:
        """Whether a lock has another text for the value than for the first point's: 1, 1.0 and true are three."""
        if path not in self._reference:
            return True
        first = self._reference[path].value
        if type(value) is not type(first) or value != first:
            return True
        return isinstance(value, (list, tuple, Mapping)) and repr(value) != repr(first)

    def _own_files(self, name: str, plan: Plan) -> Iterator[Artifact]:
        for file in job.engine_files(plan, self.place):
            if self._engine.get(file.path) != file.text:
                down = f"{job.POINTS}/{name}"
                place = replace(self.place, up=f"../../{self.place.up}", down=f"{self.place.down}/{down}")
                own = {file.path: file for file in job.engine_files(plan, place)}
                yield from (replace(file, path=f"{down}/{file.path}") for file in own.values())
                return

    @property
    def _varied(self) -> set[str]:
        return {path for entry in self.entries for path in entry.values}

    def shared(self) -> dict[str, Value]:
        """Return the values that are equal in all points."""
        varied = self._varied
        return {path: value for path, value in self._reference.items() if path not in varied}

    def artifacts(self, target: str, shared: Sequence[Artifact]) -> tuple[Artifact, ...]:
        """Return all files of the array; ``shared`` are those of the job. The shared lock comes last."""
        varied = self._varied
        own = [list(self._point(entry, varied)) for entry in self.entries]
        rows = [
            f"{entry.name}\t{entry.text}\t{files[-1].digest}\n" for entry, files in zip(self.entries, own, strict=True)
        ]
        table = Artifact(job.TABLE, "name\tvalues\tlock\n" + "".join(rows), consumer="text")
        remark = "The values that all points share; points/NAME/lock.yaml has the other values of each point."
        common = lock.artifact(
            replace(self.place, remark=remark),
            target,
            self.shared(),
            [*shared, table],
        )
        return (*shared, *(file for files in own for file in files), table, common)

    def _point(self, entry: Entry, varied: set[str]) -> Iterator[Artifact]:
        yield from entry.files
        values = {path: entry.values.get(path, self._reference.get(path)) for path in sorted(varied)}
        own = {path: value for path, value in values.items() if value is not None}
        yield lock.point(entry.name, own, entry.files)


def _own(name: str, plan: Plan) -> dict[str, Value]:
    """Return the values that each point has for itself: a name and a folder."""
    experiment, folder = plan.values["experiment_name"], plan.values["output_dir"]
    return {
        "experiment_name": Value(f"{experiment.value}-{name}", "derived", "name of the experiment and of the point"),
        "output_dir": Value(f"{folder.value}/{name}", "derived", "each point has its own folder"),
    }
