"""Properties of the comparison of any two plans, checked on generated specs that the compiler resolves."""

import copy
import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ratc_runtime.config import lock as runtime

from ratc import compiler, facts
from ratc.comparison import effects, words
from ratc.comparison.compare import compare, flat, same, without
from ratc.comparison.model import Change, Comparison, Side
from ratc.comparison.order import lines
from ratc.compiler import File, Inputs
from ratc.plan import Plan, Value, Values
from ratc.spec import keys
from ratc.spec.keys import Effect
from tests.effort import examples
from tests.helpers.made_specs import SPECS, mutate
from tests.places import CASES

MACHINE = facts.Machine(gpus=0, card=None, cpus=8, memory_bytes=16 << 30, source="this machine")


def resolved(tree: Any) -> Plan | None:
    raw = yaml.safe_dump(tree, allow_unicode=True, sort_keys=False).encode()
    values, _ = compiler.analyse(Inputs(File("spec.yaml", raw)))
    return compiler.plan(values, None, MACHINE)[0] if values else None


def side(name: str, plan: Plan) -> Side:
    return Side(name, "local", plan.values, plan.settings, plan.facts)


@st.composite
def plans(draw, text):
    """The plan of a spec with up to four values changed, each so that the spec stays valid: most changes do not."""
    tree = yaml.safe_load(text)
    plan = resolved(tree)
    for _ in range(draw(st.integers(0, 4))):
        changed = copy.deepcopy(tree)
        mutate(draw, changed)
        found = resolved(changed)
        if found:
            tree, plan = changed, found
    return plan


@st.composite
def pairs(draw):
    """Two plans from variations of one spec."""
    text = draw(st.sampled_from(SPECS))
    return side("old", draw(plans(text))), side("new", draw(plans(text)))


def mirrored_row_of(change: Change) -> tuple[Any, ...]:
    """`row_of` of the change with both sides swapped."""
    path = change.formerly or change.path
    return path, change.new, change.old, without_resume(change.effects), change.path if change.formerly else None


def row_of(change: Change) -> tuple[Any, ...]:
    return change.path, change.old, change.new, without_resume(change.effects), change.formerly


def without_resume(found: Iterable[Effect]) -> set[Effect]:
    """The effects without `resume`: epochs can be added to a finished run, but not removed from it."""
    return {effect for effect in found if effect is not Effect.RESUME}


@settings(max_examples=examples(20))
@given(pairs())
def test_plan_does_not_differ_from_itself(both):
    for one in both:
        comparison = compare(one, one)
        assert comparison.is_empty
        assert not comparison.amounts
        assert not comparison.remarks


@settings(max_examples=examples(40))
@given(pairs())
def test_swapped_plans_give_the_mirrored_comparison(both):
    there, back = compare(*both), compare(*reversed(both))
    for ours, theirs in ((there.sources, back.sources), (there.changes, back.changes)):
        assert sorted(map(str, map(mirrored_row_of, ours))) == sorted(map(str, map(row_of, theirs)))
    assert [(row.what, row.new, row.old) for row in there.amounts] == [tuple(values_of(row)) for row in back.amounts]
    assert without_resume(there.effects) == without_resume(back.effects)


def values_of(row: Any) -> tuple[Any, ...]:
    return row.what, row.old, row.new


@settings(max_examples=examples(40))
@given(pairs())
def test_old_spec_with_the_listed_sources_gives_the_new_plan(both):
    old, new = both
    plan, _ = compiler.plan_on(applied(old.settings, compare(old, new)), Values(new.facts))
    assert plan is not None
    given_ = {path: value.value for path, value in flat(plan.values).items()}
    wanted = {path: value.value for path, value in flat(new.values).items()}
    assert given_.keys() == wanted.keys()
    assert all(same(given_[path], wanted[path]) for path in wanted)


