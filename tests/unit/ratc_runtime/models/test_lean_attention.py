"""The lean attention against RAT as published: same outputs and gradients, and memory that is linear in pixels."""

from __future__ import annotations

import contextlib
import copy
import math
import weakref
from typing import Any

import pytest
import torch
from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models import fused_maps, rat_patches
from ratc_runtime.models.chunked_maps import Chunked, Gather, Pieces, Spread, only_enough_for_memory
from ratc_runtime.models.fused_maps import Fused, _split
from ratc_runtime.models.lean_attention import LazyMap, Way, keep_no_maps
from ratc_runtime.tasks.detection.model import DetectionModel
from ratc_runtime.tasks.segmentation.losses import Combined
from ratc_runtime.tasks.segmentation.model import SegmentationModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.checkpoint import checkpoint

from tests.helpers.reference_attention import attend

FUSED = Fused(attend)
#: Chunks of whole maps, of some heads, and of some rows of one head, for the sizes used here; and FlexAttention's way.
WAYS: dict[str, Way] = {
    "all": Chunked(2**26),
    "heads": Chunked(50_000),
    "rows": Chunked(7000),
    "row": Chunked(1),
    "fused": FUSED,
}


def published(seed: int = 0, **arguments: Any) -> nn.Module:
    """RAT, with weights that make every part of it matter: its own start leaves queries and keys near zero."""
    ResolutionAwareTransformer = rat_patches.import_rat()

    torch.manual_seed(seed)
    defaults = {"input_features": 1, "feature_dims": 16, "num_blocks": 2, "num_heads": 2, "iters": 3}
    model: nn.Module = ResolutionAwareTransformer(**{**defaults, **arguments})
    rat_patches.keep_rotary_in_float32(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def segmentation(scales: tuple[float, ...] = (1.0,), **arguments: Any) -> SegmentationModel:
    model = published(**arguments)
    torch.manual_seed(1)
    return SegmentationModel(model, 1, model.feature_dims, scales, dims=arguments.get("spatial_dims", 2))


def images(size: tuple[int, ...], scales: tuple[float, ...], batch: int = 2) -> Any:
    torch.manual_seed(2)
    levels = [torch.rand(batch, 1, *(int(length * scale) for length in size)) for scale in scales]
    return levels if len(scales) > 1 else levels[0]


def step(model: nn.Module, image: Any, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Return the logits and every parameter's gradient of one training step, always with the same dropout."""
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=dtype) if dtype else contextlib.nullcontext():
        logits = model(image)
    torch.manual_seed(4)
    (logits * torch.randn(logits.shape)).mean().backward()
    gradients = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits.detach().double(), **gradients}


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=1e-9))


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    assert sum("sga_layers" in name for name in expected) > 15  # the gradients are really there
    wrong = {name: distance(found[name], expected[name]) for name in expected}
    assert {name: error for name, error in wrong.items() if not error < tolerance} == {}


@pytest.mark.parametrize(
    ("size", "scales", "way", "arguments"),
    [
        ((24, 21), (1.0,), "all", {}),
        ((24, 21), (1.0,), "heads", {"num_heads": 4, "num_blocks": 3, "sga_kernel_size": 5}),
        ((24, 21), (1.0,), "rows", {"qkv_bias": False, "learnable_rose": False}),
        ((18, 15), (1.0,), "row", {"iters": 1, "num_blocks": 1, "num_heads": 1}),
        ((32, 24), (1.0, 0.5), "rows", {"num_heads": 4, "mlp_dropout": 0.2}),
        ((24, 21), (1.0,), "fused", {"num_heads": 4, "num_blocks": 3, "sga_kernel_size": 5}),
        ((18, 15), (1.0,), "fused", {"iters": 1, "num_blocks": 1, "num_heads": 1}),
        ((32, 24), (1.0, 0.5), "fused", {"num_heads": 4, "mlp_dropout": 0.2}),
        ((12, 10, 9), (1.0,), "rows", {"spatial_dims": 3, "sga_kernel_size": 5}),
        ((12, 10, 9), (1.0,), "fused", {"spatial_dims": 3, "sga_kernel_size": 5}),
    ],
)
def test_outputs_and_gradients_equal_those_of_the_published_model(
    size: tuple[int, ...], scales: tuple[float, ...], way: str, arguments: dict[str, Any]
) -> None:
    image = images(size, scales)
    full, lean = segmentation(scales, **arguments), segmentation(scales, **arguments)
    assert keep_no_maps(lean, WAYS[way]) == arguments.get("num_blocks", 2)
    assert_same(step(lean, image), step(full, image), 5e-3 if way == "fused" else 1e-3)
    # float32 rounds; in float64 nothing is left but a fault. The published rotary embedding takes it as it is.
    for model in (full, lean):
        model.zero_grad(set_to_none=True)
        for module in model.modules():
            if type(module).__name__ == "RotarySpatialEmbedding":
                del module.forward
    image = [level.double() for level in image] if isinstance(image, list) else image.double()
    assert_same(step(lean.double(), image), step(full.double(), image), 1e-9)


