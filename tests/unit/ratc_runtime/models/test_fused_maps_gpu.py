"""RAT's attention with FlexAttention's kernels on a GPU, against the published attention. Skipped without a GPU.

tests/unit/ratc_runtime/models/test_lean_attention.py tests the algebra around the kernels on the CPU.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from ratc_runtime.errors import RuntimeFinding  # noqa: E402
from ratc_runtime.models import fused_maps  # noqa: E402
from ratc_runtime.models.chunked_maps import Chunked, formed  # noqa: E402

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="FlexAttention's kernels need a GPU of compute capability 8.0",
)
EPS = 1e-6


def operands(kind, groups: int, pixels: int, features: int):
    torch.manual_seed(0)
    shapes = (groups, features), (pixels, features), (pixels, features)
    return [torch.randn(4, *shape, device="cuda").to(kind).requires_grad_() for shape in shapes]


def everything(way, q, k, v):
    """Outputs of each product, and the gradients of all their sums."""
    gathered, normal, plain = way.layer(k, v, 2, EPS)(q)
    return graded(
        [gathered, normal.spread(q), plain.gather(v), plain.spread(q), normal.gather(normal.spread(q))], q, k, v
    )


def exactly(*operands):
    """The same in float64, with the maps formed."""
    q, k, v = (tensor.detach().double().requires_grad_() for tensor in operands)
    normal, plain = formed(q, k, EPS), formed(q, k, None)
    return graded([normal @ v, normal.mT @ q, plain @ v, plain.mT @ q, normal @ (normal.mT @ q)], q, k, v)


def graded(found, *operands):
    weights = [torch.sin(torch.arange(one.numel(), device="cuda")).reshape(one.shape) for one in found]
    total = sum((one.to(weight) * weight).sum() for one, weight in zip(found, weights, strict=True))
    return [*found, *torch.autograd.grad(total, operands)]


def distances(found, expected):
    return [float((one.double() - other).norm() / other.norm()) for one, other in zip(found, expected, strict=True)]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("groups", "pixels", "features"), [(128, 1024, 16), (86, 4097, 8), (7, 100, 3), (300, 777, 32), (64, 512, 20)]
)
def test_fused_attention_is_as_accurate_as_chunked_attention(kind, groups, pixels, features):
    q, k, v = operands(kind, groups, pixels, features)
    exact = exactly(q, k, v)
    fused = distances(everything(fused_maps.Fused(), q, k, v), exact)
    chunked = distances(everything(Chunked(), q, k, v), exact)
    least = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}[kind]
    assert all(one < max(2 * other, least) for one, other in zip(fused, chunked, strict=True)), (fused, chunked)


def test_fused_attention_does_not_materialize_its_maps():
    """Two heads of 4,096 groups and 65,536 pixels: a map would take 1 GiB each in bf16."""
    q, k, v = operands(torch.bfloat16, 4096, 65536, 8)
    everything(fused_maps.Fused(), q, k, v)
    torch.cuda.reset_peak_memory_stats()
    everything(fused_maps.Fused(), q, k, v)
    assert torch.cuda.max_memory_allocated() < 1 << 29


def test_more_kernel_variants_than_the_limit_raise_an_error(monkeypatch):
    from torch._dynamo import config

    monkeypatch.setattr(fused_maps, "VARIANTS", 1)
    monkeypatch.setattr(config, "recompile_limit", 1)

    def several():
        for groups in (32, 48, 64):
            fused_maps.by_flex_attention(*(tensor.detach() for tensor in operands(torch.float32, groups, 256, 16)))

    with pytest.raises(RuntimeFinding, match="R553"):
        several()