def applied(settings_: Values, comparison: Comparison) -> Values:
    """The settings with every listed change of a spec made."""
    entries = flat(settings_)
    for change in comparison.sources:
        if change.path.startswith("spec:"):
            entries.pop((change.formerly or change.path).removeprefix("spec:"), None)
            if change.new is not None:
                entries[change.name] = change.new
    return Values({path: rebuilt(path, value, entries) for path, value in comparison.new.settings.items()})


def rebuilt(path: str, value: Value, entries: dict[str, Value]) -> Value:
    """A setting from the entries; a mapping from those below it."""
    if not isinstance(value.value, dict):
        return replace(entries[path], span=None)
    below = {
        name.removeprefix(f"{path}."): entry.value for name, entry in entries.items() if name.startswith(f"{path}.")
    }
    tree: dict[str, Any] = {}
    for name, entry in below.items():
        *parents, key = name.split(".")
        inner = tree
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[key] = entry
    return replace(value, value=tree)


@settings(max_examples=examples(40))
@given(pairs())
def test_every_change_is_listed_once_below_its_cause(both):
    comparison = compare(*both)
    order = lines(comparison)
    shown = [
        change.path for line in order for change in (line.change, *([line.given] if line.given else ()), *line.others)
    ]
    assert sorted(shown) == sorted(change.path for change in (*comparison.sources, *comparison.changes))
    for number, line in enumerate(order):
        assert line.depth <= (order[number - 1].depth + 1 if number else 0)


@settings(max_examples=examples(20))
@given(pairs())
def test_ignored_effect_removes_only_its_own_changes(both):
    comparison = compare(*both)
    left = without(comparison, [Effect.COSMETIC])
    gone = [change for change in comparison.changes if change.effects == (Effect.COSMETIC,)]
    assert {change.path for change in comparison.changes} - {change.path for change in left.changes} == {
        change.path for change in gone
    }


def locks() -> list[str]:
    return [str(path.relative_to(CASES)) for path in sorted(CASES.glob("*/expected/lock.yaml"))]


def whole_locks() -> list[str]:
    """The locks of runs. An array's or a study's is shared by runs, an entrypoint's has no model."""
    parts = [
        name for name in locks() if not {"points.tsv", "study.yaml"} & set(os.listdir(CASES / name.rpartition("/")[0]))
    ]
    return [name for name in parts if "entrypoint" not in yaml.safe_load((CASES / name).read_text())]