@pytest.mark.parametrize("way", [Chunked(700), FUSED], ids=["chunked", "fused"])
@pytest.mark.parametrize("scales", [(1.0,), (1.0, 0.5)])
def test_detection_outputs_are_the_same_without_attention_maps(way: Way, scales: tuple[float, ...]) -> None:
    def detection() -> DetectionModel:
        model = published()
        torch.manual_seed(1)
        return DetectionModel(model, model.feature_dims, 2, scales, classes=2, queries=100, layers=2)

    def outputs(model: DetectionModel) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        found = model(images((32, 24), scales))
        tensors = [found["logits"], found["boxes"]]
        torch.manual_seed(4)
        sum((tensor * torch.randn(tensor.shape)).sum() for tensor in tensors).backward()
        gradients = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
        # The bias of an attention's keys adds the same to all of its logits: its gradient is rounding alone.
        return found, {name: gradient for name, gradient in gradients.items() if not name.endswith("key.bias")}

    full, lean = detection(), detection()
    assert keep_no_maps(lean, way) == 2
    (expected, wanted), (found, gradients) = outputs(full), outputs(lean)
    for name in ("logits", "boxes"):
        assert distance(found[name].detach(), expected[name].detach()) < 1e-3
    assert_same(gradients, wanted, 5e-3)


@pytest.mark.parametrize("way", [Chunked(700), FUSED], ids=["chunked", "fused"])
def test_masked_pixels_are_replaced_as_in_the_published_model(way: Way) -> None:
    full, lean = published(), published()
    keep_no_maps(lean, way)
    image = images((24, 24), (1.0,))
    results = []
    for model in (full, lean):
        out = model(image, mask=image[:, 0] > 0.9)[0]
        out["x_out"].square().sum().backward()
        results.append([out["x_out"].detach(), *(layer.mask_embedding.grad for layer in model.sga_layers[:1])])
    assert results[0][1].abs().sum() > 0
    for found, expected in zip(results[1], results[0], strict=True):
        assert distance(found, expected) < 1e-4


def test_chunked_gradients_equal_finite_differences() -> None:
    torch.manual_seed(0)
    batch, heads, rows, columns = 2, 3, 3, 4
    q, k, v = (
        torch.randn(heads * batch, n, 2, dtype=torch.float64, requires_grad=True) for n in (rows, columns, columns)
    )
    x = torch.randn(heads * batch, rows, 2, dtype=torch.float64, requires_grad=True)
    for elements in (5, 24, 1000):
        pieces = Pieces(heads, batch, rows, columns, elements)
        for normal in (True, False):
            assert torch.autograd.gradcheck(lambda *t, n=normal: Gather.apply(*t, n, 1e-3, pieces)[0], (q, k, v))  # noqa: B023
        sums = torch.softmax(q @ k.mT, -1).sum(1, keepdim=True)
        assert torch.allclose(sums, Gather.apply(q, k, v, True, 1e-3, pieces)[1])

        def spread(*tensors: torch.Tensor, pieces: Pieces = pieces, normal: bool) -> torch.Tensor:
            # The sums belong to q and k: they are worked out again for every difference.
            sums = torch.softmax(tensors[0] @ tensors[1].mT, -1).sum(1, keepdim=True).detach() if normal else None
            return Spread.apply(*tensors, sums, 1e-3, pieces)

        for normal in (True, False):
            assert torch.autograd.gradcheck(lambda *t, n=normal: spread(*t, normal=n), (q, k, x))


