"""The detection head: RAT's groups propose boxes, and queries that start from the best find one object each."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

#: The score that an untrained head gives, so that the many queries without an object do not dominate the loss. Chosen,
#: not measured.
PRIOR = 0.02
#: Sides of an untrained group's box: so many groups, and at most this share of the image.
FIRST_GROUPS, LARGEST_FIRST = 4, 0.5
_WAVES = 10000.0


class DetectionModel(nn.Module):
    """RAT with a decoder: images to a class and a box for each query.

    Every group proposes a class and a box around its own place, and the most certain proposals become the queries
    ("two-stage", Zhu et al., "Deformable DETR", ICLR 2021). Each decoder layer attends to the groups of all scales
    around a query's box and moves it (Liu et al., "DAB-DETR", ICLR 2022); attention to groups starts near the box (Gao
    et al., "SMCA", ICCV 2021). So queries start on objects. DETR's free queries take hundreds of epochs to get there.

    Forward takes (B, C, H, W), or a list of them from fine to coarse, one per scale. It returns `logits` (B, L, Q,
    classes) and `boxes` (B, L, Q, 4) of all decoder layers, the last of which is the prediction, and `proposals`, the
    same of all N groups in one layer, for the loss. Q is `queries`, or N if there are fewer groups. Boxes are centre
    and size as shares of the image, float32; the score of a class is its logit's sigmoid.
    """

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        heads: int,
        scales: tuple[float, ...],
        classes: int,
        queries: int,
        layers: int,
        spacing: float = 1.0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        # In the units of the finest image's spacing, so that RAT's rotary positions of all scales agree.
        self.spacings = [(spacing * max(scales) / scale,) * 2 for scale in scales]
        self.features = features
        self.queries = queries
        self.norms = nn.ModuleList(nn.LayerNorm(features) for _ in scales)
        self.scale = nn.Parameter(torch.zeros(len(scales), features))
        self.propose = _Reading(features, classes)
        self.content = nn.Linear(features, features)
        self.position = nn.Sequential(nn.Linear(2 * features, features), nn.GELU(), nn.Linear(features, features))
        self.layers = nn.ModuleList(_DecoderLayer(features, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(features)
        self.read = _Reading(features, classes)

    def forward(self, image: torch.Tensor | list[torch.Tensor]) -> dict[str, Any]:
        """Return logits, boxes and proposals (shapes above) for images (B, C, H, W) in [0, 1]."""
        images = [image] if isinstance(image, torch.Tensor) else list(image)
        return self.read_groups(images, self.backbone(images, input_spacing=self.spacings))

    def read_groups(self, images: list[torch.Tensor], groups: list[Any]) -> dict[str, Any]:
        """Return logits, boxes and proposals from RAT's groups of the images, one mapping for each scale."""
        memory, anchors = self._memory(images, groups)
        places = anchors[:, :2]
        waves = sine(places, self.features).to(memory.dtype)
        first_logits, step = self.propose(memory)
        proposed = torch.logit(anchors) + step
        proposals = {"logits": first_logits[:, None], "boxes": proposed.sigmoid()[:, None]}
        best = first_logits.detach().amax(-1).topk(min(self.queries, memory.shape[1]), dim=1).indices[..., None]
        queries = self.content(memory.gather(1, best.expand(-1, -1, self.features)))
        # Each layer learns its own step: gradients do not run through those before.
        reference = proposed.detach().gather(1, best.expand(-1, -1, 4))
        logits, boxes = [], []
        for layer in self.layers:
            box = reference.sigmoid()
            around = torch.cat([sine(box[..., :2], self.features), sine(box[..., 2:], self.features)], dim=-1)
            queries = layer(queries, self.position(around.to(memory.dtype)), memory, waves, nearness(box, places))
            found, step = self.read(self.norm(queries))
            moved = reference + step
            logits.append(found)
            boxes.append(moved.sigmoid())
            reference = moved.detach()
        return {"logits": torch.stack(logits, dim=1), "boxes": torch.stack(boxes, dim=1), "proposals": proposals}

    def _memory(self, images: list[torch.Tensor], groups: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all scales' groups (B, N, D), and the box that each starts from (N, 4), float32."""
        memory, anchors = [], []
        parts = zip(images, groups, self.norms, self.spacings, strict=True)
        for number, (image, group, norm, spacing) in enumerate(parts):
            memory.append(norm(group["x_out"]) + self.scale[number])
            axes, sides = [], []
            for side, count, reach, step in zip(
                image.shape[-2:], group["out_grid_shape"], group["out_spacing"], spacing, strict=True
            ):
                stride = reach / step  # pixels between groups; the first lies on the first pixel
                axes.append((torch.arange(count, device=image.device, dtype=torch.float32) * stride + 0.5) / side)
                sides.append(min(FIRST_GROUPS * stride / side, LARGEST_FIRST))
            rows, columns = torch.meshgrid(*axes, indexing="ij")
            centres = torch.stack([columns.flatten(), rows.flatten()], dim=-1)
            anchors.append(torch.cat([centres, torch.ones_like(centres) * centres.new_tensor(sides[::-1])], dim=-1))
        return torch.cat(memory, dim=1), torch.cat(anchors)


class _Reading(nn.Module):
    """Class logits, and the step from a reference box, computed from features."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.classify = nn.Linear(features, classes)
        self.locate = nn.Sequential(nn.Linear(features, features), nn.GELU(), nn.Linear(features, 4))
        nn.init.constant_(self.classify.bias, math.log(PRIOR / (1 - PRIOR)))
        for parameter in self.locate[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (..., classes), and steps of box logits (..., 4) in float32, for (..., D)."""
        return self.classify(features), self.locate(features).float()


class _DecoderLayer(nn.Module):
    """Self-attention of the queries, then attention to the groups. Norms come first."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(features) for _ in range(3))
        self.among = _Attention(features, heads)
        self.into = _Attention(features, heads)
        self.mlp = nn.Sequential(nn.Linear(features, 4 * features), nn.GELU(), nn.Linear(4 * features, features))
        # Heads look at different distances: from all of the image to the box alone.
        self.sharpness = nn.Parameter(torch.linspace(0.0, 2.0, heads) if heads > 1 else torch.ones(1))

    def forward(
        self,
        queries: torch.Tensor,
        position: torch.Tensor,
        memory: torch.Tensor,
        waves: torch.Tensor,
        near: torch.Tensor,
    ) -> torch.Tensor:
        """Return the queries (B, Q, D) after this layer; `near` (B, Q, N) is at most 0, and 0 at a query's centre."""
        read = self.norms[0](queries)
        queries = queries + self.among(read + position, read + position, read)
        read = self.norms[1](queries)
        bias = near[:, None] * F.softplus(self.sharpness.float())[:, None, None]
        queries = queries + self.into(read + position, memory + waves, memory, bias)
        mixed: torch.Tensor = queries + self.mlp(self.norms[2](queries))
        return mixed


class _Attention(nn.Module):
    """Multi-head attention with a bias on its logits. The maps are materialised: queries are few, so they are small."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(features, features), nn.Linear(features, features)
        self.value, self.out = nn.Linear(features, features), nn.Linear(features, features)

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attend from (B, Q, D) to (B, N, D); `bias` is (B, heads, Q, N)."""
        batch, count, width = query.shape

        def split(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.reshape(batch, -1, self.heads, width // self.heads).transpose(1, 2)

        q, k, v = split(self.query(query)), split(self.key(key)), split(self.value(value))
        logits = (q @ k.transpose(-2, -1)).float() / math.sqrt(width // self.heads)
        weights = (logits if bias is None else logits + bias).softmax(-1).to(v.dtype)
        result: torch.Tensor = self.out((weights @ v).transpose(1, 2).reshape(batch, count, width))
        return result


def sine(places: torch.Tensor, features: int) -> torch.Tensor:
    """Return sines and cosines (..., D) of two coordinates (..., 2) in [0, 1], half of D for each (as in DETR)."""
    half = features // 2
    pairs = (half + 1) // 2
    rates = torch.arange(pairs, device=places.device, dtype=torch.float32) / max(1, pairs)
    angles = places[..., None] * (2 * math.pi * torch.tensor(20.0, device=places.device)) * _WAVES**-rates
    both = torch.cat([angles.sin(), angles.cos()], dim=-1)[..., :half].flatten(-2)
    return F.pad(both, (0, features - both.shape[-1]))


def nearness(box: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Return minus the squared distance (B, Q, N) of places (N, 2) from a box (B, Q, 4), in halves of its sides."""
    away = (places - box[..., None, :2]) / (box[..., None, 2:] / 2).clamp(min=0.02)
    return -(away**2).sum(-1)
