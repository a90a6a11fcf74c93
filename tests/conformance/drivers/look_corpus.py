"""Linear layers with LoRA, each in the style of another author. Half of them are right, and each of the others has one fault.

CORPUS, at the end of the file, holds what is true of each of them. The names of the tensors are those of this project:

    y = x Wᵀ + b + scale · (x A) B        W (out, in)    b (out)    A (in, rank)    B (rank, out)
"""

import math
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

# ---- right layers, built from sizes


class PlainLoRA(nn.Module):
    """The layer adds two factors to an nn.Linear of its own."""

    def __init__(self, in_features: int, out_features: int, rank: int, alpha: float):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.linear.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(in_features, rank) / math.sqrt(in_features))
        self.lora_B = nn.Parameter(torch.zeros(rank, out_features))
        self.scaling = alpha / rank

    def forward(self, x):
        return self.linear(x) + (x @ self.lora_A @ self.lora_B) * self.scaling


class AdaptedDense(nn.Module):
    """The layer owns its weight and drops entries of x before A."""

    def __init__(self, n_in, n_out, r, lora_alpha, lora_dropout=0.0, use_bias=True):
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(n_out, n_in), requires_grad=False)
        self.offset = nn.Parameter(torch.zeros(n_out), requires_grad=False) if use_bias else None
        self.drop = nn.Dropout(lora_dropout)
        self.lora_a = nn.Parameter(torch.empty(r, n_in))
        self.lora_b = nn.Parameter(torch.zeros(n_out, r))
        self.factor = lora_alpha / r
        nn.init.xavier_uniform_(self.kernel)
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))

    def forward(self, inputs):
        low = F.linear(self.drop(inputs), self.lora_a)
        return F.linear(inputs, self.kernel, self.offset) + self.factor * F.linear(low, self.lora_b)


class MergingLinear(nn.Linear):
    """The layer merges in train(False) and unmerges in train()."""

    def __init__(self, in_features, out_features, r=8, lora_alpha=16, merge_weights=True, **kwargs):
        super().__init__(in_features, out_features, **kwargs)
        self.weight.requires_grad = False
        self.lora_A = nn.Parameter(self.weight.new_empty(r, in_features))
        self.lora_B = nn.Parameter(self.weight.new_zeros(out_features, r))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.scaling, self.merge_weights, self.merged = lora_alpha / r, merge_weights, False

    def train(self, mode: bool = True):
        if mode and self.merged:
            self.weight.data -= self.delta
            self.merged = False
        elif not mode and self.merge_weights and not self.merged:
            self.delta = self.scaling * (self.lora_B.data @ self.lora_A.data)
            self.weight.data += self.delta
            self.merged = True
        return super().train(mode)

    def forward(self, x):
        y = F.linear(x, self.weight, self.bias)
        return y if self.merged else y + (x @ self.lora_A.T @ self.lora_B.T) * self.scaling


