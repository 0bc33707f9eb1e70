"""A finding is passed between processes."""

from __future__ import annotations

from ratc_runtime.errors import RuntimeFinding


def test_a_finding_survives_pickling() -> None:
    import pickle

    finding = RuntimeFinding("R506", "what", "why\nand where", "do", everywhere=False)
    copied = pickle.loads(pickle.dumps(finding))
    assert copied.render() == "error[R506]: what\n  note: why\n        and where\n  help: do"
    assert not copied.everywhere
