"""Products with one layer's attention map by FlexAttention, which never forms the map and has its own backward pass.

For groups g and pixels p let `A = softmax_p(q_g . k_p)`, `c_p = sum_g A_gp` and `W = A / (c + eps)`. An attention gives
its output and the log-sum-exp of its scores, and both can be differentiated:

1. over pixels, `attend(q, k, .)`: the log-sum-exp is that of a group's scores, `lse_g`;
2. over groups, `attend([k, 1], [q, -lse], x)`: the log-sum-exp is `log c_p`, and the output `sum_g A_gp x_g / c_p`;
3. over pixels again, `attend(q, k, v / (c + eps))`: the output is `W v`.

So `W^T x` is the output of step 2 times `c / (c + eps)`. Tensors are (heads x batch, positions, features), as in
`chunked_maps`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from ratc_runtime.errors import RuntimeFinding
from ratc_runtime.models.chunked_maps import formed, no_autocast

#: FlexAttention's kernels take heads of at least 16 features, and powers of two.
LEAST_FEATURES = 16
#: Shapes, types and gradients of a model's attentions, each of which is a variant that is compiled once. Beyond torch's
#: own limit of 8 the whole map would be formed without a word; `fullgraph` makes going beyond this one an error.
VARIANTS = 64

#: Queries, keys and values (H, n, d), (H, m, d), (H, m, e) to softmax(q k^T) v, (H, n, e), and the log-sum-exp of the
#: scores, (H, n), in float32 or better.
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
#: Queries (H, groups, d) to the gathered values and the layer's maps.
Layer = Callable[[torch.Tensor], "tuple[torch.Tensor, FusedFactor, FusedFactor]"]
_stand_in: Attend | None = None


class Keys(NamedTuple):
    """The pixels' keys (H, pixels, …): `k` as given, `plain` padded, `biased` with ones in the features of a bias.

    `plain` and `biased` are one tensor if the padding has enough room. Queries without a bias have zeros there.
    """

    k: torch.Tensor
    plain: torch.Tensor
    biased: torch.Tensor

    @classmethod
    def of(cls, k: torch.Tensor) -> Keys:
        """Return keys (H, pixels, d) in both forms."""
        ones = k.new_ones((*k.shape[:2], 1 if k.dtype == torch.float64 else 2))
        biased = torch.cat([k, ones], dim=-1)
        biased = _filled(biased, _size(biased.shape[-1]))
        size = _size(k.shape[-1])
        return cls(k, biased if biased.shape[-1] == size else _filled(k, size), biased)


class FusedFactor(NamedTuple):
    """One layer's map, by its padded queries `q` (H, groups, …) and keys: W if it has the sums of columns `c` (H,
    pixels), else A.

    `lse` (H, groups) are the log-sum-exps of the scores; `eps` is added to `c`.
    """

    q: torch.Tensor
    keys: Keys
    lse: torch.Tensor
    c: torch.Tensor | None
    eps: float
    attend: Attend

    @property
    def k(self) -> torch.Tensor:
        """The keys without padding, (H, pixels, d)."""
        return self.keys.k

    def gather(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the map times (H, pixels, e): (H, groups, e)."""
        with no_autocast(vectors.device):
            if self.c is not None:
                vectors = (vectors / (self.c + self.eps).unsqueeze(-1)).to(self.q.dtype)
            return self.attend(self.q, self.keys.plain, vectors)[0]

    def spread(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the map's transpose times (H, groups, e): (H, pixels, e)."""
        with no_autocast(vectors.device):
            mean, log = self.attend(self.keys.biased, _biased(self.q, self.keys, self.lse), vectors)
            c = log.exp()
            return (mean * (c if self.c is None else c / (c + self.eps)).unsqueeze(-1)).to(self.q.dtype)

    def dense(self) -> torch.Tensor:
        """Return the whole map, (H, groups, pixels)."""
        return formed(self.q[..., : self.k.shape[-1]], self.k, None if self.c is None else self.eps)


def _biased(q: torch.Tensor, keys: Keys, lse: torch.Tensor) -> torch.Tensor:
    """Return queries (H, groups, d) with -lse in the features that are ones in the keys."""
    biased = torch.cat([q[..., : keys.k.shape[-1]], *_split(-lse, q.dtype)], dim=-1)
    return _filled(biased, keys.biased.shape[-1])


def _split(number: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Return (H, n) as features (H, n, 1) that add up to it, each exact in the precision of tensor cores.

    One feature of a 16-bit type would round by up to 4 %; TF32 also has only 10 bits. Gradients flow through the first.
    """
    if dtype == torch.float64:
        return (number.unsqueeze(-1),)
    exact = number.detach()
    high = exact.to(torch.bfloat16 if dtype == torch.float32 else dtype).to(exact.dtype)
    # Not by the cast, which would round the gradient, too.
    learned = number + (high - exact)
    return learned.to(dtype).unsqueeze(-1), (exact - high).to(dtype).unsqueeze(-1)


def by_flex_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend with FlexAttention's compiled kernels; shapes as in `Attend`.

    Features are padded with zeros to a supported size.
    Raises R553 if the kernels cannot be compiled.
    """
    features = v.shape[-1]
    wanted = _size(q.shape[-1]), _size(q.shape[-1]), _size(features)
    q, k, v = (_filled(tensor, size).unsqueeze(0) for tensor, size in zip((q, k, v), wanted, strict=True))
    out, lse = (_stand_in or _by_kernels)(q, k, v)
    return out[0, ..., :features], lse[0]


def _by_kernels(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from torch.nn.attention import flex_attention

    if not hasattr(flex_attention, "AuxRequest"):
        raise RuntimeFinding(
            "R553",
            "this torch's FlexAttention gives no log-sum-exp as fused attention needs it",
            f"torch {torch.__version__} has no torch.nn.attention.flex_attention.AuxRequest",
            "install a later torch, or compile the spec with model.attention_memory: chunked",
        )
    from torch._dynamo import config, exc
    from torch._inductor.exc import InductorError

    try:
        with config.patch(recompile_limit=max(VARIANTS, config.recompile_limit)):
            return _compiled()(q, k, v)
    except (exc.TorchDynamoException, exc.FailOnRecompileLimitHit, InductorError) as error:
        raise RuntimeFinding(
            "R553",
            "FlexAttention's kernels cannot be compiled here",
            f"{type(error).__name__}: {str(error).strip().splitlines()[0]}",
            "repair the installation of Triton, or compile the spec with model.attention_memory: chunked",
        ) from error


@contextlib.contextmanager
def instead(attend: Attend) -> Iterator[None]:
    """Replace the kernels by `attend`, with their four dimensions (1, H, n, d), for a trace."""
    global _stand_in
    before, _stand_in = _stand_in, attend
    try:
        yield
    finally:
        _stand_in = before


def _size(features: int) -> int:
    return max(LEAST_FEATURES, 1 << (features - 1).bit_length())


def _filled(tensor: torch.Tensor, features: int) -> torch.Tensor:
    missing = features - tensor.shape[-1]
    return torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor


@functools.lru_cache(maxsize=1)
def _compiled() -> Any:
    """Return the process's one compiled attention. Each variant is compiled at its first call, which takes seconds."""
    return torch.compile(_flex, dynamic=False, fullgraph=True)


def _flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    out, aux = flex_attention(q, k, v, scale=1.0, return_aux=AuxRequest(lse=True))
    return out, aux.lse  # type: ignore[return-value]  # never None if it was asked for


class Fused(NamedTuple):
    """Products by an attention that forms no map."""

    attend: Attend = by_flex_attention

    def layer(self, k: torch.Tensor, v: torch.Tensor, heads: int, eps: float) -> Layer:
        """Return a function from queries to the gathered values, (heads x batch, groups, e), and the maps W and A."""
        keys = Keys.of(k)

        def attended(q: torch.Tensor) -> tuple[torch.Tensor, FusedFactor, FusedFactor]:
            with no_autocast(q.device):
                q = _filled(q, keys.plain.shape[-1])
                # Only the log-sum-exps are used: any values of the right shape do, and these are kept anyway.
                _, lse = self.attend(q, keys.plain, keys.plain)
                biased = _biased(q, keys, lse)
                _, log = self.attend(keys.biased, biased, biased)
                normal = FusedFactor(q, keys, lse, log.exp(), eps, self.attend)
                return normal.gather(v), normal, normal._replace(c=None)

        return attended