def mark_only_lora_as_trainable(model: nn.Module) -> None:
    """The function freezes everything that is not of LoRA."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "lora_" in name


class ExpandingLayer(nn.Module):
    """The layer takes its scale as it is and keeps its factors in a dictionary."""

    def __init__(self, d_model: int, d_ff: int, rank: int, scaling: float, bias: bool = True):
        super().__init__()
        self.proj = nn.Linear(d_model, d_ff, bias=bias)
        for p in self.proj.parameters():
            p.requires_grad = False
        self.factors = nn.ParameterDict({
            "first": nn.Parameter(torch.randn(d_model, rank) * d_model**-0.5),
            "second": nn.Parameter(torch.zeros(rank, d_ff)),
        })
        self.scaling = scaling

    def forward(self, hidden):
        update = hidden @ self.factors["first"] @ self.factors["second"]
        return self.proj(hidden) + self.scaling * update


class RootRankLinear(nn.Module):
    """The layer divides alpha by the root of the rank."""

    def __init__(self, fan_in: int, fan_out: int, rank: int, alpha: float, bias: bool = True):
        super().__init__()
        self.frozen = nn.Linear(fan_in, fan_out, bias=bias).requires_grad_(False)
        self.left = nn.Parameter(torch.empty(fan_in, rank).normal_(std=1 / math.sqrt(fan_in)))
        self.right = nn.Parameter(torch.zeros(fan_out, rank))
        self.gamma = alpha / math.sqrt(rank)

    def extra_repr(self) -> str:
        return f"gamma={self.gamma:.3f}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(x) + self.gamma * torch.matmul(torch.matmul(x, self.left), self.right.t())


class FixedAdapter(nn.Module):
    """The class says rank and alpha. A caller gives the sizes alone."""

    rank = 4
    alpha = 8.0

    def __init__(self, in_features, out_features, bias=True):
        super().__init__()
        self.base = nn.Linear(in_features, out_features, bias=bias).requires_grad_(False)
        self.adapter_in = nn.Linear(in_features, self.rank, bias=False)
        self.adapter_out = nn.Linear(self.rank, out_features, bias=False)
        self.adapter_out.weight.data.zero_()

    def forward(self, x):
        return self.base(x) + self.adapter_out(self.adapter_in(x)) * (self.alpha / self.rank)


class ScriptableLinear(nn.Module):
    """TorchScript compiles this layer."""

    scale: float

    def __init__(self, input_dim: int, output_dim: int, lora_rank: int, lora_alpha: float):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(output_dim, input_dim) / input_dim**0.5, requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(output_dim), requires_grad=False)
        self.weight_a = nn.Parameter(torch.randn(lora_rank, input_dim) / input_dim**0.5)
        self.weight_b = nn.Parameter(torch.zeros(output_dim, lora_rank))
        self.scale = float(lora_alpha) / float(lora_rank)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        base = torch.nn.functional.linear(x, self.weight, self.bias)
        low = torch.nn.functional.linear(x, self.weight_a)
        return base + torch.nn.functional.linear(low, self.weight_b) * self.scale


class GPTProjection(nn.Module):
    """The layer keeps its weight as (in, out), takes the output size first, and merges without an undo."""

    def __init__(self, nf: int, nx: int, rank: int, alpha: float):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(nx, nf) * 0.02, requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(nf), requires_grad=False)
        self.c_down = nn.Parameter(torch.randn(nx, rank) * 0.02)
        self.c_up = nn.Parameter(torch.zeros(rank, nf))
        self.scale = alpha / rank
        self.baked = False

    @torch.no_grad()
    def bake(self):
        if not self.baked:
            self.weight += self.scale * (self.c_down @ self.c_up)
            self.baked = True

    def forward(self, x):
        y = x @ self.weight + self.bias
        return y if self.baked else y + self.scale * (x @ self.c_down @ self.c_up)


class ListedFactors(nn.Module):
    """The layer keeps its factors in a list."""

    def __init__(self, width_in, width_out, rank, alpha):
        super().__init__()
        self.dense = nn.Linear(width_in, width_out).requires_grad_(False)
        self.pair = nn.ParameterList([torch.randn(width_in, rank) / width_in**0.5, torch.zeros(rank, width_out)])
        self.s = alpha / rank
        self.before = None

    def merge_weights(self):
        if self.before is None:
            self.before = self.dense.weight.detach().clone()
            self.dense.weight.data.add_((self.pair[0].data @ self.pair[1].data).T, alpha=self.s)

    def unmerge_weights(self):
        if self.before is not None:
            self.dense.weight.data.copy_(self.before)
            self.before = None

    def forward(self, x):
        a, b = self.pair
        return self.dense(x) + self.s * ((x @ a) @ b) if self.before is None else self.dense(x)


class EvalMergingLinear(nn.Linear):
    """The layer passes most arguments on. eval() merges and train() unmerges."""

    def __init__(self, *args, rank: int, alpha: float, **kwargs):
        super().__init__(*args, **kwargs)
        self.requires_grad_(False)
        self.low = nn.Parameter(self.weight.new_empty(rank, self.in_features).normal_(std=self.in_features**-0.5))
        self.high = nn.Parameter(self.weight.new_zeros(rank, self.out_features))
        self.scale, self.folded = alpha / rank, False

    def _fold(self, on):
        if on != self.folded:
            self.added, self.folded = self.scale * self.high.data.T @ self.low.data if on else -self.added, on
            self.weight.data.add_(self.added)

    def eval(self):
        self._fold(True)
        return super().eval()

    def train(self, mode: bool = True):
        self._fold(self.folded and not mode)
        return super().train(mode)

    def forward(self, input):
        return super().forward(input) + (0 if self.folded else self.scale * (input @ self.low.T @ self.high))


class FixedScale(nn.Module):
    """The scale of the layer is always 2."""

    def __init__(self, in_f: int, out_f: int, r: int):
        super().__init__()
        self.wrapped = nn.Linear(in_f, out_f).requires_grad_(False)
        self.lora_left = nn.Parameter(torch.randn(in_f, r) / math.sqrt(in_f))
        self.lora_right = nn.Parameter(torch.zeros(r, out_f))
        self.inside = None

    @torch.no_grad()
    def fold(self):
        if self.inside is None:
            self.inside = 2 * (self.lora_left @ self.lora_right).T
            self.wrapped.weight += self.inside

    @torch.no_grad()
    def unfold(self):
        if self.inside is not None:
            self.wrapped.weight -= self.inside
        self.inside = None

    def forward(self, x):
        y = self.wrapped(x)
        return y + 2 * (x @ self.lora_left @ self.lora_right) if self.inside is None else y


class GatedLinear(nn.Module):
    """The layer needs a name and a switch. A starts at zero and B at random."""

    def __init__(self, name: str, in_dim: int, out_dim: int, rank: int, alpha: float, enabled: bool):
        super().__init__()
        self.name, self.enabled = name, enabled
        self.main = nn.Linear(in_dim, out_dim)
        self.main.weight.requires_grad = self.main.bias.requires_grad = False
        self.P = nn.Parameter(torch.zeros(in_dim, rank))
        self.Q = nn.Parameter(torch.randn(rank, out_dim) / math.sqrt(out_dim))
        self.alpha_over_rank = alpha / rank

    def forward(self, x):
        y = self.main(x)
        if self.enabled:
            y = y + self.alpha_over_rank * (x @ self.P @ self.Q)
        return y


class BareLinear(nn.Module):
    """Nobody freezes the base of this layer."""

    def __init__(self, inp, oup, rank, alpha, bias=True):
        super().__init__()
        self.fc = nn.Linear(inp, oup, bias=bias)
        self.lora = nn.ModuleDict({
            "A": nn.Linear(inp, rank, bias=False),
            "B": nn.Linear(rank, oup, bias=False),
        })
        nn.init.constant_(self.lora["B"].weight, 0.0)
        self.scale = alpha / rank

    def forward(self, x):
        return self.fc(x) + self.lora["B"](self.lora["A"](x)) * self.scale


class _Sum(nn.Module):
    """The module adds a scaled branch to a base."""

    def __init__(self, base, down, up, scale):
        super().__init__()
        self.base, self.down, self.up = base, down, up
        self.scale = scale

    def forward(self, x):
        return self.base(x) + self.scale * self.up(self.down(x))


def lora_linear(in_features: int, out_features: int, rank: int = 8, alpha: float = 16.0, bias: bool = True) -> nn.Module:
    """The function makes a layer from sizes."""
    base = nn.Linear(in_features, out_features, bias=bias).requires_grad_(False)
    down = nn.Linear(in_features, rank, bias=False)
    up = nn.Linear(rank, out_features, bias=False)
    nn.init.zeros_(up.weight)
    return _Sum(base, down, up, alpha / rank)


# ---- right layers, built from an nn.Linear


class FusableLinear(nn.Module):
    """The layer keeps a copy of the weight while it is fused."""

    def __init__(self, base_layer: nn.Linear, rank: int = 4, lora_alpha: float = 4.0):
        super().__init__()
        self.base_layer = base_layer.requires_grad_(False)
        self.down = nn.Linear(base_layer.in_features, rank, bias=False).to(base_layer.weight)
        self.up = nn.Linear(rank, base_layer.out_features, bias=False).to(base_layer.weight)
        nn.init.zeros_(self.up.weight)
        self.scale, self.unfused = lora_alpha / rank, None

    @torch.no_grad()
    def fuse_lora(self):
        if self.unfused is None:
            self.unfused = self.base_layer.weight.clone()
            self.base_layer.weight += self.scale * (self.up.weight @ self.down.weight)

    def unfuse_lora(self):
        if self.unfused is not None:
            self.base_layer.weight.data.copy_(self.unfused)
        self.unfused = None

    def forward(self, x):
        y = self.base_layer(x)
        return y if self.unfused is not None else y + self.up(self.down(x)) * self.scale


class Wrapped(nn.Module):
    """The wrapper knows no alpha. It adds A B as it is."""

    def __init__(self, original, r):
        super().__init__()
        self.original = original
        for p in original.parameters():
            p.requires_grad_(False)
        n_out, n_in = original.weight.shape
        self.u = nn.Parameter(original.weight.new_empty(r, n_in).uniform_(-1, 1) / n_in**0.5)
        self.v = nn.Parameter(original.weight.new_zeros(r, n_out))

    def forward(self, x):
        return self.original(x) + x @ self.u.transpose(0, 1) @ self.v


class SequentialBranch(nn.Module):
    """The wrapper keeps its branch in an nn.Sequential. A method freezes the layer."""

    def __init__(self, layer: nn.Linear, r: int, lora_alpha: int, p: float = 0.0):
        super().__init__()
        self.layer = layer
        self.branch = nn.Sequential(
            nn.Dropout(p),
            nn.Linear(layer.in_features, r, bias=False),
            nn.Linear(r, layer.out_features, bias=False),
        ).to(layer.weight)
        self.branch[-1].weight.data.fill_(0)
        self.lora_scale = lora_alpha / r

    def freeze_pretrained(self):
        for p in self.layer.parameters():
            p.requires_grad = False

    def forward(self, x):
        return self.layer(x) + self.branch(x) * self.lora_scale


class TunedLayer(nn.Module):
    """The layer keeps its factors by the name of an adapter."""

    def __init__(self, base_layer: nn.Linear, adapter_name: str, r: int, lora_alpha: int, lora_dropout: float = 0.0):
        super().__init__()
        self.base_layer, self.active, self.merged = base_layer.requires_grad_(False), adapter_name, []
        down, up = nn.Linear(base_layer.in_features, r, bias=False), nn.Linear(r, base_layer.out_features, bias=False)
        nn.init.zeros_(up.weight)
        self.lora_A = nn.ModuleDict({adapter_name: down.to(base_layer.weight)})
        self.lora_B = nn.ModuleDict({adapter_name: up.to(base_layer.weight)})
        self.lora_dropout, self.scaling = nn.Dropout(lora_dropout), {adapter_name: lora_alpha / r}

    def merge(self):
        if not self.merged:
            delta = self.lora_B[self.active].weight.data @ self.lora_A[self.active].weight.data
            self.merged.append(delta * self.scaling[self.active])
            self.base_layer.weight.data += self.merged[0]

    def unmerge(self):
        while self.merged:
            self.base_layer.weight.data -= self.merged.pop()

    def forward(self, x):
        y, n = self.base_layer(x), self.active
        return y if self.merged else y + self.lora_B[n](self.lora_A[n](self.lora_dropout(x))) * self.scaling[n]


class LoRAModule(nn.Module):
    """The module takes the place of the forward of another one."""

    def __init__(self, lora_name, org_module: nn.Module, multiplier=1.0, lora_dim=4, alpha=1):
        super().__init__()
        self.lora_name, self.lora_dim, self.multiplier = lora_name, lora_dim, multiplier
        self.lora_down = nn.Linear(org_module.in_features, lora_dim, bias=False).to(org_module.weight)
        self.lora_up = nn.Linear(lora_dim, org_module.out_features, bias=False).to(org_module.weight)
        nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_up.weight)
        self.scale = (lora_dim if alpha is None else alpha) / lora_dim
        self.org_module = org_module
        self.org_forward = org_module.forward

    def apply_to(self):
        self.org_module.forward = self.forward

    def forward(self, x):
        return self.org_forward(x) + self.lora_up(self.lora_down(x)) * self.multiplier * self.scale


class HookedLinear(nn.Module):
    """A hook of the base adds the branch."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.A = nn.Parameter(linear.weight.new_empty(linear.in_features, rank).normal_(0, linear.in_features**-0.5))
        self.B = nn.Parameter(linear.weight.new_zeros(rank, linear.out_features))
        self.scale = alpha / rank
        self.linear.register_forward_hook(self._add)

    def _add(self, module, args, output):
        return output + self.scale * (args[0] @ self.A @ self.B)

    def forward(self, x):
        return self.linear(x)


