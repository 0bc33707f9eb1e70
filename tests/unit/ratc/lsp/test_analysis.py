"""What the language server knows of a text, without a client."""

import pytest

from ratc.lsp.analysis import completions, is_spec


@pytest.mark.parametrize(
    "text",
    ["experiment_name: a\n", "\ufeffexperiment_name: a\n", '"experiment_name": a\n', "seed: 1\n'experiment_name' : a"],
)
def test_a_text_that_names_an_experiment_is_a_spec(text):
    assert is_spec(text)


@pytest.mark.parametrize("text", ["a: {experiment_name: b}\n", "# experiment_name: a\n", "\"experiment_name': a\n", ""])
def test_other_texts_are_not(text):
    assert not is_spec(text)


def test_built_in_losses_are_offered_and_made_up_names_are_not():
    offered = {one.label for one in completions("training:\n  loss: \n", 2, 9)}
    assert offered == {"combined", "bce", "dice", "cross_entropy", "set_prediction"}