def test_fused_gradients_equal_finite_differences() -> None:
    """FlexAttention differentiates itself; the three passes around it are ours."""
    torch.manual_seed(0)
    q, k, v, x = (
        torch.randn(6, n, d, dtype=torch.float64, requires_grad=True) for n, d in ((3, 2), (4, 2), (4, 3), (3, 2))
    )
    maps = FUSED.layer(k, v, 3, 1e-3)(q)
    attention = torch.softmax(q @ k.mT, -1)
    for number, expected in ((1, attention / (attention.sum(1, keepdim=True) + 1e-3)), (2, attention)):
        assert torch.allclose(maps[number].gather(v), expected @ v)
        assert torch.allclose(maps[number].spread(x), expected.mT @ x)
        assert torch.allclose(maps[number].dense(), expected)
        for function, vectors in (("gather", v), ("spread", x)):

            def product(q: Any, k: Any, vectors: Any, number: int = number, function: str = function) -> torch.Tensor:
                return getattr(FUSED.layer(k, v, 3, 1e-3)(q)[number], function)(vectors)  # type: ignore[no-any-return]

            assert torch.autograd.gradcheck(product, (q, k, vectors))
    assert torch.allclose(maps[0], maps[1].gather(v))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_bias_split_into_two_features_keeps_sixteen_bits(kind: torch.dtype) -> None:
    """What tensor cores make of it, too: float32 is rounded to TF32, of 10 bits."""
    number = -torch.linspace(3, 90, 1000)
    features = _split(number, kind)
    if kind == torch.float32:
        features = tuple((part.view(torch.int32) & -8192).view(torch.float32) for part in features)
    total = sum(part.double().squeeze(-1) for part in features)
    assert (total / number.double() - 1).abs().max() < 2**-15
    learned = number.clone().requires_grad_()
    sum(part.float().sum() for part in _split(learned, kind)).backward()
    assert torch.equal(learned.grad, torch.ones_like(number))