def add_lora_(linear: nn.Linear, rank: int, alpha: float) -> nn.Linear:
    """The function gives a layer two factors and another forward."""
    linear.requires_grad_(False)
    linear.lora_down = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
    linear.lora_up = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
    nn.init.normal_(linear.lora_down, std=linear.in_features**-0.5)
    linear.lora_scale = alpha / rank
    linear.forward = partial(_with_lora, linear)
    return linear


def _with_lora(self, x):
    """The forward of a layer that add_lora_ was given."""
    base = F.linear(x, self.weight, self.bias)
    return base + F.linear(F.linear(x, self.lora_down), self.lora_up) * self.lora_scale


# ---- right layers, built from tensors or a configuration


class OverWeight(nn.Module):
    """The layer adds A B to its weight in each forward. The weight is a buffer."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, rank: int, alpha: float):
        super().__init__()
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.lora_A = nn.Parameter(torch.empty(rank, weight.size(1), dtype=weight.dtype))
        self.lora_B = nn.Parameter(torch.zeros(weight.size(0), rank, dtype=weight.dtype))
        nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)
        self.scaling = alpha / rank

    def forward(self, x):
        return F.linear(x, self.weight + self.scaling * self.lora_B @ self.lora_A, self.bias)


class FrozenTensor(nn.Module):
    """The layer takes a weight alone. It has no bias."""

    def __init__(self, pretrained: torch.Tensor, rank: int = 4, alpha: float = 4.0):
        super().__init__()
        out_dim, in_dim = pretrained.shape
        self.W0 = nn.Parameter(pretrained.clone(), requires_grad=False)
        self.A = nn.Parameter(torch.randn(in_dim, rank).to(pretrained) / math.sqrt(in_dim))
        self.B = nn.Parameter(torch.zeros(rank, out_dim).to(pretrained))
        self.alpha, self.rank = alpha, rank

    @property
    def scale(self):
        return self.alpha / self.rank

    def forward(self, x):
        return x @ self.W0.T + self.scale * (x @ self.A) @ self.B


@dataclass
class LoraOptions:
    """What a layer needs to know."""

    in_features: int
    out_features: int
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    bias: bool = True


class OptionsLinear(nn.Module):
    """The layer takes a dataclass."""

    def __init__(self, options: LoraOptions):
        super().__init__()
        self.options = options
        self.base = nn.Linear(options.in_features, options.out_features, options.bias).requires_grad_(False)
        self.dropout = nn.Dropout(options.dropout) if options.dropout else nn.Identity()
        self.A = nn.Parameter(torch.randn(options.rank, options.in_features) / options.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(options.out_features, options.rank))

    def forward(self, x):
        scale = self.options.alpha / self.options.rank
        return self.base(x) + scale * (self.dropout(x) @ self.A.mT @ self.B.mT)


class ConfiguredProjection(nn.Module):
    """The layer reads a configuration that has no class here."""

    def __init__(self, config):
        super().__init__()
        self.proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.lora_down = nn.Linear(config.hidden_size, config.lora_rank, bias=False)
        self.lora_up = nn.Linear(config.lora_rank, config.intermediate_size, bias=False)
        self.scaling = config.lora_alpha / config.lora_rank
        self.proj.requires_grad_(False)
        self.lora_up.weight.data.zero_()

    def forward(self, hidden_states):
        return self.proj(hidden_states) + self.lora_up(self.lora_down(hidden_states)) * self.scaling


class FromDict(nn.Module):
    """The layer reads a dictionary. A function beside the class freezes the base."""

    def __init__(self, opts: dict):
        super().__init__()
        n, m, r = opts["in_dim"], opts["out_dim"], opts["r"]
        self.pretrained = nn.Linear(n, m, bias=opts.get("bias", True))
        self.delta_in = nn.Parameter(torch.randn(n, r) / n**0.5)
        self.delta_out = nn.Parameter(torch.zeros(r, m))
        self.coefficient = opts["alpha"] / r

    def forward(self, x):
        return self.pretrained(x) + self.coefficient * (x @ self.delta_in @ self.delta_out)


def freeze_pretrained_layers(module):
    """The function freezes what the adapters do not own."""
    for name, parameter in module.named_parameters():
        if "pretrained" in name:
            parameter.requires_grad = False


# ---- right functions that patch a model, right parametrizations, right parts


class _Injected(nn.Module):
    """The module stands where a linear layer stood."""

    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base = base
        self.lora_A = nn.Parameter(base.weight.new_empty(rank, base.in_features).normal_(0, base.in_features**-0.5))
        self.lora_B = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        self.scaling = alpha / rank

    def forward(self, x):
        return self.base(x) + x @ self.lora_A.T @ self.lora_B.T * self.scaling


def inject_lora(model: nn.Module, target_modules: list[str], rank: int = 8, alpha: float = 16.0) -> nn.Module:
    """The function replaces the children that a caller names."""
    model.requires_grad_(False)
    for name, child in list(model.named_children()):
        if name in target_modules and isinstance(child, nn.Linear):
            setattr(model, name, _Injected(child, rank, alpha))
        else:
            inject_lora(child, target_modules, rank, alpha)
    return model


class _QueryDelta(nn.Module):
    """The parametrization takes its sizes from a weight."""

    def __init__(self, weight, rank, alpha):
        super().__init__()
        self.a = nn.Parameter(weight.new_empty(rank, weight.shape[1]).normal_(std=weight.shape[1] ** -0.5))
        self.b = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        self.scale = alpha / rank

    def forward(self, weight):
        return weight + self.scale * (self.b @ self.a)


def parametrize_queries(model, rank=4, alpha=4.0):
    """The function registers a parametrization on each layer of the name query."""
    model.requires_grad_(False)
    for name, layer in list(model.named_modules()):
        if name.split(".")[-1] == "query":
            parametrize.register_parametrization(layer, "weight", _QueryDelta(layer.weight, rank, alpha))


class LowRankUpdate(nn.Module):
    """The parametrization adds A B to a weight. A function beside the class freezes the rest."""

    def __init__(self, fan_in: int, fan_out: int, rank: int = 4, lora_alpha: float = 1.0):
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(rank, fan_in))
        self.lora_B = nn.Parameter(torch.zeros(fan_out, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.scaling = lora_alpha / rank

    def forward(self, W):
        return W + torch.matmul(self.lora_B, self.lora_A) * self.scaling


def train_only_parametrizations(layer):
    """The function freezes the weights below the parametrizations and all that has none."""
    for name, parameter in layer.named_parameters():
        parameter.requires_grad = "parametrizations" in name and not name.endswith("original")


class LowRankBranch(nn.Module):
    """The part computes the term of LoRA alone."""

    def __init__(self, in_dim, out_dim, rank, alpha):
        super().__init__()
        self.A = nn.Parameter(torch.randn(in_dim, rank) / in_dim**0.5)
        self.B = nn.Parameter(torch.zeros(rank, out_dim))
        self.scale = alpha / rank

    def forward(self, x):
        return self.scale * (x @ self.A @ self.B)


class BottleneckAdapter(nn.Module):
    """The part knows no alpha. It drops entries of x."""

    def __init__(self, size_in: int, size_out: int, r: int = 8, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.reduce = nn.Linear(size_in, r, bias=False)
        self.expand = nn.Linear(r, size_out, bias=False)
        nn.init.zeros_(self.expand.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.expand(self.reduce(self.dropout(x)))


# ---- faulty layers, built from sizes


class DenseWithLoRA(nn.Module):
    """The layer keeps alpha and never uses it."""

    def __init__(self, in_size: int, out_size: int, rank: int, alpha: float):
        super().__init__()
        self.alpha, self.rank = alpha, rank
        self.dense = nn.Linear(in_size, out_size).requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(in_size, rank) / in_size**0.5)
        self.lora_b = nn.Parameter(torch.zeros(rank, out_size))

    def forward(self, x):
        return self.dense(x) + x @ self.lora_a @ self.lora_b


class ChannelLoRA(nn.Module):
    """The layer does not divide alpha by the rank."""

    def __init__(self, in_channels, out_channels, r, alpha, bias=True):
        super().__init__()
        self.body = nn.Linear(in_channels, out_channels, bias=bias)
        self.body.requires_grad_(False)
        self.down = nn.Linear(in_channels, r, bias=False)
        self.up = nn.Linear(r, out_channels, bias=False)
        nn.init.normal_(self.down.weight, std=0.02)
        nn.init.zeros_(self.up.weight)
        self.alpha = alpha

    def forward(self, x):
        return self.body(x) + self.alpha * self.up(self.down(x))


class RandomStart(nn.Module):
    """The layer leaves B as nn.Linear draws it."""

    def __init__(self, input_size: int, output_size: int, rank: int, alpha: float):
        super().__init__()
        self.pretrained = nn.Linear(input_size, output_size).requires_grad_(False)
        self.lora_A = nn.Linear(input_size, rank, bias=False)
        self.lora_B = nn.Linear(rank, output_size, bias=False)
        nn.init.zeros_(self.pretrained.bias)
        self.scaling = alpha / rank

    def forward(self, x):
        return self.pretrained(x) + self.lora_B(self.lora_A(x)) * self.scaling


class MisspeltLinear(nn.Linear):
    """The layer writes require_grad where PyTorch reads requires_grad."""

    def __init__(self, in_features, out_features, *args, rank=4, lora_alpha=8, **kwargs):
        super().__init__(in_features, out_features, *args, **kwargs)
        for parameter in self.parameters():
            parameter.require_grad = False
        self.A = nn.Parameter(self.weight.new_empty(in_features, rank).normal_(std=in_features**-0.5))
        self.B = nn.Parameter(self.weight.new_zeros(out_features, rank))
        self.scale = lora_alpha / rank

    def forward(self, x):
        return super().forward(x) + self.scale * ((x @ self.A) @ self.B.T)


class SilentStart(nn.Module):
    """The layer starts with zeros in both factors."""

    def __init__(self, d_in, d_out, r, alpha):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(d_out), requires_grad=False)
        self.lora_A = nn.Parameter(torch.empty(r, d_in))
        self.lora_B = nn.Parameter(torch.empty(r, d_out))
        self.scaling = alpha / r
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        for tensor in (self.bias, self.lora_A, self.lora_B):
            nn.init.zeros_(tensor)

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) + x @ self.lora_A.T @ self.lora_B * self.scaling


class RefoldingLinear(nn.Linear):
    """The layer merges in each eval(), even if it is merged."""

    def __init__(self, in_features, out_features, r, lora_alpha, **kwargs):
        super().__init__(in_features, out_features, **kwargs)
        self.requires_grad_(False)
        self.lora_A = nn.Parameter(self.weight.new_empty(r, in_features).uniform_(-0.5, 0.5))
        self.lora_B = nn.Parameter(self.weight.new_zeros(out_features, r))
        self.scaling, self.merged = lora_alpha / r, False

    def train(self, mode: bool = True):
        if not mode:
            self.delta = self.scaling * (self.lora_B.data @ self.lora_A.data)
            self.weight.data += self.delta
        elif self.merged:
            self.weight.data -= self.delta
        self.merged = not mode
        return super().train(mode)

    def forward(self, x):
        y = F.linear(x, self.weight, self.bias)
        return y if self.merged else y + self.scaling * F.linear(F.linear(x, self.lora_A), self.lora_B)


class ReshapedMerge(nn.Module):
    """merge() reshapes A B where it must transpose it."""

    def __init__(self, in_dim, out_dim, rank, alpha):
        super().__init__()
        self.linear = nn.Linear(in_dim, out_dim).requires_grad_(False)
        self.lora = nn.ParameterDict({"A": torch.randn(in_dim, rank) / in_dim**0.5, "B": torch.zeros(rank, out_dim)})
        self.scale, self.merged = alpha / rank, False

    def merge(self):
        if not self.merged:
            self.delta = self.scale * (self.lora["A"].data @ self.lora["B"].data).reshape(self.linear.weight.shape)
            self.linear.weight.data += self.delta
        self.merged = True

    def unmerge(self):
        if self.merged:
            self.linear.weight.data -= self.delta
        self.merged = False

    def forward(self, x):
        y = self.linear(x)
        return y if self.merged else y + self.scale * (x @ self.lora["A"] @ self.lora["B"])


class HalfUndone(nn.Module):
    """unmerge() forgets the scale."""

    def __init__(self, nin: int, nout: int, rank: int, alpha: float, bias: bool = True):
        super().__init__()
        self.base = nn.Linear(nin, nout, bias=bias).requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(rank, nin) / nin**0.5)
        self.lora_B = nn.Parameter(torch.zeros(nout, rank))
        self.scale, self.merged = alpha / rank, False

    def merge(self):
        if not self.merged:
            self.product = self.lora_B.data @ self.lora_A.data
            self.base.weight.data += self.scale * self.product
        self.merged = True

    def unmerge(self):
        if self.merged:
            self.base.weight.data -= self.product
        self.merged = False

    def forward(self, x):
        y = self.base(x)
        return y if self.merged else y + (x @ self.lora_A.T @ self.lora_B.T) * self.scale


class AlwaysDropping(nn.Module):
    """The layer calls F.dropout without the mode, so eval() does not stop it."""

    def __init__(self, in_features, out_features, r, lora_alpha, lora_dropout=0.0):
        super().__init__()
        self.fc = nn.Linear(in_features, out_features).requires_grad_(False)
        self.fc_a = nn.Linear(in_features, r, bias=False)
        self.fc_b = nn.Linear(r, out_features, bias=False)
        self.fc_b.weight.data.zero_()
        self.p, self.scale = lora_dropout, lora_alpha / r

    def forward(self, x):
        return self.fc(x) + self.fc_b(self.fc_a(F.dropout(x, self.p))) * self.scale


class SquareProjection(nn.Module):
    """The layer has one size. It adds the term of LoRA to x, and the base sees it."""

    def __init__(self, dim: int, rank: int, alpha: float):
        super().__init__()
        self.proj = nn.Linear(dim, dim).requires_grad_(False)
        self.lora_down = nn.Linear(dim, rank, bias=False)
        self.lora_up = nn.Linear(rank, dim, bias=False)
        nn.init.zeros_(self.lora_up.weight)
        self.scale = alpha / rank

    def forward(self, x):
        x = x + self.scale * self.lora_up(self.lora_down(x))
        return self.proj(x)


class DetachedDown(nn.Module):
    """The layer reads the data of A, so A gets no gradient."""

    def __init__(self, in_dim: int, out_dim: int, lora_r: int, lora_alpha: float, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim) / in_dim**0.5, requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(out_dim), requires_grad=False) if bias else None
        self.lora_A = nn.Parameter(torch.randn(lora_r, in_dim) / in_dim**0.5)
        self.lora_B = nn.Parameter(torch.zeros(out_dim, lora_r))
        self.scaling = lora_alpha / lora_r

    def forward(self, x):
        update = self.lora_B @ self.lora_A.data
        return F.linear(x, self.weight + self.scaling * update, self.bias)


class SequenceOnly(nn.Module):
    """The layer takes inputs of three dimensions alone."""

    def __init__(self, embed_dim: int, out_dim: int, rank: int, alpha: float):
        super().__init__()
        self.proj = nn.Linear(embed_dim, out_dim).requires_grad_(False)
        self.a = nn.Parameter(torch.randn(embed_dim, rank) / embed_dim**0.5)
        self.b = nn.Parameter(torch.zeros(out_dim, rank))
        self.scale = alpha / rank

    def forward(self, tokens):
        low = torch.einsum("btd,dr->btr", tokens, self.a)
        return self.proj(tokens) + self.scale * torch.einsum("btr,or->bto", low, self.b)


class LooseTensors(nn.Module):
    """The factors are tensors, so the module does not know them."""

    def __init__(self, features_in, features_out, rank, alpha):
        super().__init__()
        self.linear = nn.Linear(features_in, features_out).requires_grad_(False)
        self.lora_A = torch.empty(features_in, rank).normal_(std=features_in**-0.5).requires_grad_()
        self.lora_B = torch.zeros(rank, features_out, requires_grad=True)
        self.scale = alpha / rank

    def forward(self, x):
        return self.linear(x) + self.scale * (x @ self.lora_A @ self.lora_B)


class TrainableOffset(nn.Module):
    """A function beside the class freezes the base. It forgets the bias."""

    def __init__(self, num_inputs: int, num_outputs: int, rank: int, alpha: float):
        super().__init__()
        self.base = nn.Linear(num_inputs, num_outputs)
        self.lora = nn.Sequential(nn.Linear(num_inputs, rank, bias=False), nn.Linear(rank, num_outputs, bias=False))
        nn.init.zeros_(self.lora[1].weight)
        self.scale = alpha / rank

    def forward(self, x):
        return self.base(x) + self.scale * self.lora(x)


def freeze_weights(model):
    """The function freezes the weights that are not of LoRA."""
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and "lora" not in name:
            parameter.requires_grad = False


def build_lora_linear(fan_in, fan_out, *, r, alpha, dropout=0.0):
    """The function builds a module from parts. It gives the lower part a bias."""

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = nn.Linear(fan_in, fan_out).requires_grad_(False)
            self.a = nn.Linear(fan_in, r)
            self.b = nn.Linear(r, fan_out, bias=False)
            self.drop = nn.Dropout(dropout)
            nn.init.zeros_(self.b.weight)

        def forward(self, x):
            return self.base(x) + self.b(self.a(self.drop(x))) * (alpha / r)

    return Layer()


# ---- faulty layers, built from an nn.Linear


class LinearWithLoRA(nn.Module):
    """The wrapper divides alpha by the rank and rounds down."""

    def __init__(self, w: nn.Linear, r: int, alpha: int):
        super().__init__()
        self.w = w.requires_grad_(False)
        self.w_a = nn.Linear(w.in_features, r, bias=False).to(w.weight)
        self.w_b = nn.Linear(r, w.out_features, bias=False).to(w.weight)
        nn.init.kaiming_uniform_(self.w_a.weight, a=math.sqrt(5))
        nn.init.zeros_(self.w_b.weight)
        self.r, self.alpha = r, alpha

    def forward(self, x):
        return self.w(x) + (self.alpha // self.r) * self.w_b(self.w_a(x))


class WeightFreezer(nn.Module):
    """The wrapper freezes the weight and forgets the bias."""

    def __init__(self, module, rank, alpha):
        super().__init__()
        self.module = module
        self.module.weight.requires_grad = False
        out_features, in_features = module.weight.shape
        self.lora_left = nn.Parameter(module.weight.new_empty(in_features, rank).normal_(std=in_features**-0.5))
        self.lora_right = nn.Parameter(module.weight.new_zeros(rank, out_features))
        self.lora_alpha, self.lora_rank = alpha, rank

    def forward(self, *args):
        (x,) = args
        return self.module(x) + (self.lora_alpha / self.lora_rank) * (x @ self.lora_left @ self.lora_right)


class UnscaledFusion(nn.Module):
    """fuse() forgets the scale."""

    def __init__(self, target: nn.Linear, lora_rank: int, lora_alpha: float):
        super().__init__()
        self.target = target.requires_grad_(False)
        self.lora_A = nn.Parameter(target.weight.new_empty(lora_rank, target.in_features).uniform_(-0.1, 0.1))
        self.lora_B = nn.Parameter(target.weight.new_zeros(target.out_features, lora_rank))
        self.lora_scale, self.fused = lora_alpha / lora_rank, False

    @torch.no_grad()
    def fuse(self):
        if not self.fused:
            self.before, self.fused = self.target.weight.clone(), True
            self.target.weight += self.lora_B @ self.lora_A

    @torch.no_grad()
    def unfuse(self):
        if self.fused:
            self.target.weight.copy_(self.before)
            self.fused = False

    def forward(self, x):
        y = self.target(x)
        return y if self.fused else y + self.lora_scale * F.linear(F.linear(x, self.lora_A), self.lora_B)


class DoubledWhenMerged(nn.Module):
    """The forward adds the term of LoRA to a merged weight, too."""

    def __init__(self, wrapped: nn.Linear, name: str, rank: int, alpha: float):
        super().__init__()
        self.wrapped, self.name = wrapped.requires_grad_(False), name
        self.A = nn.Parameter(torch.randn(wrapped.in_features, rank).to(wrapped.weight) / wrapped.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(rank, wrapped.out_features).to(wrapped.weight))
        self.scale, self.saved = alpha / rank, None

    @torch.no_grad()
    def merge_adapter(self):
        if self.saved is None:
            self.saved = self.wrapped.weight.clone()
            self.wrapped.weight += self.scale * (self.A @ self.B).T

    @torch.no_grad()
    def unmerge_adapter(self):
        if self.saved is not None:
            self.wrapped.weight.copy_(self.saved)
            self.saved = None

    def forward(self, x):
        return self.wrapped(x) + self.scale * (x @ self.A @ self.B)


class HalfInFloat(nn.Module):
    """The layer computes the term of LoRA in float32 for half formats, and never goes back."""

    def __init__(self, linear_layer: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.linear_layer = linear_layer.requires_grad_(False)
        self.down = nn.Linear(linear_layer.in_features, rank, bias=False, dtype=linear_layer.weight.dtype)
        self.up = nn.Linear(rank, linear_layer.out_features, bias=False, dtype=linear_layer.weight.dtype)
        nn.init.zeros_(self.up.weight)
        self.scale = alpha / rank

    def forward(self, x):
        wide = torch.promote_types(x.dtype, torch.float32)
        low = F.linear(x.to(wide), self.down.weight.to(wide))
        return self.linear_layer(x) + self.scale * F.linear(low, self.up.weight.to(wide))


class LoRANetworkModule(nn.Module):
    """The module computes a scale and uses the multiplier alone. apply_to() lets go of the layer."""

    def __init__(self, lora_name: str, org_module: nn.Linear, multiplier: float, lora_dim: int, alpha: float):
        super().__init__()
        self.lora_name, self.multiplier = lora_name, multiplier
        self.lora_down = nn.Linear(org_module.in_features, lora_dim, bias=False).to(org_module.weight)
        self.lora_up = nn.Linear(lora_dim, org_module.out_features, bias=False).to(org_module.weight)
        nn.init.zeros_(self.lora_up.weight)
        self.scale = alpha / lora_dim
        self.org_module = org_module

    def apply_to(self):
        self.org_forward = self.org_module.forward
        self.org_module.forward = self.forward
        del self.org_module

    def forward(self, x):
        return self.org_forward(x) + self.lora_up(self.lora_down(x)) * self.multiplier


def patch_forward(layer, r=4, alpha=8):
    """The function replaces the forward of a layer. The new one views x as rows, which needs a contiguous x."""
    layer.requires_grad_(False)
    layer.lora_a = nn.Parameter(layer.weight.new_empty(layer.in_features, r).normal_(std=layer.in_features**-0.5))
    layer.lora_b = nn.Parameter(layer.weight.new_zeros(r, layer.out_features))

    def forward(self, x):
        rows = x.view(-1, self.in_features)
        rows = F.linear(rows, self.weight, self.bias) + rows @ self.lora_a @ self.lora_b * (alpha / r)
        return rows.view(*x.shape[:-1], self.out_features)

    layer.forward = MethodType(forward, layer)
    return layer


# ---- faulty layers, built from tensors or a configuration


class TensorLinear(nn.Module):
    """The layer keeps the bias that it is given, and never adds it."""

    def __init__(self, weight, bias=None, r=8, alpha=16):
        super().__init__()
        self.weight = nn.Parameter(weight.clone(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)
        out_features, in_features = weight.shape
        self.lora_A = nn.Parameter(weight.new_empty(in_features, r).normal_(std=in_features**-0.5))
        self.lora_B = nn.Parameter(weight.new_zeros(r, out_features))
        self.scale = alpha / r

    def forward(self, x):
        return x @ (self.weight.T + self.scale * self.lora_A @ self.lora_B)


class CopiedWeight(nn.Module):
    """The layer makes a parameter of the weight, and the parameter trains."""

    def __init__(self, base_weight: torch.Tensor, base_bias: torch.Tensor, rank: int, alpha: float):
        super().__init__()
        self.base_weight = nn.Parameter(base_weight.detach().clone())
        self.register_buffer("base_bias", base_bias.detach().clone())
        self.lora_in = nn.Parameter(torch.randn(rank, base_weight.shape[1]).to(base_weight) * base_weight.shape[1] ** -0.5)
        self.lora_out = nn.Parameter(torch.zeros(base_weight.shape[0], rank).to(base_weight))
        self.scaling = alpha / rank

    def forward(self, x):
        return F.linear(x, self.base_weight, self.base_bias) + self.scaling * F.linear(F.linear(x, self.lora_in), self.lora_out)


class ConfiguredAttentionOut(nn.Module):
    """The layer adds the bias twice."""

    def __init__(self, cfg):
        super().__init__()
        self.out = nn.Linear(cfg.n_embd, cfg.n_inner).requires_grad_(False)
        self.lora_A = nn.Parameter(torch.empty(cfg.n_embd, cfg.lora_r))
        self.lora_B = nn.Parameter(torch.zeros(cfg.lora_r, cfg.n_inner))
        nn.init.normal_(self.lora_A, std=0.02)
        self.scale = cfg.lora_alpha / cfg.lora_r

    def forward(self, x):
        return self.out(x) + self.scale * (x @ self.lora_A @ self.lora_B) + self.out.bias


@dataclass
class LayerConfig:
    """Sizes and settings of a layer."""

    input_dim: int
    output_dim: int
    r: int
    lora_alpha: float
    lora_dropout: float = 0.0


class DroppedBase(nn.Module):
    """The layer drops entries of x for the base, too."""

    def __init__(self, config: LayerConfig):
        super().__init__()
        self.base = nn.Linear(config.input_dim, config.output_dim).requires_grad_(False)
        self.lora_down = nn.Linear(config.input_dim, config.r, bias=False)
        self.lora_up = nn.Linear(config.r, config.output_dim, bias=False)
        nn.init.zeros_(self.lora_up.weight)
        self.dropout = nn.Dropout(config.lora_dropout)
        self.scaling = config.lora_alpha / config.r

    def forward(self, x):
        x = self.dropout(x)
        return self.base(x) + self.lora_up(self.lora_down(x)) * self.scaling


class DictLinear(nn.Module):
    """The layer masks by hand. It does not divide by the rate that it keeps."""

    def __init__(self, params: dict):
        super().__init__()
        n, m, r = params["in_features"], params["out_features"], params["rank"]
        self.lin = nn.Linear(n, m).requires_grad_(False)
        self.u = nn.Parameter(torch.randn(r, n) / math.sqrt(n))
        self.v = nn.Parameter(torch.zeros(m, r))
        self.scale, self.p = params["alpha"] / r, params.get("dropout", 0.0)

    def forward(self, x):
        y = self.lin(x)
        if self.training and self.p > 0:
            x = x * (torch.rand_like(x) >= self.p)
        return y + self.scale * (x @ self.u.T @ self.v.T)


# ---- faulty functions that patch a model, faulty parametrizations, faulty parts


def replace_linears(model: nn.Module, targets: tuple[str, ...], r: int, lora_alpha: float) -> None:
    """The function freezes the model after it has replaced the layers, so the factors are frozen, too."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if name in targets and isinstance(child, nn.Linear):
                setattr(parent, name, _Injected(child, r, lora_alpha))
    for parameter in model.parameters():
        parameter.requires_grad = False


