"""Specs for tests of laws, and made-up ones: with values dropped, retyped, renamed or moved."""

from typing import Any

import yaml
from hypothesis import strategies as st

from ratc import resources
from tests.places import ROOT

EXPERIMENT, FACTS = resources.schema("experiment"), resources.schema("facts")


FULL = """\
# every section, most keys
experiment_name: demo
description: "all of it: née, 東京"
task_type: segmentation
seed: 7
output_dir: outputs/here
model: &model
  name: rat
  feature_dims: 64
  num_blocks: 2
  num_heads: 4
  multi_scale: true
training:
  epochs: 20
  target_batch_size: 64
  batch_size: 4
  learning_rate: 1e-4
  betas: [0.9, 0.99]
  scheduler: step
  step_epochs: 5
  warmup_epochs: 1
  gradient_clipping: null
  deepspeed: true
  zero_stage: 3
  offload_optimizer: true
data:
  dataset: isic
  data_dir: /data/it's here
  image_size: [128, 192]
  scales: [1.0, 0.5]
  channels: 1
  num_workers: 2
logging: {backend: none, use_mlflow: true, mlflow_experiment_name: "a b"}
distributed: {auto_detect: true, backend: nccl}
resources: {nodes: 1, num_gpus: 4, gpu: a100-80, cpus: 16, memory: 128GB, walltime: "24:00:00"}
environment:
  modules: [cuda/12.4]
  venv: .venv
  variables: {OMP_NUM_THREADS: 4, NAME: "x y", RATE: 0.5}
  secrets: [WANDB_API_KEY]
  setup: ["ulimit -n 65536"]
checkpoint: {every_epochs: 2, best_metric: iou, resume: never}
"""
OWN = """\
experiment_name: own
model: {name: "package.module:Model", args: {width: 32, deep: {a: [1, 2.5, null, true]}}}
training: {loss: "package:Loss", loss_args: {gamma: 2.0}, gradient_accumulation_steps: 2}
data: {dataset: "package:Data", args: {root: x}, data_dir: d}
tuning: {search_space: {learning_rate: [1e-5, 1e-3]}}
"""
SEVERAL = (ROOT / "tests" / "cases" / "several-tasks" / "spec.yaml").read_text()
SPECS = [FULL, OWN, SEVERAL, (ROOT / "specs" / "brain" / "config.yaml").read_text()]
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.one_of(
    st.integers(-(2**64), 2**64),
    st.sampled_from([0, 1, 2, 3, 7, 2**31, 2**63, 10**9, 10**9 + 1]),
    st.floats(allow_nan=False, allow_infinity=False),
)
values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


def paths(tree: Any, prefix: tuple = ()) -> list[tuple]:
    """The path of every value below the root."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path for key, child in items for path in ((*prefix, key), *paths(child, (*prefix, key)))]


def mutate(draw, tree):
    """Drop, retype, rename or move one value of a tree, in place."""
    places = paths(tree)
    if not places:
        return
    *parents, key = draw(st.sampled_from(places))
    owner = tree
    for parent in parents:
        owner = owner[parent]
    kind = draw(st.sampled_from(["drop", "retype", "rename", "other key's value", "add"]))
    if kind == "drop":
        del owner[key]
    elif kind == "retype":
        owner[key] = draw(values)
    elif kind == "other key's value":
        owner[key] = draw(st.sampled_from([1, 2, 64, 0.5, True, None, "rat", "none", "fp16", "a:b", [1.0], {}]))
    elif isinstance(owner, dict):
        name = draw(words | st.sampled_from([f"{key}s", str(key)[:-1], str(key).upper()]))
        owner[name] = owner.pop(key) if kind == "rename" else draw(values)


@st.composite
def mutated_trees(draw, specs=tuple(SPECS)):
    """A spec with one to four values dropped, retyped, renamed or moved."""
    tree = yaml.safe_load(draw(st.sampled_from(specs)))
    for _ in range(draw(st.integers(1, 4))):
        mutate(draw, tree)
    return tree


def exactly(value: Any) -> Any:
    """The value such that 1, 1.0 and true differ, and 0.0 and -0.0."""
    if isinstance(value, dict):
        return {key: exactly(child) for key, child in value.items()}
    if isinstance(value, list):
        return [exactly(child) for child in value]
    return type(value).__name__, repr(value)
