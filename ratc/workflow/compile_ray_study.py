"""Makes the files of a study that Ray runs in one job: the job's resources, and each trial's share of its nodes."""

from __future__ import annotations

from dataclasses import replace

from ratc import compiler
from ratc.compiler import File
from ratc.diagnostics import Diagnostic, has_errors
from ratc.fitting.check_batch import Checks
from ratc.plan import Plan, Value, Values
from ratc.spec import keys
from ratc.sweep import Point
from ratc.targets import TARGETS, lock, study
from ratc.targets.array import Array
from ratc.targets.artifact import Artifact, Place, Pool
from ratc.tuning import share as shares
from ratc.tuning.points import Study
from ratc.tuning.share import Share
from ratc.workflow import inputs
from ratc.workflow.compile_array import left_out
from ratc.workflow.inputs import Gathered, Loaded
from ratc.workflow.points import resolve
from ratc.workflow.request import CompileRequest


def of_study(
    request: CompileRequest,
    loaded: Loaded,
    gathered: Gathered,
    target: str,
    place: Place,
    found: Study,
    checks: Checks | None = None,
) -> tuple[tuple[Artifact, ...] | None, Plan | None, tuple[Diagnostic, ...]]:
    """Return the files of the job, and the plan of its resources. Codes: those of a spec, R338, R339, R343.

    Trials are compiled while the job runs, for `local` and with the facts beside them. Here they are resolved in the
    same way, so that infeasible trials are found before.
    """
    assert loaded.settings is not None
    plan, said = _allocation(loaded.settings, gathered)
    if plan is None:
        return None, None, said
    values = plan.values
    gpus = values.get_as(int, "parallel.processes_per_node") if values["hardware.device"].value == "cuda" else 0
    cpus = values["job.cpus_per_node"].value or plan.facts["cpus"].value
    share, more = shares.share(loaded.settings, gpus, cpus)
    said += more
    if share is None:
        return None, None, said
    if plan.values["hardware.device"].value == "cuda" and plan.values["hardware.memory_bytes"].value is None:
        message = "the trials of a study with Ray are compiled for a known card, and nothing names it"
        helps = ("name it: `resources.gpu`, a cluster, or a facts file",)
        return None, None, (*said, Diagnostic("R311", message, loaded.settings["resources.num_gpus"].span, (), helps))
    facts = study.facts(plan, place, share.node_cpus)
    array, left, more = _trials(request, loaded, gathered, found, share, facts, checks)
    said += (*more, *left_out(found, left))
    if has_errors(said) or array is None:
        return None, None, said
    pool = Pool(
        found.trials if found.adaptive else len(array.entries),
        share.gpus,
        share.cpus,
        share.node_gpus,
        share.node_cpus,
        place.sets,
    )
    files, more = TARGETS[target](plan, place, pool)
    said += more
    if files is None:
        return None, None, said
    named = {entry.name: entry.text for entry in array.entries}
    record = study.artifact(place, found, found.trials if found.adaptive else named, left, _ray(found, share))
    shared = (*files, facts, record)
    remark = (
        "The request of the job, and the values that all trials share. Each trial is compiled in the output "
        "folder when it begins."
    )
    common = lock.artifact(replace(place, remark=remark), target, {**_of_all(array), **values}, shared)
    return (*shared, common), plan, said


def _allocation(settings: Values, gathered: Gathered) -> tuple[Plan | None, tuple[Diagnostic, ...]]:
    from ratc.resolve import ALLOCATION
    from ratc.resolve import resolve as derive

    hardware, found = gathered.settled(settings)
    if hardware is None:
        return None, found
    plan, more = derive(settings, hardware, derivations=ALLOCATION)
    return plan, (*found, *more)


def _trials(
    request: CompileRequest,
    loaded: Loaded,
    gathered: Gathered,
    found: Study,
    share: Share,
    facts: Artifact,
    checks: Checks | None,
) -> tuple[Array | None, list[tuple[Point, Diagnostic]], tuple[Diagnostic, ...]]:
    """The study's points, resolved as `ratc tune` will in the job."""
    assert loaded.settings is not None
    container = loaded.settings["environment.container"].value is not None
    own = replace(request, target="local", sets=(*request.sets, *share.settings(container)))
    trial = inputs.load(own)
    left: list[tuple[Point, Diagnostic]] = []
    if trial.settings is None or trial.document is None:
        return None, left, trial.diagnostics
    read, said = compiler.read_facts(File(facts.path, facts.text.encode()))
    assert read is not None, said
    hardware, more = Gathered(values=read, rate=gathered.rate).settled(trial.settings)
    if hardware is None:
        return None, left, more
    array = Array(Place(".", ".", "", "", {}), None, found.span)
    more = (*more, *resolve(own, trial.document, found.points, hardware, array, left, checks))
    return array, left, more


def _of_all(array: Array) -> dict[str, Value]:
    """Return the values that all trials share, without the keys of the job itself."""
    return {path: value for path, value in array.shared().items() if not keys.is_the_jobs(path)}


def _ray(found: Study, share: Share) -> dict[str, object]:
    """How Ray runs the study, for its reviewer."""
    halving = "none"
    if found.halving:
        grace, factor = found.halving
        halving = f"asha: one of {factor} goes on at epoch {grace}, {grace * factor}, {grace * factor**2}, …"
    return {
        "search": "tpe" if found.adaptive else "spread",
        "early_stopping": halving,
        "gpus_per_trial": share.gpus,
        "cpus_per_trial": share.cpus,
        **({"budget_hours": found.budget_seconds / 3600} if found.budget_seconds else {}),
    }
