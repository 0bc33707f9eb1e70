"""`import torchvision` with a torch that its C++ library was not built for, in ratc and after `make setup`."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ratc_runtime.models import torchvision_operators

from tests.places import ROOT


def test_a_torchvision_library_that_matches_torch_is_loaded(tmp_path: Path) -> None:
    """Both would define the same operators, which ends the process."""
    assert not torchvision_operators.loads(tmp_path)
    (tmp_path / "_C.so").write_bytes(b"built for another torch")
    assert not torchvision_operators.loads(tmp_path)
    shutil.copy(importlib.import_module("_json").__file__, tmp_path / "_C.pyd")
    assert torchvision_operators.loads(tmp_path)


@pytest.mark.parametrize(
    "imports",
    [
        "ratc_runtime.models.load_torchvision, torchvision",
        pytest.param("timm, accelerate.commands.accelerate_cli", marks=pytest.mark.slow),
    ],
)
def test_packages_that_import_torchvision_work_without_ratc(imports: str, tmp_path: Path) -> None:
    """As `.ci/setup` sets it up."""
    shutil.copy(ROOT / "runtime/ratc_runtime/models/torchvision_operators.py", tmp_path)
    pth = "import torchvision_operators; torchvision_operators.define_at_import()"
    assert pth in (ROOT / ".ci/setup").read_text()
    code = f"{pth}; import sys; assert 'torch' not in sys.modules; import {imports}"
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT / 'runtime'}"}
    done = subprocess.run([sys.executable, "-c", code], env=path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