def other(value: Any) -> Any:
    """Another value of the same kind, which the runtime's reader takes."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, list):
        return [other(item) for item in value]
    if isinstance(value, dict):
        return {key: other(item) for key, item in value.items()}
    return f"{value}x"


#: Choices of which the reader knows no other; each is given one that it knows.
CHOICES = {
    "task_type": ("segmentation", "detection"),
    "model.attention_memory": ("full", "chunked"),
    "training.scheduler": ("cosine", "step"),
    "training.optimizer": ("adamw", "sgd"),
    "training.momentum": (0.9, 0.5),
    "training.precision": ("fp32", "bf16"),
    "training.betas": ([0.9, 0.999], [0.8, 0.9]),
    "training.step_gamma": (0.1, 0.2),
    "training.allocator": ("native", "expandable_segments"),
    "data.on_bad_sample": ("fail", "skip"),
    "data.cache": ("none", "memory"),
    "data.scales": ([1.0], [1.0, 0.5]),
    "data.augmentations": ([], [{"RandomVerticalFlip": {"p": 0.5}}]),
    "checkpoint.resume": ("auto", "never"),
    "training.init_from.digest": (f"sha256:{'0' * 64}", f"sha256:{'1' * 64}"),
    "parallel.backend": ("gloo", "nccl"),
    "parallel.strategy": ("ddp", "fsdp2"),
    "fsdp2.shard": ("full", "grads"),
    "fsdp2.weights": ("fp32", "bf16"),
    "hardware.device": ("cpu", "cuda"),
    "logging.wandb_mode": ("online", "offline"),
    "compression.sparsity": (0.5, 0.4),
    "compression.quantization": ("dynamic", "weight_only"),
    "training.last_batch": ("drop", "keep"),
    "checkpoint.own_code": ("strict", "warn"),
}
#: What is no value of the plan. Own code breaks resume by a rule beside the fingerprint: `runtime/test_allowed.py`.
BESIDE = ("inputs", "artifacts", "own_code")
#: What no checkpoint survives for other reasons than its fingerprint: the engine's files.
ENGINE = {"engine.deepspeed", "engine.zero_stage", "parallel.strategy"}


def leaves(tree: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in tree.items():
        found += leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return found


@pytest.mark.parametrize("name", whole_locks())
def test_effect_table_says_breaks_resume_if_the_lock_fingerprint_changes(name):
    tree = yaml.safe_load((CASES / name).read_text())
    before = runtime.Lock.model_validate(tree).fingerprint()
    sections = {key: value for key, value in tree.items() if key not in (*BESIDE, "job")}
    for path in leaves({key: value for key, value in sections.items() if isinstance(value, dict)}):
        after = copy.deepcopy(tree)
        *parents, key = path.split(".")
        inner = after
        for parent in parents:
            inner = inner[parent]
        if inner[key] is None:
            continue
        inner[key] = next(
            (item for item in CHOICES.get(path, CHOICES.get(key, ())) if item != inner[key]), other(inner[key])
        )
        differs = runtime.Lock.model_validate(after).fingerprint() != before
        assert (Effect.RESUME in effects.of_plan(path)[0]) == (differs or path in ENGINE), path


@pytest.mark.parametrize("name", locks())
def test_every_path_of_a_lock_has_an_effect(name):
    tree = yaml.safe_load((CASES / name).read_text())
    for path in leaves({key: value for key, value in tree.items() if key not in BESIDE}):
        if path not in ("lock_version", "ratc_version", "target"):
            assert effects.of_plan(path)[0], path


MORE_EPOCHS = """
experiment_name: demo
data: {{data_dir: data}}
training: {{batch_size: 2, epochs: {epochs}, {more}}}
"""


@pytest.mark.parametrize(
    ("old", "new", "breaks"),
    [
        ((4, "scheduler: none"), (6, "scheduler: none"), False),
        ((6, "scheduler: none"), (4, "scheduler: none"), True),
        ((4, "scheduler: cosine"), (6, "scheduler: cosine"), True),
        ((4, ""), (6, "extensions: [{after: 4}]"), False),
        ((4, ""), (6, "extensions: [{after: 3}]"), True),
        ((4, ""), (6, "seed_: 1, extensions: [{after: 4}]"), True),
        ((6, "extensions: [{after: 4}]"), (8, "extensions: [{after: 4}, {after: 6, learning_rate: 1.0e-6}]"), False),
        ((6, "extensions: [{after: 4}]"), (8, "extensions: [{after: 4, learning_rate: 1.0}, {after: 6}]"), True),
    ],
)
def test_more_epochs_break_resume_unless_unscheduled_or_an_extension(old, new, breaks):
    def plan(epochs: int, more: str) -> Plan:
        text = MORE_EPOCHS.format(epochs=epochs, more=more.replace("seed_: 1, ", ""))
        found = resolved(yaml.safe_load(text + ("seed: 1" if "seed_" in more else "")))
        assert found is not None
        return found

    comparison = compare(side("old", plan(*old)), side("new", plan(*new)))
    assert (Effect.RESUME in comparison.effects) == breaks


@pytest.mark.parametrize(
    "more", [{"training": {"frozen": ["a"]}}, {"training": {"optimizer": "a:B", "optimizer_args": {"c": 1}}}]
)
def test_optional_setting_is_reported_once_if_it_is_added_or_removed(more):
    before = {"experiment_name": "demo", "data": {"data_dir": "data"}, "resources": {"num_gpus": 0}}
    old, new = (side(name, resolved(tree)) for name, tree in (("old", before), ("new", {**before, **more})))
    for one, other in ((old, new), (new, old)):
        names = [line.change.name for line in lines(compare(one, other))]
        assert len(names) == len(set(names))


def test_sizes_that_round_to_one_text_are_shown_with_more_digits():
    for old, new, shown in (
        (1_789_691_904, 1_839_761_408, ("1.67 GiB", "1.71 GiB")),
        (2_000_000_000, 2_000_000_001, ("2000000000", "2000000001")),
        (1 << 30, 3 << 30, ("1.0 GiB", "3.0 GiB")),
    ):
        change = Change("memory.peak_allocated_bytes", Value(old, "derived"), Value(new, "derived"), ())
        assert words.shown(change) == shown


def test_a_section_that_appears_is_listed_by_its_values_only():
    tree = {"experiment_name": "a", "data": {"data_dir": "d"}, "training": {"batch_size": 2}}
    tree["resources"] = {"num_gpus": 0, "cpus": 2}
    old = resolved(tree)
    new = resolved({**tree, "training": {"batch_size": 2, "init_from": {"path": "base.pt", "sha256": "0" * 64}}})
    assert old is not None
    assert new is not None
    for one, other_ in ((old, new), (new, old)):
        found = compare(side("old", one), side("new", other_))
        paths = {change.path for change in (*found.changes, *found.sources)}
        assert "training.init_from.path" in paths
        assert "training.init_from" not in paths


@pytest.mark.parametrize(
    ("old", "new", "paths"),
    [
        ({}, {"a": None}, {"a"}),
        ({"a": None}, {"a": {}}, {"a"}),
        ({}, {"a": {}}, {"a"}),
        ({"a": {}}, {"a": {"b": None}}, {"a.b"}),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": None}}}, {"a.b.c"}),
        ({"a": {"b": {}}}, {"a": {"b": {"c": 2}}}, {"a.b.c"}),
    ],
)
@pytest.mark.parametrize("section", ["model", "data", "loss"])
def test_arguments_of_own_code_differ_if_one_is_null_or_empty_or_deep_inside(old, new, paths, section):
    def of(args: dict[str, Any]) -> Plan:
        tree: dict[str, Any] = {"experiment_name": "a", "training": {"batch_size": 2}, "resources": {"num_gpus": 0}}
        tree["model"] = {"name": "own:Net"}
        tree["data"] = {"data_dir": "d", "dataset": "own:Slides"}
        if section == "loss":
            tree["training"] |= {"loss": "own:Loss", "loss_args": args}
        else:
            tree[section]["args"] = args
        tree["resources"]["cpus"] = 2
        plan = resolved(tree)
        assert plan is not None
        return plan

    at, source = ("training.loss.args", "training.loss_args") if section == "loss" else (f"{section}.args",) * 2
    for one, other_ in ((old, new), (new, old)):
        found = compare(side("old", of(one)), side("new", of(other_)))
        assert {change.path for change in found.changes} == {f"{at}.{path}" for path in paths}
        assert {change.name for change in found.sources} == {f"{source}.{path}" for path in paths}
        assert all(Effect.TRAINING in change.effects for change in (*found.changes, *found.sources))
        assert all(change.causes for change in found.changes if section == "loss")


def test_entries_of_lists_are_compared_as_deep_as_they_go():
    assert same([{"b": [1]}], [{"b": [1]}])
    assert not same([{"b": 1}], [{"b": True}])
    assert not same([{"b": 1}], [{"c": 1}])


def test_values_that_only_the_built_in_loop_has_are_no_changes_if_they_are_empty():
    tree = {"experiment_name": "a", "training": {"batch_size": 2}, "resources": {"num_gpus": 0, "cpus": 2}}
    loop, program = (
        resolved({**tree, "data": {"data_dir": "d"}}),
        resolved({**tree, "entrypoint": {"script": "train.py"}}),
    )
    assert loop is not None
    assert program is not None
    for old, new in ((loop, program), (program, loop)):
        found = compare(side("old", old), side("new", new))
        values = [one.value for change in found.changes for one in (change.old, change.new) if one is not None]
        pairs = [(change.path, change.old, change.new) for change in found.changes if not (change.old and change.new)]
        assert values
        assert not [path for path, one, other_ in pairs if (one or other_).value in (None, {})]


def test_long_values_that_begin_alike_are_shown_from_their_difference():
    old, new = (Value(["--a", "b" * 80, end, "c" * 80], "spec") for end in ("--lr=1", "--lr=2"))
    one, other_ = words.shown(Change("entrypoint.args", old, new, ()))
    assert one != other_
    assert one.startswith("…bbb")
    assert "--lr=1" in one
    assert "--lr=2" in other_
    assert max(len(one), len(other_)) <= 60
    short = Change("entrypoint.args", Value(["a"], "spec"), new, ())
    assert words.shown(short)[0] == "[a]"


def test_a_long_value_that_was_only_extended_is_shown_at_its_end():
    old, new = (Value(text, "spec") for text in ("x" * 100, "x" * 100 + "2def"))
    one, other_ = words.shown(Change("model.args.a", old, new, ()))
    assert other_ == one + "2def"
    assert one.startswith("…x")


@pytest.mark.parametrize(("old", "new"), [(4, 4.0), ([{"x": 1}], [{"x": 1.0}])])
def test_a_whole_number_is_another_argument_of_own_code_than_a_fraction(old, new):
    tree = {
        "experiment_name": "a",
        "data": {"data_dir": "d"},
        "model": {"name": "a:B", "args": {"width": old}},
        "training": {"batch_size": 2, "callbacks": [{"a:C": {"width": old}}], "learning_rate": 1},
        "resources": {"num_gpus": 0, "cpus": 2},
    }
    other = copy.deepcopy(tree)
    other["model"]["args"]["width"] = other["training"]["callbacks"][0]["a:C"]["width"] = new
    other["training"]["learning_rate"] = 1.0
    found = compare(side("old", resolved(tree)), side("new", resolved(other)))
    assert {change.path for change in found.changes} == {"model.args.width", "training.callback_args"}


def test_empty_arguments_of_a_callback_are_none():
    plans = [
        resolved(
            {
                "experiment_name": "a",
                "data": {"data_dir": "d"},
                "training": {"batch_size": 2, "callbacks": [one]},
                "resources": {"num_gpus": 0, "cpus": 2},
            }
        )
        for one in ("a:C", {"a:C": {}})
    ]
    for plan in plans:
        assert plan is not None
        assert plan.values["training.callbacks"].value == ["a:C"]
        assert "training.callback_args" not in plan.values
    assert not compare(side("old", plans[0]), side("new", plans[1])).changes


def test_a_list_of_sections_has_the_meaning_of_its_key():
    tree = {"experiment_name": "a", "data": {"data_dir": "d"}, "resources": {"num_gpus": 0, "cpus": 2}}
    group = {"match": ["head.*"], "learning_rate_factor": 10}
    plain, grouped, extended = (
        resolved({**tree, "training": {"batch_size": 2, "epochs": 4, **more}})
        for more in ({}, {"parameter_groups": [group]}, {"extensions": [{"after": 2}]})
    )
    (change,) = compare(side("old", plain), side("new", grouped)).changes
    assert (change.path, change.meaning) == (
        "training.parameter_groups",
        "some weights get another learning rate or decay",
    )
    assert set(change.effects) == {Effect.TRAINING, Effect.RESUME, Effect.MEMORY}
    assert keys.decides_rate("training.parameter_groups")
    (change,) = compare(side("old", plain), side("new", extended)).changes
    assert change.meaning == "the learning rate follows another schedule"
    assert keys.memory_of("training.extensions") == "apart"
