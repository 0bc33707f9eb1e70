"""The commands of README, quickstart and tutorial run, with the outputs that the pages show.

`make setup` is not run: it installs, and CI has done it when a test runs. The numbers of a training are compared only
by their form.
"""

import json
import os
import re
import sys
from pathlib import Path

import pytest

from tests.helpers.walkthrough import any_number, pattern, run, steps
from tests.places import ROOT

TRAINS = ("ratc train", "ratc evaluate", "python -m ratc_runtime")


@pytest.fixture
def environment(tmp_path):
    """A reader's shell: no trust, no cache, this ratc."""
    home = tmp_path / "home"
    home.mkdir()
    names = ("LANG", "LC_ALL", "TMPDIR")
    return {
        **{name: os.environ[name] for name in names if name in os.environ},
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'runtime'}",
        "COLUMNS": "120",
        "NO_COLOR": "1",
        **{f"GIT_{who}_{what}": "you@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }


def walk(page, folder, environment, elsewhere=(), section="", least=6):
    text = (ROOT / page).read_text()
    text = text[text.index(section) :].partition("\n## ")[0] if section else text
    listed = [step for step in steps(text, elsewhere) if "make setup" not in step.text]
    assert len(listed) >= least
    for step, status, said in run(listed, folder, environment):
        finds = step.shown and ("error[" in step.shown or step.text.startswith("ratc diff"))
        assert status == (1 if finds else 0), f"{step.text}{said}"
        if step.shown is not None:
            each = any_number if step.text.startswith(TRAINS) else re.escape
            said = re.sub(r"^ratc: tracing .*\n", "", said, flags=re.MULTILINE)  # what it is waiting for
            assert pattern(step.shown, each).fullmatch(said), f"$ {step.text}{said}"


@pytest.mark.slow
def test_the_commands_of_the_quickstart_train_a_model(tmp_path, environment):
    checkout = tmp_path / "ratc"
    checkout.mkdir()
    walk("docs/quickstart.md", checkout, environment)
    made = tmp_path / "quickstart"
    found = json.loads((made / "outputs/quickstart/results.json").read_text())
    # The few epochs of the starter are enough to see that it learns.
    assert found["test"]["dice"] > found["baseline"]["dice"] + 0.1
    assert len(found["epochs"]) == 6
    assert (made / "outputs/quickstart/checkpoints/best.pt").exists()
    assert len(list((made / "masks").iterdir())) == 78
    assert (made / "data-check/samples.png").exists()
    assert (made / "outputs/quickstart/curves.png").exists()
    assert list((made / "outputs/quickstart/overlays").glob("*.png"))


@pytest.mark.slow
def test_the_readme_shows_the_real_outputs_of_its_commands(tmp_path, environment):
    walk("README.md", tmp_path, environment)
    assert (tmp_path / "compiled/moles/local/lock.yaml").exists()


@pytest.mark.slow
def test_the_commands_of_the_tutorial_write_a_report(tmp_path, environment):
    walk("docs/tutorial.md", tmp_path, environment, elsewhere=("on a login node",))
    assert (tmp_path / "discs/report.html").exists()
    assert (tmp_path / "discs/outputs/discs/checkpoints/best.pt").exists()


@pytest.mark.slow
def test_the_guide_to_own_code_trains_a_model_of_hugging_face(tmp_path, environment):
    walk("docs/guides/own-code.md", tmp_path, environment, section="## Other tasks", least=3)
    found = json.loads((tmp_path / "outputs/words/results.json").read_text())
    assert found["epochs"][-1]["val_loss"] < found["epochs"][0]["train_loss"]


@pytest.mark.slow
def test_the_guide_to_own_programs_predicts_the_memory_of_one(tmp_path, environment):
    walk("docs/guides/own-program.md", tmp_path, environment, section="## The memory of your program", least=3)


def test_the_pages_install_with_the_target_of_the_makefile():
    """The only commands of the pages that no test here runs."""
    assert re.search(r"^setup:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert re.search(r"^VENV \?= \.venv$", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_an_ellipsis_matches_any_text_and_numbers_match_by_form():
    assert pattern("a …\n…\nend\n").fullmatch("a word\nsome\nlines\nend\n")
    assert not pattern("a …\nend\n").fullmatch("a word\nmore\nend\n")
    assert pattern("Dice 0.94 (10 samples)\n", any_number).fullmatch("Dice 0.1 (9 samples)\n")
    assert not pattern("Dice 0.94\n").fullmatch("Dice 0.1\n")
