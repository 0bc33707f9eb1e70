"""Trace requests: invalid ones are refused, and omitted keys have the defaults of a lock."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tracing import request, run

pytestmark = [
    pytest.mark.slow,  # nearly every test traces in processes of its own
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the runtime extra"),
]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        request(compute_capability="new"),
        request(accumulation=3),
        request(engine="horovod"),
        request(training__precision="fp8"),
        request(training__optimizer="sophia"),
        request(training__betas=[0.9]),
        request(data__image_size=[0, 32]),
        request(data__channels=True),
        {**request(), "batch_sizes": [4, 2]},
        {**request(), "batch_sizes": [2, 2]},
        {**request(), "batch_sizes": [2, 3, 4]},
        {**request(), "batch_sizes": []},
        {**request(), "task_type": "multi"},
        {**request(), "task_type": "detection"},
        {**request(), "detection": {"queries": 3, "decoder_layers": 1}},
        request(training__epoch=3),
        request(training__loss={"args": {}}),
        request(model__args={"width": 10**30}),
    ],
)
def test_an_invalid_request_is_refused(tmp_path: Path, content: Any) -> None:
    output = tmp_path / "trace.json"
    done = run(["-m", "ratc_runtime.trace", str(output)], content)
    assert (done.returncode, done.stdout, output.exists()) == (2, "", False)
    assert done.stderr.startswith("the request cannot be read: ")
    assert "Traceback" not in done.stderr


def test_a_request_is_a_lock_without_the_keys_that_take_no_memory() -> None:
    from ratc_runtime.config.lock import Lock
    from ratc_runtime.trace.request import BadRequest, read

    lock = read({**request(accumulation=2), "batch_sizes": [3, 6]}).lock
    assert isinstance(lock, Lock)
    assert (lock.training.global_batch_size, lock.training.micro_batch_size, lock.data.scales) == (6, 3, [1.0])
    assert (lock.seed, lock.training.epochs, lock.logging.mlflow, lock.detection) == (None, None, None, None)
    with pytest.raises(BadRequest, match=r"keys at model .*nme.*training\.tf32"):
        read(request(training__tf32=1, model__nme=3))
