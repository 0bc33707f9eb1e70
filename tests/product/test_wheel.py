"""The built wheel is complete: in a clean environment without torch it compiles from another folder."""

import subprocess
import sys
import zipfile

import pytest

from tests.places import ROOT


@pytest.mark.slow
def test_the_wheel_compiles_from_another_folder(tmp_path):
    def run(*command, **options):
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
        assert done.returncode == 0, done.stderr
        return done

    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    needed = ("schemas/experiment.schema.json", "templates/local.sh.j2", "templates/report.css", "facts/cards.yaml")
    for name in (*needed, "codes/R304.md"):
        assert f"ratc/{name}" in names
    assert "ratc_runtime/train.py" in names
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    run(tmp_path / "venv/bin/pip", "install", "-q", "--disable-pip-version-check", wheel)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    ratc = tmp_path / "venv/bin/ratc"
    clean = {"cwd": folder, "env": {"PATH": "/usr/bin:/bin"}}
    run(ratc, "init", **clean)
    run(ratc, "compile", "config.yaml", "--set", "resources.gpu=a100-80", **clean)
    (lock,) = folder.glob("compiled/*/local/lock.yaml")
    assert "card: a100-80" in lock.read_text()
    run(ratc, "explain", "R304", **clean)
    assert run(ratc, "schema", **clean).stdout == (ROOT / "schemas/experiment.schema.json").read_text()
    packages = run(tmp_path / "venv/bin/pip", "list", "--disable-pip-version-check").stdout
    assert "torch" not in packages
    assert "pydantic" not in packages
