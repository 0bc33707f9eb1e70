"""What all tests share: no variable of the developer's shell or of another test reaches them, the slow ones run last.

Folders are trusted, as by somebody who wrote the code in them; `untrusted` takes that back.

Micro-batches that a spec gives are not checked, which takes seconds; `checks_given` turns that on.
"""

import os
import re
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, settings

from ratc.fitting.check_batch import SKIP
from ratc.own_code import trust
from tests.effort import LATE, NO_SLURM, part_of, skip_if_late
from tests.scheduling import Scheduling

#: The names of variables before any test's module is imported.
_SHELL = frozenset(os.environ)

# On a slow machine an example may take seconds, and so may its making.
settings.register_profile(
    "ratc",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile("ratc")


@pytest.fixture(scope="session")
def _cache(tmp_path_factory):
    """Where the tests of all workers keep what ratc finds out, instead of the developer's own cache."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def _own_environment():
    """Give the next test the variables that this one found: training, Accelerate and DeepSpeed leave some behind."""
    with patch.dict(os.environ):
        yield


@pytest.fixture(autouse=True)
def _no_settings_from_the_shell(monkeypatch, _own_environment, _cache):
    for name in list(os.environ):
        if name.startswith(("RAT_", "RATC_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv(SKIP, "1")
    monkeypatch.setenv(trust.VARIABLE, "1")
    monkeypatch.setenv("RATC_CACHE", str(_cache))


@pytest.fixture
def untrusted(monkeypatch, tmp_path_factory, _no_settings_from_the_shell):
    """Trust no folder, as outside of tests; returns where the user's trust file lies."""
    monkeypatch.delenv(trust.VARIABLE)
    place = tmp_path_factory.mktemp("config")
    monkeypatch.setenv("RATC_CONFIG", str(place))
    return place / "trusted"


@pytest.fixture
def checks_given(monkeypatch, _no_settings_from_the_shell):
    """Check micro-batches that a spec gives, as outside of tests."""
    monkeypatch.delenv(SKIP)


@pytest.hookimpl(optionalhook=True)  # with -p no:xdist, too
def pytest_xdist_make_scheduler(config, log):
    return Scheduling(config, log)


def pytest_terminal_summary(terminalreporter):
    """Say what did not run, and why."""
    left_out = [report for kind in ("skipped", "failed", "error") for report in terminalreporter.stats.get(kind, [])]
    late = [report for report in left_out if LATE in str(report.longrepr)]
    if late:
        terminalreporter.section("out of time")
        files = sorted({report.nodeid.partition("::")[0] for report in late})
        terminalreporter.write_line(f"{len(late)} tests did not run: {LATE}. They are of {', '.join(files)}")
    reasons = {re.search(rf"{NO_SLURM} `.*", report.longreprtext) for report in left_out}
    if missing := sorted({reason[0] for reason in reasons if reason}):
        terminalreporter.section("NOT TESTED ON SLURM", red=True, bold=True)
        for reason in missing:
            terminalreporter.line(reason.rstrip("')"))


def pytest_runtest_setup():
    skip_if_late()


def pytest_collection_finish():
    """Take back what imports of the tests' modules have set: with a variable of torch's that it has to be asked about,
    each start of the runtime imports torch twice."""
    for name in os.environ.keys() - _SHELL:
        if not name.startswith("PYTEST_"):
            del os.environ[name]


@pytest.hookimpl(trylast=True)  # after -k and -m: who names a test gets it
def pytest_collection_modifyitems(config, items):
    """Run the slow ones last, and of each of them a part of its parameters (`RATC_TEST_EFFORT`), or all (`every`).

    Files that hold slow ones come after those that hold none: the workers of `pytest -n` begin with the last."""
    quick, slow = [], {}
    for item in items:
        marker = item.get_closest_marker("slow")
        if marker is None:
            quick.append(item)
        else:
            slow.setdefault(item if "every" in marker.kwargs else item.nodeid.partition("[")[0], []).append(item)
    chosen = [item for group in slow.values() for item in part_of(group)]
    config.hook.pytest_deselected(items=sorted({*items} - {*quick, *chosen}, key=items.index))
    long_files = {item.path for item in chosen}
    quick.sort(key=lambda item: item.path in long_files)
    items[:] = quick + chosen
