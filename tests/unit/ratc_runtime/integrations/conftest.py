"""A plan, as a script's start would hand it over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ratc_runtime.program.plan import ProgramPlan, plan

from tests.places import ROOT


@pytest.fixture
def make_plan(tmp_path: Path) -> Callable[..., ProgramPlan]:
    """The plan of `specs/text`, with changes: `training__precision="bf16"` sets `training.precision`."""

    def make(resume: bool = True, **changes: Any) -> ProgramPlan:
        content = yaml.safe_load((ROOT / "specs/text/compiled/text/local/lock.yaml").read_text())
        for dotted, value in changes.items():
            section, key = dotted.split("__")
            content[section][key] = value
        lock, output = tmp_path / "lock.yaml", tmp_path / "out"
        lock.write_text(yaml.safe_dump(content))
        output.mkdir(exist_ok=True)
        told = {"RATC_LOCK": str(lock), "RATC_OUTPUT_DIR": str(output), "RATC_RESUME": str(resume).lower()}
        return plan({**told, "RATC_CHECKPOINT_DIR": str(output / "checkpoints/0123")})

    return make
