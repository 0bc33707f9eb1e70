"""The trace request of a plan."""

from dataclasses import replace
from pathlib import Path

import pytest

from ratc.memory.request import request, variant
from ratc.plan import Value, Values
from tests.helpers.pages import plan

TEXT = """experiment_name: demo
training: {batch_size: 8}
data: {data_dir: data, image_size: 128}
resources: {num_gpus: 1, gpu: a100-40, cpus: 8}
"""


def request_of(folder: Path, own: str = "", cluster: dict[str, object] | None = None) -> dict[str, object]:
    made = plan(folder, TEXT + (f"environment: {{variables: {{{own}}}}}\n" if own else ""))
    if cluster is not None:
        made = replace(made, facts=Values({**made.facts, "cluster.variables": Value(cluster, "default")}))
    return request(made, variant(made, "8.0"), 1)


@pytest.mark.parametrize(
    ("own", "cluster", "size"),
    [
        ("", None, None),
        ("CUBLAS_WORKSPACE_CONFIG: ':4096:8'", None, 32 * 2**20),
        ("CUBLAS_WORKSPACE_CONFIG: ':16:8'", None, 128 * 2**10),
        ("CUBLAS_WORKSPACE_CONFIG: ':4096:2:16:8'", None, 8_519_680),
        ("CUBLAS_WORKSPACE_CONFIG: ':0:0'", None, 0),
        ("CUBLAS_WORKSPACE_CONFIG: '4096'", None, None),  # torch takes its default
        ("", {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}, 32 * 2**20),
        ("CUBLAS_WORKSPACE_CONFIG: ':16:8'", {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}, 128 * 2**10),
    ],
)
def test_cublas_workspace_follows_the_variables_of_the_job(tmp_path, own, cluster, size):
    assert request_of(tmp_path, own, cluster).get("cublas_workspace") == size