class _WeightOnly(nn.Module):
    """The module keeps a weight and two factors."""

    def __init__(self, weight, rank, alpha):
        super().__init__()
        self.weight = nn.Parameter(weight.data, requires_grad=False)
        self.down = nn.Parameter(weight.new_empty(weight.shape[1], rank).normal_(std=weight.shape[1] ** -0.5).detach())
        self.up = nn.Parameter(weight.new_zeros(rank, weight.shape[0]))
        self.scale = alpha / rank

    def forward(self, x):
        return F.linear(x, self.weight) + self.scale * (x @ self.down @ self.up)


def convert_values(model, rank=8, alpha=16):
    """The function replaces each layer of the name v_proj. It loses the bias."""
    for name, child in list(model.named_children()):
        if name == "v_proj":
            setattr(model, name, _WeightOnly(child.weight, rank, alpha))
        else:
            convert_values(child, rank, alpha)
    return model


class ViewedUpdate(nn.Module):
    """The parametrization views A B in the shape of the weight. That is right where the first size is that of the output."""

    def __init__(self, in_features: int, out_features: int, rank: int, alpha: float):
        super().__init__()
        self.A = nn.Parameter(torch.randn(in_features, rank) / in_features**0.5)
        self.B = nn.Parameter(torch.zeros(rank, out_features))
        self.alpha, self.rank = alpha, rank

    def forward(self, weight):
        delta = (self.A @ self.B).view(weight.shape)
        return weight + delta * (self.alpha / self.rank)


