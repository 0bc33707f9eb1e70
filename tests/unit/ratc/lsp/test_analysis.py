"""What the language server knows of a text, without a client."""

import pytest

from ratc.lsp.analysis import completions, is_spec
from ratc.yaml.lines import unified


@pytest.mark.parametrize(
    "text",
    ["experiment_name: a\n", "\ufeffexperiment_name: a\n", '"experiment_name": a\n', "seed: 1\n'experiment_name' : a"],
)
def test_a_text_that_names_an_experiment_is_a_spec(text):
    assert is_spec(text)


@pytest.mark.parametrize("text", ["a: {experiment_name: b}\n", "# experiment_name: a\n", "\"experiment_name': a\n", ""])
def test_other_texts_are_not(text):
    assert not is_spec(text)


def offered(text: str) -> list[str]:
    """The words for a cursor that the text has as `|`."""
    before, _, behind = text.partition("|")
    lines = unified(before).split("\n")
    return [one.insert for one in completions(before + behind, len(lines), len(lines[-1]) + 1)]


@pytest.mark.parametrize(
    ("text", "some", "none"),
    [
        ("training: {|", {"epochs: ", "early_stopping: {}"}, {"model: "}),
        ("training: {epochs: 3, |, batch_size: 2}\nseed: 1\n", {"optimizer: "}, {"epochs: ", "batch_size: "}),
        ("training: {epochs: 3, optimizer: |}", {"adamw", "sgd", "muon"}, {"epochs: "}),
        ("training: {\n  epochs: 3,  # {\n  early_stopping: {patience: 3, |", {"metric: "}, {"patience: ", "epochs: "}),
        ("training:\n  early_stopping: {|}\n  epochs: 3\n", {"metric: ", "patience: "}, {"epochs: "}),
        ("description: 'a {'\ntraining:\n  |", {"epochs: ", "early_stopping:\n  "}, {"model: "}),
        ("description: >\n  see: {x\n\n  y\ntraining:\n  |", {"epochs: "}, {"model: "}),
        ('"training": {epochs: 3, |}', {"optimizer: "}, {"epochs: ", "task_type: "}),
        ('training: {"epochs":3, |}', {"optimizer: "}, {"epochs: "}),
        ("x: 2026-13-45\ny: !!int a\ntraining:\n  epochs: 3\n  |", {"optimizer: "}, {"epochs: "}),
        (f"x: {'[' * 600}\ntraining:\n  |", {"epochs: "}, {"model: "}),
        ("# \u2028\ntraining:\n  epochs: 3\n  |", {"optimizer: "}, {"model: "}),
        ("training: {epochs: 3}\n|", {"model:\n  "}, {"epochs: "}),
        ('model: {name: "r|', set(), {"args: "}),
        ("data: {augmentations: [{|", set(), {"data_dir: "}),
        ("training: }{|", set(), {"epochs: "}),
        ("training: {scheduler:|}", {" cosine"}, {"cosine"}),
        ("training:\n  scheduler:|", {" cosine"}, {"cosine"}),
    ],
)
def test_completion_in_flow_mappings(text, some, none):
    found = offered(text)
    assert some <= set(found)
    assert not none & set(found)
    assert bool(found) == bool(some)


def test_built_in_losses_are_offered_and_made_up_names_are_not():
    assert set(offered("training:\n  loss: |\n")) == {"combined", "bce", "dice", "cross_entropy", "set_prediction"}
