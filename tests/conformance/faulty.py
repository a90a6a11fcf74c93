"""A correct LoRA module, and others with one fault each. They import nothing of this project."""

import torch
from torch import nn


class Base(nn.Module):
    """Right. A (rank, in) is stored one way round, and B (rank, out) the other."""

    def __init__(self, in_features, out_features, rank, alpha, dropout=0.0, dtype=None):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, dtype=dtype).requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(rank, in_features, dtype=dtype) / in_features**0.5)
        self.lora_B = nn.Parameter(torch.zeros(rank, out_features, dtype=dtype))
        self.dropout, self.scale, self.merged = nn.Dropout(dropout), alpha / rank, False

    def forward(self, x):
        return self.linear(x) + (0 if self.merged else self.path(x))

    def path(self, x):
        return self.scale * (self.dropout(x) @ self.lora_A.T @ self.lora_B)

    @torch.no_grad()
    def merge(self):
        self.linear.weight += self.delta()
        self.merged = True

    @torch.no_grad()
    def unmerge(self):
        self.linear.weight -= self.delta()
        self.merged = False

    def delta(self):
        return self.scale * (self.lora_A.T @ self.lora_B).T


class NotDivided(Base):
    def __init__(self, in_features, out_features, rank, alpha):
        super().__init__(in_features, out_features, rank, alpha)
        self.scale = alpha


class MergesWithoutScale(Base):
    def delta(self):
        return (self.lora_A.T @ self.lora_B).T


class NothingReachesX(Base):
    def path(self, x):
        return super().path(x.detach())


class HalvesGradients(Base):
    def path(self, x):
        return Halved.apply(super().path(x))


class Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, *grads):
        return grads[0] / 2


class SavesHalf(Base):
    """Its state has no B."""

    def state_dict(self, *args, **kwargs):
        return {key: value for key, value in super().state_dict(*args, **kwargs).items() if key != "lora_B"}

    def load_state_dict(self, state_dict, strict=True, assign=False):
        return super().load_state_dict(state_dict, strict=False, assign=assign)


class DropsInInference(Base):
    def path(self, x):
        return self.scale * (nn.functional.dropout(x, self.dropout.p) @ self.lora_A.T @ self.lora_B)


class TakesViewsForRows(Base):
    """Reads x as if it were contiguous."""

    def path(self, x):
        return super().path(x if x.is_contiguous() else x.as_strided(x.shape, torch.empty(x.shape).stride()))


class ChangesItsInput(Base):
    def forward(self, x):
        y = super().forward(x)
        x.data.zero_()
        return y


class RefusesBatches(Base):
    def forward(self, x):
        if x.dim() > 2:
            raise ValueError(f"x has {x.dim()} dimensions")
        return super().forward(x)


class ReturnsNothing(Base):
    def forward(self, x):
        super().forward(x)


class RoundsToHalf(Base):
    def path(self, x):
        return super().path(x).half().to(x.dtype)


class TrainsTheBase(Base):
    def __init__(self, in_features, out_features, rank, alpha):
        super().__init__(in_features, out_features, rank, alpha)
        self.linear.bias.requires_grad_(True)
