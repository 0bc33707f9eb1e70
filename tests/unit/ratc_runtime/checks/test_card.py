"""The selection of cards by CUDA_VISIBLE_DEVICES."""

from __future__ import annotations

from ratc_runtime.checks.card import select


def test_cuda_visible_devices_selects_the_cards_that_cuda_would() -> None:
    handles, uuids = ["a", "b", "c"], ["GPU-1x", b"GPU-2y", "GPU-2z"]
    assert select(handles, uuids, "2,0") == ["c", "a"]
    assert select(handles, uuids, "1,-1,0") == ["b"]
    assert select(handles, uuids, "GPU-1") == ["a"]
    assert select(handles, uuids, "GPU-2") == []
    assert select(handles, uuids, "") == []
