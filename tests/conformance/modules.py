"""nn.Module classes as other people write them. `conformance run modules.py:Class` checks them without any adapter code."""

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


class UnfrozenWrapper(Wrapper):
    """Leaves the layer that it is given as it is."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        before = linear.weight.requires_grad
        super().__init__(linear, rank, alpha)
        linear.requires_grad_(before)


class NotDivided(Plain):
    """The commonest fault: scale = alpha."""

    def __init__(self, in_features, out_features, r, lora_alpha):
        super().__init__(in_features, out_features, r, lora_alpha)
        self.scaling = lora_alpha


class NegativePart(Nested):
    """The LoRA part is subtracted, in the forward and so in the backward pass."""

    def forward(self, x):
        return self.base(x) - self.up(self.down(x)) * self.scale


class DividedTwice(Nested):
    """The LoRA part is divided by the rank twice."""

    def forward(self, x):
        return self.base(x) + self.up(self.down(x)) * self.scale / self.down.out_features


class AlwaysAThird(nn.Module):
    """There is no alpha: the scale is a third."""

    def __init__(self, in_dim, out_dim, rank):
        super().__init__()
        self.base = nn.Linear(in_dim, out_dim).requires_grad_(False)
        self.down, self.up = nn.Linear(in_dim, rank, bias=False), nn.Linear(rank, out_dim, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x)) * (1 / 3)


class Unfrozen(Nested):
    """Makes a base of its own, and leaves it to train."""

    def __init__(self, in_dim, out_dim, rank, alpha):
        super().__init__(in_dim, out_dim, rank, alpha)
        self.base.requires_grad_(True)


class OnlySequences(Nested):
    """Takes x of three dimensions alone."""

    def forward(self, x):
        batch, time, features = x.shape
        return super().forward(x.reshape(batch * time, features)).reshape(batch, time, -1)


class WithoutArrays(nn.Module):
    def __init__(self, in_features, out_features, rank):
        super().__init__()


class NeedsAFile(nn.Module):
    def __init__(self, in_features, out_features, rank, alpha):
        super().__init__()
        self.read = open("no such file").read()  # noqa: SIM115


class NoFactors(nn.Module):
    def __init__(self, in_features, out_features, rank, alpha):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)


class BackupFirst(Plain):
    """Registers a buffer of W's shape before W, and one of b's shape before b. The layer does not compute with them."""

    def __init__(self, in_features, out_features, rank, alpha, bias=True):
        nn.Module.__init__(self)
        self.register_parameter("weight_backup", nn.Parameter(torch.zeros(out_features, in_features), requires_grad=False))
        self.register_parameter("bias_backup", nn.Parameter(torch.zeros(out_features), requires_grad=False))
        inner = Plain(in_features, out_features, rank, alpha, bias=bias)
        for name, parameter in inner.named_parameters():
            self.register_parameter(name, parameter)
        self.dropout, self.scaling = inner.dropout, inner.scaling
        self.bias = inner.bias


class BiasOfB(nn.Module):
    """B is an nn.Linear with a frozen bias of zeros, and stands before the base layer."""

    def __init__(self, in_features, out_features, rank, alpha):
        super().__init__()
        self.lora_B = nn.Linear(rank, out_features)
        nn.init.zeros_(self.lora_B.weight)
        nn.init.zeros_(self.lora_B.bias)
        self.lora_B.bias.requires_grad = False
        self.lora_A = nn.Linear(in_features, rank, bias=False)
        self.base = nn.Linear(in_features, out_features).requires_grad_(False)
        self.scale = alpha / rank

    def forward(self, x):
        return self.base(x) + self.scale * self.lora_B(self.lora_A(x))


def made_by_a_function(in_features, out_features, rank, alpha):
    return Wrapper(nn.Linear(in_features, out_features), rank, alpha)


class MergeGivesAnother(Nested):
    """merge() returns a plain layer, and leaves this one as it is."""

    def merge(self):
        return nn.Linear(self.base.in_features, self.base.out_features)


class MergeNeedsAMode(Nested):
    def merge(self, mode: bool):
        raise NotImplementedError


class ScaleInABuffer(Nested):
    def __init__(self, in_dim, out_dim, rank, alpha):
        super().__init__(in_dim, out_dim, rank, alpha)
        del self.scale
        self.register_buffer("scale", torch.tensor(alpha / rank))
