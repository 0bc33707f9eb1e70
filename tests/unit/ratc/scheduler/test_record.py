"""Records of submitted jobs: written, read back, and malformed ones."""

from __future__ import annotations

from ratc.scheduler import record


def test_malformed_record_is_not_loaded() -> None:
    entry = record.Submission("5", "sha256:0", "slurm", "fake", "login", "2026-01-01T00:00:00Z")
    assert record.load(record.dump([entry])) == (entry,)
    for text in ("", "[]", "null", '{"version": 2, "submissions": []}', '{"version": 1, "submissions": [{"job": 1}]}'):
        assert record.load(text) is None
