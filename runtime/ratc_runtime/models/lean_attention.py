"""RAT's dense grouping attention without attention maps: the published model at its own image size.

The published layer (`spatial_grouping_attention.DenseSpatialGroupingAttention`) keeps maps of batch x heads x groups x
pixels for every iteration. Here the same layer computes products with a map that is never formed as a whole, and
recomputes its parts in the backward pass. The kept memory is linear in the number of pixels. There are two ways:
`fused_maps` by FlexAttention's kernels, on GPUs that have them, and `chunked_maps` in chunks, on any device.

A map is `A / (sums + eps)`, with `A = softmax(q k^T)` over the pixels and A's column sums `sums`. Maps of deeper layers
are only ever multiplied, by vectors or by the maps before them. `LazyMap` keeps the factors and applies them to the
vectors one after the other, so that their product is never formed.

Inside, heads come first, (heads x batch, positions, features): a chunk of heads is then a slice without a copy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from ratc_runtime.models.chunked_maps import no_autocast


class Factor(Protocol):
    """One layer's map, (heads x batch, groups, pixels), by its queries (groups) and keys (pixels)."""

    @property
    def q(self) -> torch.Tensor:
        """The queries, (heads x batch, groups, d), perhaps padded in the last dimension."""

    @property
    def k(self) -> torch.Tensor:
        """The keys, (heads x batch, pixels, d)."""

    def gather(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the map times (heads x batch, pixels, n): (heads x batch, groups, n)."""

    def spread(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the map's transpose times (heads x batch, groups, n): (heads x batch, pixels, n)."""

    def dense(self) -> torch.Tensor:
        """Return the whole map, (heads x batch, groups, pixels)."""


class Way(Protocol):
    """The computation of products with maps: `chunked_maps.Chunked` or `fused_maps.Fused`."""

    def layer(
        self, k: torch.Tensor, v: torch.Tensor, heads: int, eps: float
    ) -> Callable[[torch.Tensor], tuple[torch.Tensor, Factor, Factor]]:
        """Return a function from queries (heads x batch, groups, d) to the gathered values (heads x batch, groups, e)
        and the layer's maps: A / (sums + eps), and A itself.

        Keys `k` are (heads x batch, pixels, d), values `v` (heads x batch, pixels, e).
        """


def keep_no_maps(model: nn.Module, way: Way) -> int:
    """Make every dense grouping attention of `model` compute without maps; return the number of changed layers.

    Outputs and gradients are those of the published layer up to rounding; its `attn_q` and `attn_k` become `LazyMap`s.
    A second call changes nothing; sparse layers and subclasses stay unchanged.
    """
    changed = 0
    for module in model.modules():
        # By name: importing the package for a model that does not use it would cost seconds.
        if type(module).__name__ == "DenseSpatialGroupingAttention" and "forward" not in module.__dict__:
            module.forward = _LeanForward(module, way)
            changed += 1
    return changed


class LazyMap:
    """The product of one or more attention maps, (batch, heads, groups, pixels), applied but never formed.

    It replaces a tensor of the published model: `vectors @ map` spreads (batch, heads, n, groups) over pixels, `map @
    vectors` gathers (batch, heads, pixels, n), `map @ map` chains layers; `dense` returns the whole map.
    """

    def __init__(self, factors: tuple[Factor, ...], batch: int) -> None:
        self._factors, self._batch = factors, batch  # as in a product: the last layer's first

    @property
    def shape(self) -> torch.Size:
        """The shape of the whole map, (batch, heads, groups, pixels)."""
        last, first = self._factors[0], self._factors[-1]
        return torch.Size((self._batch, len(last.q) // self._batch, last.q.shape[1], first.k.shape[1]))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of products with vectors."""
        return self._factors[0].q.dtype

    @property
    def device(self) -> torch.device:
        """The device of the factors."""
        return self._factors[0].q.device

    def __matmul__(self, other: Any) -> Any:
        if isinstance(other, LazyMap):
            return LazyMap(self._factors + other._factors, self._batch)
        if not isinstance(other, torch.Tensor):
            return NotImplemented
        vectors = _heads_first(other.to(self.dtype))
        for factor in reversed(self._factors):
            vectors = factor.gather(vectors)
        return _batch_first(vectors, self._batch)

    def __rmatmul__(self, other: Any) -> Any:
        if not isinstance(other, torch.Tensor):
            return NotImplemented
        vectors = _heads_first(other.to(self.dtype).transpose(-2, -1))
        for factor in self._factors:
            vectors = factor.spread(vectors)
        return _batch_first(vectors, self._batch).transpose(-2, -1)

    def dense(self) -> torch.Tensor:
        """Return the whole map, (batch, heads, groups, pixels), which this class otherwise avoids."""
        with no_autocast(self.device):
            result = self._factors[0].dense()
            for factor in self._factors[1:]:
                result = result @ factor.dense()
        return _batch_first(result, self._batch)


class _LeanForward:
    """The forward of one layer, line by line that of `SpatialGroupingAttention.forward`, except for the maps."""

    def __init__(self, module: nn.Module, way: Way) -> None:
        self.module, self.way = module, way

    def __call__(
        self,
        x: torch.Tensor,
        input_spacing: tuple[float, ...],
        input_grid_shape: tuple[int, ...],
        mask: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        module: Any = self.module
        if module.iters < 1:  # no map is computed: the published layer returns memory as it found it
            return type(module).forward(module, x, input_spacing, input_grid_shape, mask)
        q_spacing = module._calculate_strided_spacing(input_spacing)
        q_grid_shape = module._calculate_strided_grid_shape(input_grid_shape)
        batch, pixels, features = x.shape
        if mask is not None:
            mask = mask.to(x.device) > 0
            x = torch.where(mask.flatten(1).unsqueeze(-1), module.mask_embedding.expand(batch, pixels, features), x)
        x_out = module.strider(x.transpose(1, 2).reshape(batch, features, *input_grid_shape))
        x_out = module.norm1(x_out.flatten(2).transpose(1, 2))
        groups = x_out.shape[1]
        # The published loop computes keys and values again in every iteration, from the same x.
        k, v = module.kv(x).chunk(2, dim=-1)
        k = module.temp * module.rose(k, input_spacing, input_grid_shape, flatten=False).transpose(1, 2)
        eps = torch.finfo(k.dtype).eps
        # Reshaped, not transposed: this is how the published layer deals values out to heads, and takes them back.
        k, v = _heads_first(_lowered(k)), _heads_first(_lowered(v.reshape(*k.shape)))
        attended = self.way.layer(k, v, module.num_heads, eps)
        for _ in range(module.iters):
            q = module.rose(module.q(x_out), q_spacing, q_grid_shape, flatten=False).transpose(1, 2)
            q = _heads_first(_lowered(q))
            gathered, normal, plain = attended(q)
            x_out = x_out + module.norm2(_batch_first(gathered, batch).reshape(batch, groups, features))
            x_out = x_out + module.norm3(module.mlp(x_out))
        return {
            "x_out": x_out,
            "attn_q": LazyMap((normal,), batch),
            "attn_k": LazyMap((plain,), batch),
            "out_grid_shape": q_grid_shape,
            "out_spacing": q_spacing,
        }


def _heads_first(x: torch.Tensor) -> torch.Tensor:
    """Return (batch, heads, positions, features) as (heads x batch, positions, features), contiguous."""
    return x.transpose(0, 1).flatten(0, 1).contiguous()


def _batch_first(x: torch.Tensor, batch: int) -> torch.Tensor:
    return x.reshape(-1, batch, *x.shape[1:]).transpose(0, 1)


def _lowered(x: torch.Tensor) -> torch.Tensor:
    """Return the operand of a matrix product as autocast would cast it."""
    kind = x.device.type
    lowered = torch.is_autocast_enabled(kind) and x.dtype != torch.float64  # which autocast leaves alone
    return x.to(torch.get_autocast_dtype(kind)) if lowered else x
