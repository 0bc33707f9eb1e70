"""One loop over the golden folders of `tests/changes`: the output of `ratc diff` for a reviewer.

A folder holds `old/` and `new/`, each with a `spec.yaml` and the files beside it, `args.txt` with options, and
`expected.txt`, which is empty if nothing differs. `expected.md` and `expected.json` are optional.
`python -m tests.product.test_changes [NAME ...]` writes them again: read them as a reviewer would.
"""

import contextlib
import io
import json
import os
import shlex
import sys
from pathlib import Path

import pytest

from ratc.cli import main
from ratc.own_code.trust import VARIABLE
from tests.places import CHANGES

FORMS = {"expected.txt": "text", "expected.md": "markdown", "expected.json": "json"}


def told(folder: Path, form: str) -> tuple[int, str]:
    """Exit status and output of `ratc diff` in the folder."""
    options = shlex.split((folder / "args.txt").read_text())
    out, here = io.StringIO(), os.getcwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            status = main(["diff", "old/spec.yaml", "new/spec.yaml", "--format", form, *options])
    finally:
        os.chdir(here)
    return status, out.getvalue()


def folders() -> list[Path]:
    return sorted(path for path in CHANGES.iterdir() if path.is_dir())


#: Its prediction traces a model at 512 and 768 pixels; `wider-model-needs-memory` stands for it in the quick tests.
TRACED = {"larger-images", "more-nodes-in-a-range"}


@pytest.mark.parametrize(
    "folder",
    [
        pytest.param(path, marks=pytest.mark.slow(every=True) if path.name in TRACED else (), id=path.name)
        for path in folders()
    ],
)
def test_a_change_gives_its_expected_diff_in_each_format(folder):
    assert (folder / "expected.txt").exists(), "the case expects nothing"
    for name, form in FORMS.items():
        if (folder / name).exists():
            status, out = told(folder, form)
            assert out == (folder / name).read_text()
            assert status == (1 if (folder / "expected.txt").read_text() else 0)


def test_at_least_twenty_changes_cover_every_format():
    assert len(folders()) >= 20
    for name in FORMS:
        assert list(CHANGES.glob(f"*/{name}"))


def test_json_holds_the_verdict_of_the_text():
    for path in CHANGES.glob("*/expected.json"):
        tree = json.loads(path.read_text())
        text = (path.parent / "expected.txt").read_text()
        assert all(sentence in text for sentence in tree["verdict"])
        assert {change["kind"] for change in tree["changes"]} <= {"source", "plan", "surroundings"}


if __name__ == "__main__":
    os.environ |= {"NO_COLOR": "1", VARIABLE: "1"}
    for place in folders():
        if len(sys.argv) > 1 and place.name not in sys.argv[1:]:
            continue
        for name, form in FORMS.items():
            if name == "expected.txt" or (place / name).exists():
                (place / name).write_text(told(place, form)[1])
