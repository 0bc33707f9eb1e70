"""The outcome of a study: its table, its files and its plot."""

import csv
import io
import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from ratc.catalog import tasks
from ratc.tuning import outcome, picture
from ratc.tuning.outcome import FAILED, FINISHED, LEFT_OUT, OPEN, Trial
from tests.unit.ratc.tuning.test_tuning import PRODUCT, read

TRIALS = [
    Trial("0001-a", {"training.learning_rate": 1e-5, "training.batch_size": 4}, FINISHED, 0.5, 2, 9.0),
    Trial("0002-b", {"training.learning_rate": 1e-3, "training.batch_size": 16}, FINISHED, 0.75, 1, 8.0),
    Trial("0003-c", {"training.learning_rate": 1e-4, "training.batch_size": 8}, OPEN, 0.9, 1),
    Trial("0004-d", {"training.learning_rate": 1e-4, "training.batch_size": 8}, FAILED, why="R507"),
    Trial("0005-e", {"training.learning_rate": 1e-4, "training.batch_size": 8}, LEFT_OUT, why="R304"),
]


def test_outcome_is_written_as_table_csv_and_json():
    made = read(PRODUCT)
    assert outcome.best(TRIALS, True).name == "0002-b", "one that has not ended is not the best"
    assert outcome.best(TRIALS, False).name == "0001-a"
    assert outcome.best(TRIALS[2:], True) is None
    rows = outcome.table(made, TRIALS).splitlines()
    assert rows[0].split() == ["trial", "learning_rate", "batch_size", "dice", "epoch", "state"]
    assert [row.split()[0] for row in rows[1:]] == ["0003-c", "0002-b", "0001-a", "0004-d", "0005-e"]
    assert rows[4].split()[-2:] == ["failed", "R507"]
    table = list(csv.DictReader(io.StringIO(outcome.as_csv(made, TRIALS))))
    assert [row["dice"] for row in table] == ["0.5", "0.75", "0.9", "", ""]
    tree = json.loads(outcome.as_json(made, TRIALS))
    assert (tree["best"], tree["trials"][3]["why"]) == ("0002-b", "R507")


def test_trial_is_judged_by_its_best_numeric_epoch():
    epochs = [{"epoch": number, "val_dice": value} for number, value in enumerate([0.1, None, 0.7, 0.7, 0.2], 1)]
    assert outcome.judged({"epochs": epochs}, "dice", True) == (0.7, 3)
    assert outcome.judged({"epochs": epochs}, "dice", False) == (0.1, 1)
    assert outcome.judged({"epochs": [{"epoch": 1, "val_dice": None}]}, "dice", True) == (None, None)
    assert outcome.judged({}, "dice", True) == (None, None)


def test_plot_has_a_line_for_each_trial_with_a_metric():
    made = read(PRODUCT)
    tree = ElementTree.fromstring(picture.svg(made, TRIALS))
    lines = [item for item in tree.iter() if item.tag.endswith("polyline")]
    assert len(lines) == 3
    assert sum("best" in line.get("class") for line in lines) == 1
    for line in lines:
        heights = [float(pair.split(",")[1]) for pair in line.get("points").split()]
        assert len(heights) == 3
        assert all(70 <= height <= 370 for height in heights)
    assert "0002-b: dice 0.7500" in picture.svg(made, TRIALS)
    same = [replace(trial, metric=0.5) for trial in TRIALS[:2]]
    ElementTree.fromstring(picture.svg(made, same))
    ElementTree.fromstring(picture.svg(made, []))


def test_direction_of_every_score_equals_that_of_the_runtime():
    metrics = pytest.importorskip("ratc_runtime.tasks").METRICS
    for known in metrics.values():
        for name, metric in known.items():
            assert tasks.larger_is_better(name) == metric.larger_is_better, name
    assert not tasks.larger_is_better("loss")
