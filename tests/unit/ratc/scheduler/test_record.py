"""Records of submitted jobs: read back, or none."""

from __future__ import annotations

from ratc.scheduler import record


def test_records_that_are_none() -> None:
    entry = record.Submission("5", "sha256:0", "slurm", "fake", "login", "2026-01-01T00:00:00Z")
    assert record.load(record.dump([entry])) == (entry,)
    for text in ("", "[]", "null", '{"version": 2, "submissions": []}', '{"version": 1, "submissions": [{"job": 1}]}'):
        assert record.load(text) is None
