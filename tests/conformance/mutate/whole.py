"""A LoRA layer that has all in which a planted fault can show: dropout, merging, a bias, files."""

import torch
from torch import nn
from torch.nn import functional


class Whole(nn.Module):
    def __init__(self, in_features: int, out_features: int, rank: int, alpha: float, dropout: float = 0.0, bias: bool = True):
        super().__init__()
        self.base = nn.Linear(in_features, out_features, bias=bias).requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(in_features, rank) / max(in_features, 1) ** 0.5)
        self.lora_B = nn.Parameter(torch.zeros(rank, out_features))
        self.dropout = nn.Dropout(dropout)
        self.scale = alpha / rank
        self.merged = False
        self._kept: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.linear(x, self.base.weight, self.base.bias)
        return y if self.merged else y + self.scale * (self.dropout(x) @ self.lora_A @ self.lora_B)

    @torch.no_grad()
    def merge(self) -> None:
        if not self.merged:
            self._kept = self.base.weight.clone()
            self.base.weight += self.scale * (self.lora_A @ self.lora_B).t()
            self.merged = True

    @torch.no_grad()
    def unmerge(self) -> None:
        if self.merged and self._kept is not None:
            self.base.weight.copy_(self._kept)
            self.merged, self._kept = False, None