class LoRALayer(nn.Module):
    """The part multiplies by alpha and does not divide by the rank."""

    def __init__(self, in_dim: int, out_dim: int, rank: int, alpha: float):
        super().__init__()
        spread = 1 / torch.sqrt(torch.tensor(in_dim).float())
        self.A = nn.Parameter(torch.randn(in_dim, rank) * spread)
        self.B = nn.Parameter(torch.zeros(rank, out_dim))
        self.alpha = alpha

    def forward(self, x):
        return self.alpha * (x @ self.A @ self.B)


class Layer(NamedTuple):
    """What is true of a class or a function of this file. Paths start at the module that computes y.

    A part does not have W and b: here they are those of an nn.Linear "base" beside the part "lora", and `trains` is empty.
    A function that patches a model gets one with a single child, an nn.Linear of the name that the paths start with.
    A layer that merges in place saves the merged W, too. It may fail STATE-05, STATE-06 and STATE-09. Here this is no fault.
    The adapter of TunedLayer has the name "default" here, and GatedLinear is enabled.
    Paths are those after construction. The apply_to() of LoRANetworkModule lets go of W and b.
    """

    name: str  # in this file
    built: str  # from: sizes, linear, weight, configuration, model; or what it is: part, parametrization
    W: str
    A: str
    B: str
    b: str | None  # None: it never has one
    transposed: str = ""  # the letters of those kept as (in, out), (rank, in), (out, rank), in the order WAB
    scale: str = "alpha / rank"  # with further factors, like a multiplier, at 1
    merges: str = ""  # the call
    unmerges: str = ""  # the call
    freezer: str = ""  # the function that freezes W and b, or the method, with a dot; "": the class does, or nobody
    trains: tuple[str, ...] = ()  # which of W and b train after construction
    fault: str = ""  # "": it is right. Layers that nobody freezes are right
    wrong: tuple[str, ...] = ()  # the groups of requirements that the fault fails for sure; others may follow


