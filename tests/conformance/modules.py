"""nn.Module classes as other people write them, for `conformance run modules.py:Class` with no adapter code."""

import torch
from torch import nn


class Plain(nn.Module):
    """Weight as a parameter, A (rank, in), B (out, rank), other argument names."""

    def __init__(self, in_features, out_features, r, lora_alpha, lora_dropout=0.0, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None
        self.lora_A = nn.Parameter(torch.randn(r, in_features) / in_features**0.5)
        self.lora_B = nn.Parameter(torch.zeros(out_features, r))
        self.dropout = nn.Dropout(lora_dropout)
        self.scaling = lora_alpha / r

    def forward(self, x):
        base = nn.functional.linear(x, self.weight, self.bias)
        return base + self.scaling * (self.dropout(x) @ self.lora_A.T @ self.lora_B.T)


class Nested(nn.Module):
    """Linear submodules for everything, with names of their own."""

    def __init__(self, in_dim, out_dim, rank, alpha):
        super().__init__()
        self.base = nn.Linear(in_dim, out_dim).requires_grad_(False)
        self.down = nn.Linear(in_dim, rank, bias=False)
        self.up = nn.Linear(rank, out_dim, bias=False)
        nn.init.zeros_(self.up.weight)
        self.scale = alpha / rank

    def forward(self, x):
        return self.base(x) + self.up(self.down(x)) * self.scale


class Wrapper(nn.Module):
    """Wraps an nn.Linear that it is given; merges. Its state_dict, taken while merged, holds the merged weight."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.A = nn.Parameter(torch.randn(linear.in_features, rank, dtype=linear.weight.dtype) / linear.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(rank, linear.out_features, dtype=linear.weight.dtype))
        self.scale = alpha / rank
        self.kept = None

    def forward(self, x):
        return self.linear(x) if self.kept is not None else self.linear(x) + self.scale * (x @ self.A @ self.B)

    @torch.no_grad()
    def merge(self):
        if self.kept is not None:
            raise RuntimeError("merged already")
        self.kept = self.linear.weight.clone()
        self.linear.weight += self.scale * (self.A @ self.B).T

    @torch.no_grad()
    def unmerge(self):
        self.linear.weight.copy_(self.kept)
        self.kept = None


class NotDivided(Plain):
    """The commonest fault: scale = alpha."""

    def __init__(self, in_features, out_features, r, lora_alpha):
        super().__init__(in_features, out_features, r, lora_alpha)
        self.scaling = lora_alpha


class WithoutAlpha(nn.Module):
    def __init__(self, in_features, out_features, rank):
        super().__init__()


class NoFactors(nn.Module):
    def __init__(self, in_features, out_features, rank, alpha):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
