"""A GPT-2 in plain torch, for benchmarks that must not need `transformers`: named in requests as `gpt:Gpt`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class _Block(nn.Module):
    """Causal attention and an MLP, each behind a LayerNorm and added to what came in."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        heads = (batch, tokens, self.heads, width // self.heads)
        query, key, value = (part.reshape(heads).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.dropout(self.out(mixed.transpose(1, 2).reshape(batch, tokens, width)))
        out: torch.Tensor = x + self.dropout(self.mlp(self.norm2(x)))
        return out


class Gpt(nn.Module):
    """GPT-2-small unless told otherwise. Images (B, C, H, W) in [0, 1] become token ids; it returns the mean
    cross-entropy of the next token.
    """

    def __init__(
        self,
        layers: int = 12,
        width: int = 768,
        heads: int = 12,
        tokens: int = 1024,
        words: int = 50257,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.tokens, self.words = tokens, words
        self.word, self.place = nn.Embedding(words, width), nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList(_Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.word.weight  # shared, as in GPT-2

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        ids = (image.flatten(1)[:, : self.tokens] * (self.words - 1)).long()
        x = self.word(ids) + self.place(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits[:, :-1].reshape(-1, self.words).float(), ids[:, 1:].reshape(-1))