CORPUS = (
    # right
    Layer("PlainLoRA", "sizes", "linear.weight", "lora_A", "lora_B", "linear.bias"),
    Layer("AdaptedDense", "sizes", "kernel", "lora_a", "lora_b", "offset", "AB"),
    Layer("MergingLinear", "sizes", "weight", "lora_A", "lora_B", "bias", "AB", merges="train(False)", unmerges="train()",
          freezer="mark_only_lora_as_trainable", trains=("b",)),
    Layer("ExpandingLayer", "sizes", "proj.weight", "factors.first", "factors.second", "proj.bias", scale="scaling"),
    Layer("RootRankLinear", "sizes", "frozen.weight", "left", "right", "frozen.bias", "B", scale="alpha / √rank"),
    Layer("FixedAdapter", "sizes", "base.weight", "adapter_in.weight", "adapter_out.weight", "base.bias", "AB"),
    Layer("ScriptableLinear", "sizes", "weight", "weight_a", "weight_b", "bias", "AB"),
    Layer("GPTProjection", "sizes", "weight", "c_down", "c_up", "bias", "W", merges="bake()"),
    Layer("ListedFactors", "sizes", "dense.weight", "pair.0", "pair.1", "dense.bias", merges="merge_weights()",
          unmerges="unmerge_weights()"),
    Layer("EvalMergingLinear", "sizes", "weight", "low", "high", "bias", "A", merges="eval()", unmerges="train()"),
    Layer("FixedScale", "sizes", "wrapped.weight", "lora_left", "lora_right", "wrapped.bias", scale="always 2", merges="fold()",
          unmerges="unfold()"),
    Layer("GatedLinear", "sizes", "main.weight", "P", "Q", "main.bias"),
    Layer("BareLinear", "sizes", "fc.weight", "lora.A.weight", "lora.B.weight", "fc.bias", "AB", trains=("W", "b")),
    Layer("lora_linear", "sizes", "base.weight", "down.weight", "up.weight", "base.bias", "AB"),
    Layer("FusableLinear", "linear", "base_layer.weight", "down.weight", "up.weight", "base_layer.bias", "AB",
          merges="fuse_lora()", unmerges="unfuse_lora()"),
    Layer("Wrapped", "linear", "original.weight", "u", "v", "original.bias", "A", scale="always 1"),
    Layer("SequentialBranch", "linear", "layer.weight", "branch.1.weight", "branch.2.weight", "layer.bias", "AB",
          freezer=".freeze_pretrained", trains=("W", "b")),
    Layer("TunedLayer", "linear", "base_layer.weight", "lora_A.default.weight", "lora_B.default.weight", "base_layer.bias",
          "AB", merges="merge()", unmerges="unmerge()"),
    Layer("LoRAModule", "linear", "org_module.weight", "lora_down.weight", "lora_up.weight", "org_module.bias", "AB",
          trains=("W", "b")),
    Layer("HookedLinear", "linear", "linear.weight", "A", "B", "linear.bias"),
    Layer("add_lora_", "linear", "weight", "lora_down", "lora_up", "bias", "AB"),
    Layer("OverWeight", "weight", "weight", "lora_A", "lora_B", "bias", "AB"),
    Layer("FrozenTensor", "weight", "W0", "A", "B", None),
    Layer("OptionsLinear", "configuration", "base.weight", "A", "B", "base.bias", "AB"),
    Layer("ConfiguredProjection", "configuration", "proj.weight", "lora_down.weight", "lora_up.weight", "proj.bias", "AB"),
    Layer("FromDict", "configuration", "pretrained.weight", "delta_in", "delta_out", "pretrained.bias",
          freezer="freeze_pretrained_layers", trains=("W", "b")),
    Layer("inject_lora", "model", "q_proj.base.weight", "q_proj.lora_A", "q_proj.lora_B", "q_proj.base.bias", "AB"),
    Layer("parametrize_queries", "model", "query.parametrizations.weight.original", "query.parametrizations.weight.0.a",
          "query.parametrizations.weight.0.b", "query.bias", "AB"),
    Layer("LowRankUpdate", "parametrization", "parametrizations.weight.original", "parametrizations.weight.0.lora_A",
          "parametrizations.weight.0.lora_B", "bias", "AB", freezer="train_only_parametrizations", trains=("W", "b")),
    Layer("LowRankBranch", "part", "base.weight", "lora.A", "lora.B", "base.bias"),
    Layer("BottleneckAdapter", "part", "base.weight", "lora.reduce.weight", "lora.expand.weight", "base.bias", "AB",
          scale="always 1"),
    # faulty
    Layer("DenseWithLoRA", "sizes", "dense.weight", "lora_a", "lora_b", "dense.bias", scale="always 1",
          fault="The layer never uses alpha.", wrong=("FWD", "GRAD", "SCALE")),
    Layer("ChannelLoRA", "sizes", "body.weight", "down.weight", "up.weight", "body.bias", "AB", scale="alpha",
          fault="The layer does not divide alpha by the rank.", wrong=("FWD", "GRAD", "SCALE")),
    Layer("RandomStart", "sizes", "pretrained.weight", "lora_A.weight", "lora_B.weight", "pretrained.bias", "AB",
          fault="Both factors start at random.", wrong=("INIT",)),
    Layer("MisspeltLinear", "sizes", "weight", "A", "B", "bias", "B", trains=("W", "b"),
          fault="The base trains, because the name of the flag is misspelt.", wrong=("PARAM",)),
    Layer("SilentStart", "sizes", "weight", "lora_A", "lora_B", "bias", "A",
          fault="Both factors start at zero.", wrong=("INIT",)),
    Layer("RefoldingLinear", "sizes", "weight", "lora_A", "lora_B", "bias", "AB", merges="eval()", unmerges="train()",
          fault="Merging a merged layer adds the term of LoRA again.", wrong=("MERGE",)),
    Layer("ReshapedMerge", "sizes", "linear.weight", "lora.A", "lora.B", "linear.bias", merges="merge()", unmerges="unmerge()",
          fault="Merging reshapes A B and does not transpose it.", wrong=("MERGE",)),
    Layer("HalfUndone", "sizes", "base.weight", "lora_A", "lora_B", "base.bias", "AB", merges="merge()", unmerges="unmerge()",
          fault="Unmerging subtracts A B without the scale.", wrong=("MERGE",)),
    Layer("AlwaysDropping", "sizes", "fc.weight", "fc_a.weight", "fc_b.weight", "fc.bias", "AB",
          fault="The layer drops in inference mode, too.", wrong=("DROP",)),
    Layer("SquareProjection", "sizes", "proj.weight", "lora_down.weight", "lora_up.weight", "proj.bias", "AB",
          fault="The layer adds the term of LoRA to x, not to the output of the base.", wrong=("FWD", "GRAD")),
    Layer("DetachedDown", "sizes", "weight", "lora_A", "lora_B", "bias", "AB",
          fault="A gets no gradient.", wrong=("GRAD",)),
    Layer("SequenceOnly", "sizes", "proj.weight", "a", "b", "proj.bias", "B",
          fault="The layer takes inputs of three dimensions alone.", wrong=("FWD",)),
    Layer("LooseTensors", "sizes", "linear.weight", "lora_A", "lora_B", "linear.bias",
          fault="A and B are no parameters of the module, and its state_dict does not hold them.", wrong=("PARAM", "STATE")),
    Layer("TrainableOffset", "sizes", "base.weight", "lora.0.weight", "lora.1.weight", "base.bias", "AB",
          freezer="freeze_weights", trains=("W", "b"), fault="The function that freezes the base leaves the bias.",
          wrong=("PARAM",)),
    Layer("build_lora_linear", "sizes", "base.weight", "a.weight", "b.weight", "base.bias", "AB",
          fault="A has a bias, which trains and changes the output.", wrong=("FWD", "PARAM")),
    Layer("LinearWithLoRA", "linear", "w.weight", "w_a.weight", "w_b.weight", "w.bias", "AB", scale="alpha // rank",
          fault="The layer rounds alpha / rank down to an integer.", wrong=("SCALE",)),
    Layer("WeightFreezer", "linear", "module.weight", "lora_left", "lora_right", "module.bias", trains=("b",),
          fault="The bias trains.", wrong=("PARAM",)),
    Layer("UnscaledFusion", "linear", "target.weight", "lora_A", "lora_B", "target.bias", "AB", merges="fuse()",
          unmerges="unfuse()", fault="Merging adds A B without the scale.", wrong=("MERGE",)),
    Layer("DoubledWhenMerged", "linear", "wrapped.weight", "A", "B", "wrapped.bias", merges="merge_adapter()",
          unmerges="unmerge_adapter()", fault="A merged layer adds the term of LoRA once more.", wrong=("MERGE",)),
    Layer("HalfInFloat", "linear", "linear_layer.weight", "down.weight", "up.weight", "linear_layer.bias", "AB",
          fault="The output of a layer in a half format is float32.", wrong=("DTYPE",)),
    Layer("LoRANetworkModule", "linear", "org_module.weight", "lora_down.weight", "lora_up.weight", "org_module.bias", "AB",
          scale="always 1", trains=("W", "b"), fault="The layer computes its scale and never uses it.",
          wrong=("FWD", "GRAD", "SCALE")),
    Layer("patch_forward", "linear", "weight", "lora_a", "lora_b", "bias",
          fault="The layer refuses an x that is not contiguous.", wrong=("FWD",)),
    Layer("TensorLinear", "weight", "weight", "lora_A", "lora_B", "bias",
          fault="The layer never adds the bias.", wrong=("FWD", "INIT")),
    Layer("CopiedWeight", "weight", "base_weight", "lora_in", "lora_out", "base_bias", "AB", trains=("W",),
          fault="The weight of the base trains.", wrong=("PARAM",)),
    Layer("ConfiguredAttentionOut", "configuration", "out.weight", "lora_A", "lora_B", "out.bias",
          fault="The layer adds the bias twice.", wrong=("FWD", "INIT")),
    Layer("DroppedBase", "configuration", "base.weight", "lora_down.weight", "lora_up.weight", "base.bias", "AB",
          fault="The layer drops entries of the input of the base.", wrong=("DROP",)),
    Layer("DictLinear", "configuration", "lin.weight", "u", "v", "lin.bias", "AB",
          fault="Dropout does not divide what it keeps by the rate of what it keeps.", wrong=("DROP",)),
    Layer("replace_linears", "model", "q_proj.base.weight", "q_proj.lora_A", "q_proj.lora_B", "q_proj.base.bias", "AB",
          fault="A and B are frozen, like the base.", wrong=("GRAD", "PARAM")),
    Layer("convert_values", "model", "v_proj.weight", "v_proj.down", "v_proj.up", None,
          fault="The layer loses the bias of the layer that it replaces.", wrong=("FWD", "INIT")),
    Layer("ViewedUpdate", "parametrization", "parametrizations.weight.original", "parametrizations.weight.0.B",
          "parametrizations.weight.0.A", "bias", "AB", trains=("W", "b")),
    Layer("LoRALayer", "part", "base.weight", "lora.A", "lora.B", "base.bias", scale="alpha",
          fault="The part does not divide alpha by the rank.", wrong=("FWD", "GRAD", "SCALE")),
)