@pytest.mark.parametrize("features", [3, 16, 20])
def test_flex_attention_on_the_cpu_gives_the_chunked_outputs(features: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as a CPU goes: uncompiled, and forward. Its kernels are tested on a GPU (test_fused_maps_gpu.py)."""
    from torch.nn.attention import flex_attention as flex

    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(fused_maps, "_compiled", lambda: fused_maps._flex)
    torch.manual_seed(0)
    q, k, v = torch.randn(6, 7, features), torch.randn(6, 50, features), torch.randn(6, 50, 5)
    for found, expected in zip(fused_maps.by_flex_attention(q, k, v), attend(q, k, v), strict=True):
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, atol=1e-5)
    y, normal, plain = Fused().layer(k, v, 3, 1e-6)(q)
    expected_maps = Chunked().layer(k, v, 3, 1e-6)(q)
    assert torch.allclose(y, expected_maps[0], atol=1e-5)
    for found, expected in ((normal, expected_maps[1]), (plain, expected_maps[2])):
        assert torch.allclose(found.spread(q), expected.spread(q), atol=1e-5)


def test_fused_attention_is_refused_with_an_older_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.nn.attention import flex_attention

    monkeypatch.delattr(flex_attention, "AuxRequest")
    tensor = torch.zeros(1, 16, 16)
    with pytest.raises(RuntimeFinding, match="R553"):
        fused_maps.by_flex_attention(tensor, tensor, tensor)


@pytest.mark.parametrize("elements", [1, 50, 77, 100, 154, 200, 10_000])
def test_pieces_cover_every_entry_once_within_their_size(elements: int) -> None:
    heads, batch, rows, columns = 5, 2, 7, 11
    seen = torch.zeros(heads * batch, rows)
    for part, all_rows in Pieces(heads, batch, rows, columns, elements):
        for some in all_rows:
            seen[part, some] += 1
            size = (part.stop - part.start) * (some.stop - some.start) * columns
            assert size <= batch * max(elements, columns)
    assert torch.equal(seen, torch.ones_like(seen))


@pytest.mark.parametrize("way", [Chunked(700), FUSED], ids=["chunked", "fused"])
def test_lazy_maps_equal_the_published_maps(way: Way) -> None:
    full, lean = published(num_blocks=3), published(num_blocks=3)
    keep_no_maps(lean, way)
    image = images((36, 30), (1.0,))
    expected, found = full(image)[0], lean(image)[0]
    for name in ("attn_q", "attn_k"):
        lazy, tensor = found[name], expected[name]
        assert isinstance(lazy, LazyMap)
        assert (lazy.shape, lazy.dtype, lazy.device) == (tensor.shape, tensor.dtype, tensor.device)
        assert torch.allclose(lazy.dense(), tensor, rtol=1e-4, atol=1e-7)
        batch, heads, groups, pixels = tensor.shape
        left, right = torch.randn(batch, heads, 3, groups), torch.randn(batch, heads, pixels, 2)
        assert torch.allclose(left @ lazy, left @ tensor, rtol=1e-3, atol=1e-6)
        assert torch.allclose(lazy @ right, tensor @ right, rtol=1e-3, atol=1e-6)
        keys = [model.sga_layers[0].kv.weight for model in (lean, full)]
        for function in (lambda m, v=left: v @ m, lambda m, v=right: m @ v, lambda m: m.dense() if m is lazy else m):  # noqa: B023
            gradients = [
                torch.autograd.grad(function(m).square().sum(), w, retain_graph=True)[0]
                for m, w in zip((lazy, tensor), keys, strict=True)
            ]
            assert gradients[1].abs().sum() > 0
            assert distance(*gradients) < 1e-3
    with pytest.raises(TypeError):
        found["attn_q"] @ 1.0
    with pytest.raises(TypeError):
        1.0 @ found["attn_q"]


def test_bf16_autocast_is_as_close_to_float32_as_the_published_model() -> None:
    """Summed over seeds: a single gradient of a scalar parameter is mostly rounding in either of them."""
    ways: dict[str, Way | None] = {"full": None, "chunked": Chunked(9000), "fused": FUSED}
    errors = dict.fromkeys(ways, 0.0)
    logits = dict(errors)
    for seed in range(4):
        image = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(seed))
        exact = step(segmentation(), image)
        for name, way in ways.items():
            model = segmentation()
            keep_no_maps(model, way) if way else None
            found = step(model, image, torch.bfloat16)
            logits[name] += distance(found.pop("logits"), exact["logits"])
            errors[name] += sum(distance(found[key], exact[key]) for key in found if "mask" not in key) / len(found)
    for name in ("chunked", "fused"):
        assert 0 < errors[name] < 1.2 * errors["full"]
        assert 0 < logits[name] < 1.2 * logits["full"] < 0.4


def test_lean_attention_trains_with_bf16_weights() -> None:
    image = images((32, 32), (1.0,))
    exact = step(segmentation(), image)
    found = {}
    for name in ("full", "lean"):
        model = segmentation()
        keep_no_maps(model, Chunked(9000)) if name == "lean" else None
        found[name] = step(model.to(torch.bfloat16), image.to(torch.bfloat16))
    assert all(torch.isfinite(value).all() for value in found["lean"].values())
    assert distance(found["lean"]["logits"], found["full"]["logits"]) < 0.05
    total = {
        name: math.sqrt(sum(float((value - exact[key]).square().sum()) for key, value in results.items()))
        for name, results in found.items()
    }
    assert 0 < total["lean"] < 1.2 * total["full"]


def test_activation_checkpointing_gives_the_same_gradients_with_dropout() -> None:
    """With dropout too: what is computed again is what was computed before."""
    image = images((32, 32), (1.0,))
    plain, recomputed = segmentation(mlp_dropout=0.2), segmentation(mlp_dropout=0.2)
    for model in (plain, recomputed):
        assert keep_no_maps(model, Chunked(9000)) == 2
        assert keep_no_maps(model, Chunked(9000)) == 0
    for blocks in (recomputed.backbone.sga_layers, recomputed.backbone.mr_attn_layers):
        for block in blocks:
            inner = block.forward
            block.forward = lambda *a, inner=inner, **k: checkpoint(inner, *a, use_reentrant=False, **k)
    expected, found = step(plain, image), step(recomputed, image)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_only_the_published_dense_layer_is_replaced() -> None:
    model = published()
    kind = type(model.sga_layers[0])

    class Own(kind):  # type: ignore[misc, valid-type]
        pass

    model.sga_layers[1].__class__ = Own
    assert keep_no_maps(model, FUSED) == 1
    assert keep_no_maps(nn.Linear(2, 2), FUSED) == 0
    copied = copy.deepcopy(model)
    assert copied.sga_layers[0].forward.module is copied.sga_layers[0]


class Storages(TorchDispatchMode):
    """Bytes of the storages alive, by following every tensor that an operation returns. Works on fake tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.allocations = 0
        self._seen: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def _free(self, size: int) -> None:
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self._seen:
                storage = tensor.untyped_storage()
                size = self._seen[storage] = storage.nbytes()
                self.live, self.allocations = self.live + size, self.allocations + 1
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, size)
        return result


