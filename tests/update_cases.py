"""Writes what the golden cases expect: `make golden`. Read the difference before you commit it."""

import contextlib
import io
import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from ratc.cli import main
from ratc.fitting.check_batch import SKIP
from ratc.own_code.trust import VARIABLE
from tests.places import CASES
from tests.product.test_cases import OUTPUT


def update(case: Path) -> None:
    """Replace `expected/` and `stderr.txt` of one case."""
    expected, words = case / "expected", case / "stderr.txt"
    shutil.rmtree(expected, ignore_errors=True)
    words.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "case"
        shutil.copytree(case, folder)
        os.chdir(folder)
        options = folder / "args.txt"
        arguments = shlex.split(options.read_text()) if options.exists() else []
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            status = main(["compile", "spec.yaml", "-o", OUTPUT, *arguments])
        if said.getvalue():
            words.write_text(said.getvalue())
        if status == 0:
            shutil.copytree(folder / OUTPUT, expected)
        os.chdir("/")


if __name__ == "__main__":
    os.environ |= {"NO_COLOR": "1", SKIP: "1", VARIABLE: "1"}
    for path in sorted(path for path in CASES.iterdir() if path.is_dir()):
        if len(sys.argv) == 1 or path.name in sys.argv[1:]:
            update(path)
            print(path.name)
