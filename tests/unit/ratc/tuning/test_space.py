"""Search spaces: their entries, their trials, and their errors."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratc import resources
from ratc.cli import main
from ratc.tuning.space import Choices, Range, full_path
from tests.effort import examples
from tests.unit.ratc.tuning.test_tuning import SPEC, read, values


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        ([0.1, 0.5], "a number from 0.1 to 0.5, on a linear scale"),
        ([0.1, 1.0], "a number from 0.1 to 1, on a logarithmic scale"),
        ([0, 0.5], "a number from 0 to 0.5, on a linear scale"),
        ([0.1, 0.2, 0.3], "one of 0.1, 0.2, 0.3"),
        ([0.1], "one of 0.1"),
        ({"choices": [0.1, 0.5]}, "one of 0.1, 0.5"),
        ({"range": [0.1, 0.5], "scale": "log"}, "a number from 0.1 to 0.5, on a logarithmic scale"),
        ({"range": [0.1, 50]}, "a number from 0.1 to 50, on a linear scale"),
    ],
)
def test_entry_of_a_search_space_is_read_as_a_range_or_choices(entry, kind):
    assert read({"search_space": {"training.weight_decay": entry}}).space[0].text == kind


def test_integers_are_choices_in_a_list_and_a_range_if_asked():
    assert isinstance(read({"search_space": {"model.feature_dims": [16, 256]}}).space[0], Choices)
    made = read({"search_space": {"model.num_blocks": {"range": [1, 4]}}, "trials": 40})
    assert isinstance(made.space[0], Range)
    assert sorted(one["model.num_blocks"] for one in values(made)) == [1, 2, 3, 4], "no trial comes twice"


def test_choices_give_every_combination_or_the_requested_number():
    space = {"model.num_blocks": [1, 2, 3], "training.scheduler": ["cosine", "none"]}
    made = read({"search_space": space})
    assert made.whole
    assert len({point.text for point in made.points}) == 6
    few = read({"search_space": space, "trials": 4})
    assert not few.whole
    assert len({point.text for point in few.points}) == 4
    assert read({"search_space": space, "trials": 60}).whole


SPACES = st.fixed_dictionaries(
    {},
    optional={
        "training.learning_rate": st.sampled_from([[1e-5, 1e-2], {"range": [1e-4, 1e-2]}, [1e-3, 3e-3, 1e-2]]),
        "training.weight_decay": st.sampled_from([[0.0, 0.1], {"range": [1e-6, 1], "scale": "log"}]),
        "model.num_blocks": st.sampled_from([[1, 2, 4], {"range": [1, 9]}]),
        "training.scheduler": st.just(["cosine", "step", "none"]),
    },
).filter(bool)


@settings(max_examples=examples(60), deadline=None)
@given(SPACES, st.integers(1, 40), st.integers(0, 2**31))
def test_trials_are_distinct_within_the_space_and_stable_if_extended(space, trials, seed):
    made = read({"search_space": space, "trials": trials, "seed": seed})
    assert len(made.points) <= trials or made.whole
    assert len({point.text for point in made.points}) == len({point.name for point in made.points}) == len(made.points)
    for one in values(made):
        for entry in made.space:
            if isinstance(entry, Range):
                assert entry.low <= one[entry.path] <= entry.high
                assert isinstance(one[entry.path], int) == entry.whole
            else:
                assert one[entry.path] in [node.data() for node in entry.nodes]
    assert values(read({"search_space": space, "trials": trials, "seed": seed})) == values(made)
    more = read({"search_space": space, "trials": trials + 7, "seed": seed})
    if not more.whole:
        assert [point.name for point in more.points[: len(made.points)]] == [point.name for point in made.points]


def test_trials_are_spread_evenly():
    space = {"training.weight_decay": {"range": [0.0, 1.0]}, "training.learning_rate": [1e-4, 1e-2]}
    made = read({"search_space": space, "trials": 64})
    found = values(made)
    for low in range(4):
        count = sum(low / 4 <= one["training.weight_decay"] < (low + 1) / 4 for one in found)
        assert 14 <= count <= 18, "a quarter of the range has about a quarter of the trials"
    logs = sum(one["training.learning_rate"] < 1e-3 for one in found)
    assert 30 <= logs <= 34, "half of a logarithmic range has half of them"
    assert values(made) != values(read({"search_space": space, "trials": 64, "seed": 9}))


@pytest.mark.parametrize(
    ("space", "code", "words"),
    [
        ("{}", "R336", "has no keys"),
        ("{learning_rate: []}", "R336", "no values to choose from"),
        ("{learning_rate: [1e-3, 1e-5]}", "R336", "is reversed"),
        ("{learning_rate: {range: [1e-3, 1e-5]}}", "R336", "is reversed"),
        ("{learning_rate: {range: [1, 2, 3]}}", "R336", "not [low, high]"),
        ("{learning_rate: {range: [1e-3, 1e-3]}}", "R336", "holds only one value"),
        ("{weight_decay: {range: [0, 1], scale: log}}", "R336", "logarithmic scale needs numbers above 0"),
        ("{model.num_blocks: {range: [1, 2.5]}}", "R336", "takes whole numbers"),
        ("{model.num_blocks: [1, 1]}", "R336", "given twice as a choice of `model.num_blocks`"),
        ("{learning_rate: {}}", "R336", "needs either"),
        ("{learning_rate: {range: [1, 2], choices: [1]}}", "R336", "needs either"),
        ("{learning_rate: [1, 2], training.learning_rate: [1, 2]}", "R336", "is in the search space twice"),
        ("{learning_rte: [1e-5, 1e-3]}", "R331", "names no key of a spec"),
        ("{model: [1, 2]}", "R331", "is a section"),
        ("{resources.nodes: [1, 2]}", "R332", "cannot vary `resources.nodes`"),
        ("{model.num_blocks: [1, 0]}", "R104", "point 0002"),
        ("{training.scheduler: [cosine, sine]}", "R103", "did you mean `cosine`"),
        ("{learning_rate: 3}", "R102", "learning_rate"),
        ("{learning_rate: {range: [a, b]}}", "R102", "range"),
        ("{learning_rate: {ranges: [1, 2]}}", "R101", "did you mean `range`"),
        ('{"0": 3}', "R102", "must be"),
        ('{"": {"0": 1}}', "R106", "is not a valid name"),
        ("{training.parameter_groups.0.weight_decay: [1, 2]}", "R106", "of a list, the key of the whole list"),
    ],
)
def test_invalid_search_space_is_refused_at_its_line(tmp_path, capsys, space, code, words):
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC + f"  backend: array\n  search_space: {space}\n")
    for command in (["validate", str(path)], ["tune", str(path), "--num-gpus", "0"]):
        assert main(command) == 1
        said = capsys.readouterr().err
        assert f"error[{code}]" in said
        assert words in said
        assert "spec.yaml:7:" in said


@pytest.mark.parametrize(
    ("training", "space", "told"),
    [
        ("target_batch_size: 32", "batch_size: [2, 4]", "`target_batch_size` stays 32"),
        ("target_batch_size: 32", "batch_size: [2, 4], learning_rate: [1.0e-4, 1.0e-2]", "the accumulation differs"),
        ("epochs: 1", "batch_size: [2, 4], target_batch_size: [8, 16]", "as well as `target_batch_size`"),
        ("epochs: 1", "batch_size: [2, 4]", None),
        ("target_batch_size: 32", "learning_rate: [1.0e-4, 1.0e-2]", None),
    ],
)
def test_searched_micro_batch_with_a_fixed_global_batch_is_a_warning(tmp_path, capsys, training, space, told):
    (tmp_path / "spec.yaml").write_text(
        f"experiment_name: demo\ndata: {{data_dir: .}}\ntraining: {{{training}}}\n"
        f"resources: {{num_gpus: 0, cpus: 2}}\ntuning: {{search_space: {{{space}}}}}\n"
    )
    assert main(["validate", str(tmp_path / "spec.yaml")]) == 0
    err = capsys.readouterr().err
    assert ("warning[R360]" in err) == (told is not None), err
    assert (told or "") in err


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("weight_decay", "training.weight_decay"),
        ("activation_checkpointing", "training.activation_checkpointing"),
        ("batch-size", "training.batch_size"),
        ("seed", "seed"),
        ("model.args.width", "model.args.width"),
        ("training.loss", "training.loss"),
        ("dropout_rat", "dropout_rat"),
    ],
)
def test_key_of_a_search_space_may_omit_its_section(key, path):
    assert full_path(key, resources.schema("experiment")) == path