@pytest.fixture
def _positions_without_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """RoSE reads a number out of a tensor to count positions; fake tensors have none."""
    rat_patches.import_rat()
    import RoSE.rose

    def positions(dims: Any, spacing: Any, dtype: Any = torch.float32, device: Any = "cpu") -> torch.Tensor:
        index = torch.arange(math.prod(dims), device=device)
        return torch.stack(torch.unravel_index(index, dims), dim=-1).to(dtype) * torch.tensor(spacing).view(1, -1)

    monkeypatch.setattr(RoSE.rose, "_init_p_nd", positions)


def traced(size: int, batch: int, chunk: int | None, shortened: bool = False, **arguments: Any) -> Storages:
    """Return what a bf16 step with two moments per parameter allocates; no memory is."""
    from resolution_aware_transformer import ResolutionAwareTransformer

    with torch.device("meta"):
        backbone = ResolutionAwareTransformer(input_features=3, **arguments)
        model = SegmentationModel(backbone, 3, backbone.feature_dims, (1.0,))
    short = only_enough_for_memory() if shortened else contextlib.nullcontext()
    with short, FakeTensorMode(allow_non_fake_inputs=True), Storages() as storages:
        model.to_empty(device="cpu")
        rat_patches.keep_rotary_in_float32(model)
        if chunk is not None:
            keep_no_maps(model, Chunked(chunk))
        moments = [torch.zeros_like(p) for p in model.parameters() for _ in range(2)]
        image, target = torch.rand(batch, 3, size, size), torch.rand(batch, 1, size, size)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = Combined()(model(image), target)
        loss.backward()
        del moments
    return storages


@pytest.mark.usefixtures("_positions_without_data")
def test_the_model_of_the_product_document_fits_in_2_gib() -> None:
    """256 x 256, four blocks, 16 heads, bf16, micro-batch 1, under the CPU's own autocast rules."""
    lean = traced(256, 1, 2**26, shortened=True, feature_dims=128, num_blocks=4, num_heads=16)
    assert lean.peak < 2 * 2**30
    full = traced(256, 1, None, feature_dims=128, num_blocks=4, num_heads=16)
    assert full.peak > 50 * lean.peak


@pytest.mark.usefixtures("_positions_without_data")
def test_memory_is_linear_in_pixels_and_in_the_batch() -> None:
    arguments: dict[str, Any] = {"feature_dims": 32, "num_blocks": 2, "num_heads": 4}
    small, large = (traced(size, 1, 2**17, shortened=True, **arguments) for size in (64, 128))
    assert large.peak < 4.5 * small.peak  # four times the pixels; the published maps would take sixteen times
    two, three, four = (traced(32, batch, 2**15, **arguments) for batch in (2, 3, 4))
    assert two.allocations == three.allocations == four.allocations
    assert four.peak - three.peak == three.peak - two.peak


@pytest.mark.usefixtures("_positions_without_data")
@pytest.mark.parametrize(("size", "chunk"), [(48, 2**15), (72, 2**18)])
def test_a_shortened_trace_has_the_peak_of_the_whole_trace(size: int, chunk: int) -> None:
    arguments: dict[str, Any] = {"feature_dims": 32, "num_blocks": 1, "num_heads": 8}
    whole, short = (traced(size, 1, chunk, shortened=shortened, **arguments) for shortened in (False, True))
    assert short.peak == whole.peak
    assert short.allocations < whole.allocations


def test_a_lean_step_uses_less_memory_than_a_full_step_on_the_cpu() -> None:
    """By the CPU allocator's own account: full and lean at a size where both run."""

    def peak(lean: bool) -> int:
        model = segmentation(feature_dims=32, num_blocks=2, num_heads=4)
        keep_no_maps(model, Chunked(2**16)) if lean else None
        image = images((64, 64), (1.0,), batch=1)
        model(image).mean().backward()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            model(image).mean().backward()
        live = most = 0
        for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                live += event.nbytes()
                most = max(most, live)
        return most

    assert peak(lean=True) < peak(lean=False) / 10
