"""Linear layers with LoRA that a constructor alone does not make ready, or that are given, store or scale things in rarer ways.

Each is in the style of another author. READY, at the end of the file, holds what is true of each of them, as CORPUS of
look_corpus.py does. REFUSED holds those that are no single LoRA layer, and what must be said about them.
"""

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from look_corpus import Layer
from torch import nn


def _factors(n_in: int, n_out: int, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A (in, rank), which is random, and B (rank, out), which is zero."""
    return nn.Parameter(torch.randn(n_in, rank) / math.sqrt(n_in)), nn.Parameter(torch.zeros(rank, n_out))


# ---- scales


class InverseRank(nn.Module):
    """The layer knows no alpha and divides by the rank."""

    def __init__(self, in_features, out_features, rank):
        super().__init__()
        self.base = nn.Linear(in_features, out_features).requires_grad_(False)
        self.A, self.B = _factors(in_features, out_features, rank)
        self.rank = rank

    def forward(self, x):
        return self.base(x) + (x @ self.A @ self.B) / self.rank


class SixteenOverRank(nn.Module):
    """The number 16 stands in the code."""

    def __init__(self, layer: nn.Linear, r: int = 8):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.A, self.B = _factors(layer.in_features, layer.out_features, r)
        self.gain = 16 / r

    def forward(self, x):
        return self.layer(x) + self.gain * (x @ self.A @ self.B)


class Strength(nn.Module):
    """The layer has a factor of its own in the place of alpha."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, r: int = 4, scale: float = 1.0):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias).requires_grad_(False)
        self.lora_down = nn.Linear(in_features, r, bias=False)
        self.lora_up = nn.Linear(r, out_features, bias=False)
        self.scale = scale
        nn.init.normal_(self.lora_down.weight, std=1 / r)
        nn.init.zeros_(self.lora_up.weight)

    def forward(self, x):
        return self.linear(x) + self.lora_up(self.lora_down(x)) * self.scale


class Gain(nn.Module):
    """The number that is divided by the rank is called a scale."""

    def __init__(self, in_features: int, out_features: int, rank: int, scale: float = 1.0, bias: bool = True):
        super().__init__()
        self.fc = nn.Linear(in_features, out_features, bias).requires_grad_(False)
        self.A, self.B = _factors(in_features, out_features, rank)
        self.gain = scale / rank

    def forward(self, x):
        return self.fc(x) + self.gain * (x @ self.A @ self.B)


class Numerator(nn.Module):
    """No name says what is divided by the rank, only its default."""

    def __init__(self, layer: nn.Linear, r: int = 8, numerator: float = 32.0):
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.A, self.B = _factors(layer.in_features, layer.out_features, r)
        self.r, self.numerator = r, numerator

    def forward(self, x):
        return self.layer(x) + (x @ self.A @ self.B) * self.numerator / self.r


class RootOfTheRank(nn.Module):
    """alpha is divided by the root of the rank, and nobody can choose."""

    def __init__(self, in_features: int, out_features: int, rank: int, alpha: float):
        super().__init__()
        self.base = nn.Linear(in_features, out_features).requires_grad_(False)
        self.A, self.B = _factors(in_features, out_features, rank)
        self.phi = alpha / math.sqrt(rank)

    def forward(self, x):
        return self.base(x) + self.phi * (x @ self.A @ self.B)


class NamedRule(nn.Module):
    """A word names the rule of the scale. It must be given, and any other is refused."""

    def __init__(self, in_features, out_features, rank, rule, bias=True):
        super().__init__()
        if rule not in ("plain", "over_rank"):
            raise ValueError(f"unknown rule {rule}")
        self.proj = nn.Linear(in_features, out_features, bias).requires_grad_(False)
        self.A, self.B = _factors(in_features, out_features, rank)
        self.rule, self.rank = rule, rank

    def forward(self, x):
        delta = x @ self.A @ self.B
        return self.proj(x) + (delta if self.rule == "plain" else delta / self.rank)


class AnnotatedRule(nn.Module):
    """The word stands in the annotation alone. It is a key of a dict."""

    RULES = {"plain": lambda rank: 1.0, "over_rank": lambda rank: 1 / rank}

    def __init__(self, in_features: int, out_features: int, rank: int, rule: Literal["plain", "over_rank"]):
        super().__init__()
        self.proj = nn.Linear(in_features, out_features).requires_grad_(False)
        self.A, self.B = _factors(in_features, out_features, rank)
        self.gain = self.RULES[rule](rank)

    def forward(self, x):
        return self.proj(x) + self.gain * (x @ self.A @ self.B)


# ---- switches


class MergesIfTold(nn.Module):
    """The layer merges in inference mode if the caller says so."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, fuse_on_eval: bool = False):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.A, self.B = _factors(base.in_features, base.out_features, rank)
        self.scale, self.fuse_on_eval, self.fused = alpha / rank, fuse_on_eval, False

    def train(self, mode=True):
        super().train(mode)
        if self.fuse_on_eval and self.fused == mode:
            sign = -1 if mode else 1
            self.base.weight.data += sign * self.scale * (self.A @ self.B).T
            self.fused = not mode
        return self

    def forward(self, x):
        return self.base(x) if self.fused else self.base(x) + self.scale * (x @ self.A @ self.B)


class OffAtFirst(nn.Module):
    """The layer is the base until enable_adapter() is called."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.A, self.B = _factors(base.in_features, base.out_features, rank)
        self.scale, self._live = alpha / rank, False

    def enable_adapter(self):
        self._live = True

    def disable_adapter(self):
        self._live = False

    def forward(self, x):
        y = self.base(x)
        return y + self.scale * (x @ self.A @ self.B) if self._live else y


class BehindNoGrad(nn.Module):
    """The base is marked as trainable. It is called without a graph, so it never trains."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.base = base.requires_grad_(True)
        self.A, self.B = _factors(base.in_features, base.out_features, rank)
        self.scale = alpha / rank

    def forward(self, x):
        with torch.no_grad():
            y = self.base(x)
        return y + self.scale * (x @ self.A @ self.B)


class FixedDropout(nn.Module):
    """The rate of dropout stands in the code. A function beside the class merges."""

    def __init__(self, linear: nn.Linear, r: int, lora_alpha: int):
        super().__init__()
        self.linear, self.within = linear.requires_grad_(False), False
        self.drop = nn.Dropout(0.1)
        self.A, self.B = _factors(linear.in_features, linear.out_features, r)
        self.scale = lora_alpha / r

    def forward(self, x):
        y = self.linear(x)
        return y if self.within else y + self.scale * (self.drop(x) @ self.A @ self.B)


@torch.no_grad()
def merge_into_base(model):
    """The function adds the term of LoRA to W in all layers of FixedDropout."""
    for layer in model.modules():
        if isinstance(layer, FixedDropout) and not layer.within:
            layer.linear.weight += layer.scale * (layer.A @ layer.B).T
            layer.within = True


@torch.no_grad()
def unmerge_from_base(model):
    """The function takes it out again."""
    for layer in model.modules():
        if isinstance(layer, FixedDropout) and layer.within:
            layer.linear.weight -= layer.scale * (layer.A @ layer.B).T
            layer.within = False


class Flagged(nn.Module):
    """A plain attribute switches the layer on."""

    def __init__(self, fc, rank, alpha):
        super().__init__()
        self.fc, self.use_lora = fc.requires_grad_(False), False
        self.A, self.B = _factors(fc.in_features, fc.out_features, rank)
        self.scale = alpha / rank

    def forward(self, x):
        return self.fc(x) + self.scale * (x @ self.A @ self.B) if self.use_lora else self.fc(x)


_chosen: list[str] = []


def select_task(task: str) -> None:
    """The function says which factors are used, in all layers at once."""
    _chosen[:] = [task]


class Swapped(nn.Module):
    """use_swapped() puts it in the place of a linear layer, and fuse_swapped() puts a linear layer there again."""

    def __init__(self, inner: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.inner = inner.requires_grad_(False)
        self.A, self.B = _factors(inner.in_features, inner.out_features, rank)
        self.scale = alpha / rank

    def forward(self, x):
        return self.inner(x) + self.scale * (x @ self.A @ self.B)


def use_swapped(model, rank: int, alpha: float):
    for name, layer in [*model.named_children()]:
        if isinstance(layer, nn.Linear):
            setattr(model, name, Swapped(layer, rank, alpha))
    return model


@torch.no_grad()
def fuse_swapped(model):
    for name, layer in [*model.named_children()]:
        if isinstance(layer, Swapped):
            layer.inner.weight += layer.scale * (layer.A @ layer.B).T
            setattr(model, name, layer.inner)
    return model


class PerTask(nn.Module):
    """The layer has factors for each task, and raises as long as none is chosen."""

    def __init__(self, layer, tasks: list, r: int = 4, alpha: float = 1.0):
        super().__init__()
        self.layer, self.tasks = layer.requires_grad_(False), tasks
        pairs = {task: _factors(layer.in_features, layer.out_features, r) for task in tasks}
        self.first = nn.ParameterDict({task: pair[0] for task, pair in pairs.items()})
        self.second = nn.ParameterDict({task: pair[1] for task, pair in pairs.items()})
        self.scale = alpha / r

    def forward(self, x):
        if not _chosen or _chosen[0] not in self.tasks:
            raise ValueError("no task is chosen")
        return self.layer(x) + self.scale * (x @ self.first[_chosen[0]] @ self.second[_chosen[0]])


class ManyAdapters(nn.Module):
    """The layer gets an adapter by a method, and uses it once it is selected."""

    def __init__(self, base_layer: nn.Linear):
        super().__init__()
        self.base_layer, self.current = base_layer.requires_grad_(False), None
        self.lora_A, self.lora_B, self.scales = nn.ParameterDict(), nn.ParameterDict(), {}

    def add_adapter(self, adapter_name: str, r: int, lora_alpha: float):
        pair = _factors(self.base_layer.in_features, self.base_layer.out_features, r)
        self.lora_A[adapter_name], self.lora_B[adapter_name] = pair
        self.scales[adapter_name] = lora_alpha / r

    def set_adapter(self, adapter_name: str):
        self.current = adapter_name

    def forward(self, x):
        y, n = self.base_layer(x), self.current
        return y if n is None else y + self.scales[n] * (x @ self.lora_A[n] @ self.lora_B[n])


class Settings:
    """What a layer needs to know. It is merged unless somebody says no."""

    n_in, n_out, rank, alpha = 32, 16, 4, 8.0
    start_merged = True


class MergedAtFirst(nn.Module):
    """The layer reads a class, and starts merged."""

    def __init__(self, cfg):
        super().__init__()
        self.dense = nn.Linear(cfg.n_in, cfg.n_out).requires_grad_(False)
        self.A, self.B = _factors(cfg.n_in, cfg.n_out, cfg.rank)
        self.scale, self.is_in = cfg.alpha / cfg.rank, cfg.start_merged

    def forward(self, x):
        y = self.dense(x)
        return y if self.is_in else y + self.scale * (x @ self.A @ self.B)


class Hooking:
    """This is no module. It takes the place of the forward of a layer when hook() is called."""

    def __init__(self, prefix: str, target: nn.Linear, rank: int, alpha: float):
        self.prefix, self.target, self.before = prefix, target, target.forward
        self.down = nn.Linear(target.in_features, rank, bias=False).to(target.weight)
        self.up = nn.Linear(rank, target.out_features, bias=False).to(target.weight)
        nn.init.zeros_(self.up.weight)
        self.scale = alpha / rank

    def hook(self):
        self.target.forward = self.forward

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.before(input) + self.up(self.down(input)) * self.scale


# ---- what a layer is given


class OverConv1D(nn.Module):
    """The layer is around a Conv1D of GPT-2, and computes its own part in float32."""

    def __init__(self, conv, r, alpha):
        super().__init__()
        n_in, n_out = conv.weight.shape
        self.conv = conv.requires_grad_(False)
        self.a, self.b = _factors(n_in, n_out, r)
        self.scale = alpha / r

    def forward(self, x):
        return self.conv(x) + ((x.float() @ self.a @ self.b) * self.scale).to(x.dtype)


class FloatBranch(nn.Module):
    """The layer keeps its factors in float32 over a base of any format."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(rank, linear.in_features, dtype=torch.float32) / linear.in_features**0.5)
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, dtype=torch.float32))
        self.scale = alpha / rank

    def forward(self, x):
        part = F.linear(F.linear(x.to(torch.float32), self.lora_A), self.lora_B)
        return self.linear(x) + (self.scale * part).to(x.dtype)


class ThreeDropouts(nn.Module):
    """The names of two rates have the words rank and module in them."""

    def __init__(self, org_module: nn.Linear, lora_dim=4, alpha=1, dropout=None, rank_dropout=None, module_dropout=None):
        super().__init__()
        self.org_module, self.dropout = org_module.requires_grad_(False), dropout
        self.rank_dropout, self.module_dropout = rank_dropout, module_dropout
        self.A, self.B = _factors(org_module.in_features, org_module.out_features, lora_dim)
        self.scale = alpha / lora_dim

    def forward(self, x):
        y = self.org_module(x)
        if self.module_dropout is not None and self.training and torch.rand(1) < self.module_dropout:
            return y
        low = F.dropout(x, self.dropout or 0.0, self.training) @ self.A
        return y + self.scale * (F.dropout(low, self.rank_dropout or 0.0, self.training) @ self.B)


class LinearOrConv1D(nn.Module):
    """The annotation allows a Conv1D, too."""

    def __init__(self, module: "nn.Linear | Conv1D", r: int, alpha: float):  # noqa: F821
        super().__init__()
        conv = type(module).__name__ == "Conv1D"
        self.weight = nn.Parameter(module.weight.T if conv else module.weight, requires_grad=False)
        self.bias = None if module.bias is None else nn.Parameter(module.bias, requires_grad=False)
        self.A, self.B = _factors(*self.weight.shape[::-1], r)
        self.scale = alpha / r

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) + self.scale * (x @ self.A @ self.B)


class NamedInConfig(nn.Linear):
    """The layer reads a dict, in which the adapter has a name. Everything else goes to nn.Linear."""

    def __init__(self, in_features: int, out_features: int, config: dict, **kwargs):
        super().__init__(in_features, out_features, **kwargs)
        self.requires_grad_(False)
        self.first, self.second, self.scaling = nn.ParameterDict(), nn.ParameterDict(), {}
        self.active = config.get("adapter_name")
        self.add(self.active, config.get("r"), config.get("lora_alpha"))

    def add(self, name, r, lora_alpha):
        self.first[name], self.second[name] = _factors(self.in_features, self.out_features, r)
        self.scaling[name] = lora_alpha / r

    def forward(self, x):
        part = x @ self.first[self.active] @ self.second[self.active]
        return super().forward(x) + part * self.scaling[self.active]


class BatchFirst(nn.Module):
    """Whatever x is, y has three dimensions."""

    def __init__(self, fc: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.fc = fc.requires_grad_(False)
        self.A, self.B = _factors(fc.in_features, fc.out_features, rank)
        self.scale = alpha / rank

    def forward(self, x):
        y = self.fc(x) + self.scale * (x @ self.A @ self.B)
        return y.reshape(x.shape[0], -1, self.fc.out_features)


class PassesOn(nn.Module):
    """The layer passes what it does not know on to its nn.Linear."""

    def __init__(self, in_features: int, out_features: int, r: int = 0, lora_alpha: int = 1, **kwargs):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, **kwargs).requires_grad_(False)
        self.A, self.B = _factors(in_features, out_features, r)
        self.scaling = lora_alpha / r

    def forward(self, x):
        return self.linear(x) + self.scaling * (x @ self.A @ self.B)


class TensorOrNone(nn.Module):
    """The layer takes the tensors of another one, and makes the bias train."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, lora_rank: int = 0, lora_alpha: int = 1):
        super().__init__()
        self.weight, self.bias = weight, bias
        if bias is not None:
            bias.requires_grad = True
        self.weight.requires_grad = False
        self.A, self.B = _factors(weight.shape[1], weight.shape[0], lora_rank)
        self.scaling = lora_alpha / lora_rank

    def forward(self, x):
        return F.linear(x, self.weight, self.bias) + self.scaling * (x @ self.A @ self.B)


class TwoMaps(nn.Module):
    """The part is given its two maps."""

    def __init__(self, first: nn.Linear, second: nn.Linear, dropout: float = 0.0):
        super().__init__()
        self.first, self.second, self.drop = first, second, nn.Dropout(dropout)

    def forward(self, x):
        return self.second(self.first(self.drop(x)))


class Branch(nn.Module):
    """The part of Joined."""

    def __init__(self, n_in, n_out, rank: int = 4, alpha: float = 32, **kwargs):
        super().__init__()
        self.down, self.up = nn.Linear(n_in, rank, bias=False), nn.Linear(rank, n_out, bias=False)
        nn.init.zeros_(self.up.weight)
        self.scaling = alpha / rank

    def forward(self, x):
        return self.up(self.down(x)) * self.scaling


class Joined(nn.Module):
    """The layer is given a linear layer and a ready LoRA module."""

    def __init__(self, original, branch):
        super().__init__()
        self.original, self.branch = original, branch

    def forward(self, x):
        return self.original(x) + self.branch(x)


class Sizes(NamedTuple):
    """A configuration."""

    d_in: int
    d_out: int
    r: int = 4
    lora_alpha: float = 8.0


class FromNamedTuple(nn.Module):
    """The layer takes a named tuple."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.dense = nn.Linear(sizes.d_in, sizes.d_out).requires_grad_(False)
        self.A, self.B = _factors(sizes.d_in, sizes.d_out, sizes.r)
        self.scale = sizes.lora_alpha / sizes.r

    def forward(self, x):
        return self.dense(x) + self.scale * (x @ self.A @ self.B)


class FromOptions(nn.Module):
    """The layer reads its numbers from keyword arguments that it does not name."""

    def __init__(self, in_features: int, out_features: int, **options):
        super().__init__()
        r = options.get("r", 8)
        self.base = nn.Linear(in_features, out_features).requires_grad_(False)
        self.A, self.B = _factors(in_features, out_features, r)
        self.scale = options.get("lora_alpha", 16) / r

    def forward(self, x):
        return self.base(x) + self.scale * (x @ self.A @ self.B)


class FromShape(nn.Module):
    """The layer takes its sizes as a tuple."""

    def __init__(self, shape: tuple[int, int], rank: int, alpha: float):
        super().__init__()
        self.base = nn.Linear(*shape).requires_grad_(False)
        self.A, self.B = _factors(*shape, rank)
        self.scale = alpha / rank

    def forward(self, x):
        return self.base(x) + self.scale * (x @ self.A @ self.B)


class ImageTokens(nn.Module):
    """The layer takes inputs of four dimensions alone."""

    def __init__(self, proj: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.proj = proj.requires_grad_(False)
        self.A, self.B = _factors(proj.in_features, proj.out_features, rank)
        self.scale = alpha / rank

    def forward(self, x):
        batch, height, width, channels = x.shape
        part = x.reshape(batch * height * width, channels) @ self.A @ self.B
        return self.proj(x) + self.scale * part.view(batch, height, width, -1)


# ---- factors that are made later


class AtFirstPass(nn.Module):
    """The layer makes its factors when it sees x."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.linear, self.rank, self.scale = linear.requires_grad_(False), rank, alpha / rank
        self.A = self.B = None

    def forward(self, x):
        if self.A is None:
            A, B = _factors(x.shape[-1], self.linear.out_features, self.rank)
            self.A, self.B = nn.Parameter(A.to(x.dtype)), nn.Parameter(B.to(x.dtype))
        return self.linear(x) + self.scale * (x @ self.A @ self.B)


class LazyDelta(nn.Module):
    """The parametrization makes its factors when it sees W."""

    def __init__(self, rank: int = 4, alpha: float = 4.0):
        super().__init__()
        self.rank, self.scale = rank, alpha / rank

    def forward(self, W):
        if not hasattr(self, "down"):
            A, B = _factors(W.shape[1], W.shape[0], self.rank)
            self.down, self.up = nn.Parameter(A.to(W.dtype)), nn.Parameter(B.to(W.dtype))
        return W + self.scale * (self.down @ self.up).T


class StartedLater(nn.Module):
    """A method makes the factors."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.base = nn.Linear(in_features, out_features).requires_grad_(False)

    def start(self, rank: int, alpha: float):
        self.A, self.B = _factors(self.base.in_features, self.base.out_features, rank)
        self.scale = alpha / rank

    def forward(self, x):
        return self.base(x) + self.scale * (x @ self.A @ self.B)


class Attached(nn.Module):
    """The layer gets its base by a method."""

    def __init__(self, rank: int, alpha: float):
        super().__init__()
        self.rank, self.scale = rank, alpha / rank

    def attach(self, linear: nn.Linear):
        self.linear = linear.requires_grad_(False)
        self.A, self.B = _factors(linear.in_features, linear.out_features, self.rank)
        return self

    def forward(self, x):
        return self.linear(x) + self.scale * (x @ self.A @ self.B)


class Prepared(nn.Module):
    """A method freezes the base and sets the second factor to zero."""

    def __init__(self, inner: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.inner = inner
        self.A = nn.Parameter(torch.empty(inner.in_features, rank))
        self.B = nn.Parameter(torch.empty(rank, inner.out_features))
        self.scale = alpha / rank

    def init_lora(self):
        self.inner.requires_grad_(False)
        nn.init.normal_(self.A, std=self.A.shape[0] ** -0.5)
        nn.init.zeros_(self.B)

    def forward(self, x):
        return self.inner(x) + self.scale * (x @ self.A @ self.B)


class SmallScale(nn.Module):
    """The scale is an argument, and must not be above 2."""

    def __init__(self, in_features: int, out_features: int, r: int, lora_scaling: float = 1.0):
        super().__init__()
        assert 0 < lora_scaling <= 2
        self.base = nn.Linear(in_features, out_features).requires_grad_(False)
        self.A, self.B = _factors(in_features, out_features, r)
        self.lora_scaling = lora_scaling

    def forward(self, x):
        return self.base(x) + self.lora_scaling * (x @ self.A @ self.B)


class Residual(nn.Module):
    """The factors start as the largest part of W, which is taken away from W."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.linear, self.scale = linear.requires_grad_(False), alpha / rank
        U, s, V = torch.linalg.svd(linear.weight.detach().T.float(), full_matrices=False)
        k = min(rank, len(s))
        A, B = (torch.zeros(shape) for shape in ((linear.in_features, rank), (rank, linear.out_features)))
        A[:, :k], B[:k] = U[:, :k] * s[:k].sqrt(), s[:k].sqrt()[:, None] * V[:k]
        self.A, self.B = nn.Parameter(A.to(linear.weight)), nn.Parameter(B.to(linear.weight))
        linear.weight.data -= self.scale * (self.A @ self.B).detach().T

    def forward(self, x):
        return self.linear(x) + self.scale * (x @ self.A @ self.B)


class NoneOrAKind(nn.Module):
    """An option is False unless it is given, and only None says that nothing is chosen."""

    def __init__(self, in_features: int, out_features: int, rank: int, alpha: float, kind=False):
        super().__init__()
        if kind is not None:
            raise ValueError(f"unknown kind {kind}")
        self.base = nn.Linear(in_features, out_features).requires_grad_(False)
        self.A, self.B = _factors(in_features, out_features, rank)
        self.scale = alpha / rank

    def forward(self, x):
        return self.base(x) + self.scale * (x @ self.A @ self.B)


class DrawnLater(nn.Module):
    """The factors are drawn by a method that the caller calls. A function merges the layers of a model."""

    def __init__(self, in_features: int, out_features: int, rank: int, alpha: float):
        super().__init__()
        self.base = nn.Linear(in_features, out_features).requires_grad_(False)
        self.A, self.B = (nn.Parameter(torch.ones(shape)) for shape in ((in_features, rank), (rank, out_features)))
        self.scale = alpha / rank

    def reset_factors(self):
        nn.init.normal_(self.A)
        nn.init.zeros_(self.B)

    def forward(self, x):
        return self.base(x) + self.scale * (x @ self.A @ self.B)


def fold_drawn_later(model: nn.Module):
    """Puts merged linear layers in the places of such layers."""
    for path, part in list(model.named_modules()):
        if isinstance(part, DrawnLater):
            merged = nn.Linear(part.A.shape[0], part.B.shape[1])
            merged.weight.data.copy_(part.base.weight + part.scale * (part.A @ part.B).T)
            merged.bias.data.copy_(part.base.bias)
            owner, _, name = path.rpartition(".")
            setattr(model.get_submodule(owner), name, merged)


class NeedsAGate(nn.Module):
    """The forward pass needs a gate. With a gate of 1 it is that of LoRA."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.A, self.B = _factors(linear.in_features, linear.out_features, rank)
        self.scale = alpha / rank

    def forward(self, x, gate):
        return self.linear(x) + gate * self.scale * (x @ self.A @ self.B)


class NeedsTheRank(nn.Module):
    """Every forward pass says how many ranks are used."""

    def __init__(self, in_features: int, out_features: int, most: int):
        super().__init__()
        self.base = nn.Linear(in_features, out_features).requires_grad_(False)
        self.A, self.B = _factors(in_features, out_features, most)

    def forward(self, x: torch.Tensor, r: int):
        return self.base(x) + x @ self.A[:, :r] @ self.B[:r]


class Between(nn.Module):
    """A module stands between the factors. Its default is a class, which cannot be called with x. Two functions beside the
    class look like merges: the one changes a model that holds the layer, the other the rate of dropout alone."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, activation: nn.Module = nn.Identity):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.A, self.B = _factors(linear.in_features, linear.out_features, rank)
        self.scale, self.activation, self.dropout = alpha / rank, activation, nn.Dropout(0.0)

    def forward(self, x):
        return self.linear(x) + self.scale * (self.activation(self.dropout(x) @ self.A) @ self.B)


def merge_children(model: nn.Module):
    """Puts merged linear layers in the places of such children."""
    for name, part in list(model.named_children()):
        if isinstance(part, Between):
            merged = nn.Linear(part.A.shape[0], part.B.shape[1])
            merged.weight.data.copy_(part.linear.weight + part.scale * (part.A @ part.B).T)
            setattr(model, name, merged)


def merge_with_dropout(model: nn.Module, rate=0.1):
    """Sets the rate of dropout, as if it would merge."""
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = rate


class SquareBranch(nn.Module):
    """One size is in and out. The rank is called a width."""

    def __init__(self, in_dim, dim=8, bits=32):
        super().__init__()
        self.down, self.up = nn.Linear(in_dim, dim, bias=False), nn.Linear(dim, in_dim, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.up(self.down(x))


class CalledLinear(nn.Module):
    """The annotation says nn.Linear, and the code takes the weight of a Conv1D."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.linear, (n_in, n_out) = linear.requires_grad_(False), linear.weight.shape
        self.A, self.B = _factors(n_in, n_out, rank)
        self.scale = alpha / rank

    def forward(self, x):
        return self.linear(x) + self.scale * (x @ (self.A @ self.B))


RANK_OF_ALL = 4


class RankOfTheFile(nn.Module):
    """The rank and the scale are constants of the file."""

    def __init__(self, linear, in_features, out_features):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.A, self.B = _factors(in_features, out_features, RANK_OF_ALL)

    def forward(self, x):
        return self.linear(x) + x @ self.A @ self.B * 2 / RANK_OF_ALL


class FoldedInAModel(nn.Module):
    """A function folds all layers of a model, and puts an nn.Linear in the place of each."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.A, self.B = _factors(linear.in_features, linear.out_features, rank)
        self.scale = alpha / rank

    def forward(self, x):
        return self.linear(x) + self.scale * (x @ self.A @ self.B)


def fold_all(module: nn.Module):
    """Folds the layers of a model."""
    for path, part in list(module.named_modules()):
        if isinstance(part, FoldedInAModel):
            part.linear.weight.data += part.scale * (part.A @ part.B).T
            setattr(module.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], part.linear)


class MergedFromTheStart(nn.Module):
    """An argument makes it a layer that is merged for good."""

    def __init__(self, in_features, out_features, rank, alpha, merge=False):
        super().__init__()
        self.linear, self.merge, self.scale = nn.Linear(in_features, out_features).requires_grad_(False), merge, alpha / rank
        self.A, self.B = _factors(in_features, out_features, rank)
        if merge:
            self.merge_weight()

    def merge_weight(self):
        if self.merge:
            self.linear.weight.data += self.scale * (self.A @ self.B).T

    def unmerge_weight(self):
        self.linear.weight.data -= self.scale * (self.A @ self.B).T

    def forward(self, x):
        return self.linear(x) if self.merge else self.linear(x) + self.scale * (x @ self.A @ self.B)


class AsksWhetherToMerge(nn.Module):
    """An argument without annotation and default says whether the product comes first."""

    def __init__(self, in_features, out_features, merge, rank=4, alpha=8.0):
        super().__init__()
        self.linear, self.merge, self.scale = nn.Linear(in_features, out_features).requires_grad_(False), merge, alpha / rank
        self.A, self.B = _factors(in_features, out_features, rank)

    def forward(self, x):
        if not self.merge:
            raise NotImplementedError
        return F.linear(x, self.linear.weight + self.scale * (self.A @ self.B).T, self.linear.bias)


class DeltaOfAShape(nn.Module):
    """A parametrisation of the weight, which gets its shape."""

    def __init__(self, weight_shape, r=4, alpha=8):
        super().__init__()
        out_features, in_features = weight_shape
        self.scaling = alpha / r
        self.lora_A = nn.Parameter(torch.randn(r, in_features))
        self.lora_B = nn.Parameter(torch.zeros(out_features, r))

    def forward(self, W):
        return W + self.scaling * (self.lora_B @ self.lora_A)


class WeightOrNothing(nn.Module):
    """The weight is optional, by its default, and needed all the same."""

    def __init__(self, in_features, out_features, r, weight=None):
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.A, self.B = _factors(in_features, out_features, r)

    def forward(self, x):
        return F.linear(x, self.weight) + 2 * (x @ self.A @ self.B)


class AsksForKeys(nn.Module):
    """A dict says what is wanted. Its keys are looked through, and one of them tells only None from a choice."""

    def __init__(self, base_module: nn.Linear, lora_config: dict):
        super().__init__()
        self.base, self.bits, self.on = base_module.requires_grad_(False), lora_config["bits"], False
        if set(lora_config.keys()) & {"gate"}:
            raise NotImplementedError
        self.A, self.B = _factors(base_module.in_features, base_module.out_features, lora_config["rank"])
        self.scale = lora_config["alpha"] / lora_config["rank"]

    def enable(self):
        self.on = True

    def forward(self, x):
        part = self.scale * (x @ self.A @ self.B)
        return self.base(x) + self.on * (part if self.bits is None else part.round())


class MoreForTheBase(nn.Linear):
    """The layer takes a linear layer, and further arguments for its base class, which has its sizes."""

    def __init__(self, layer: nn.Linear, r: int = 0, lora_alpha: int = 1, **kwargs):
        super().__init__(layer.in_features, layer.out_features, **kwargs)
        self.weight, self.bias, self.scale = layer.weight, layer.bias, lora_alpha / r
        self.requires_grad_(False)
        self.A, self.B = _factors(layer.in_features, layer.out_features, r)

    def forward(self, x):
        return super().forward(x) + self.scale * (x @ self.A @ self.B)


# ---- no single LoRA layer


class NeedsAPrompt(nn.Module):
    """The forward pass needs a module that computes a prompt."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.A, self.B = _factors(linear.in_features, linear.out_features, rank)
        self.scale = alpha / rank

    def forward(self, x, prompt):
        return self.linear(x) + self.scale * ((x + prompt.compute(x)) @ self.A @ self.B)


class NeedsAProvider(nn.Module):
    """The forward pass asks another object for what it needs."""

    def __init__(self, out_features, in_features, rank, provider, alpha=1.0):
        super().__init__()
        self.W = nn.Linear(in_features, out_features, bias=False).requires_grad_(False)
        self.A, self.B = _factors(in_features, out_features, rank)
        self.provider = provider

    def forward(self, x):
        return self.W(x) + self.provider.current_gain() * (x @ self.A @ self.B)


class Thirds(nn.Module):
    """The layer changes the query and the value of a fused projection."""

    def __init__(self, qkv: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.qkv, n = qkv.requires_grad_(False), qkv.in_features
        self.A_q, self.B_q = _factors(n, n, rank)
        self.A_v, self.B_v = _factors(n, n, rank)
        self.n, self.scale = n, alpha / rank

    def forward(self, x):
        q, k, v = self.qkv(x).split(self.n, dim=-1)
        q, v = q + self.scale * (x @ self.A_q @ self.B_q), v + self.scale * (x @ self.A_v @ self.B_v)
        return torch.cat([q, k, v], dim=-1)


class Mixture(nn.Module):
    """A router mixes two adapters."""

    def __init__(self, in_features: int, out_features: int, rank: int, alpha: float):
        super().__init__()
        self.base = nn.Linear(in_features, out_features).requires_grad_(False)
        self.experts = nn.ModuleList(Branch(in_features, out_features, rank, alpha) for _ in range(2))
        self.router = nn.Linear(in_features, 2)

    def forward(self, x):
        weights = self.router(x).softmax(-1)
        return self.base(x) + sum(weights[..., i : i + 1] * expert(x) for i, expert in enumerate(self.experts))


READY = (
    Layer("InverseRank", "sizes", "base.weight", "A", "B", "base.bias", scale="1 / rank"),
    Layer("SixteenOverRank", "linear", "layer.weight", "A", "B", "layer.bias", scale="16 / rank"),
    Layer("Strength", "sizes", "linear.weight", "lora_down.weight", "lora_up.weight", "linear.bias", "AB", scale="scale"),
    Layer("Gain", "sizes", "fc.weight", "A", "B", "fc.bias"),
    Layer("Numerator", "linear", "layer.weight", "A", "B", "layer.bias"),
    Layer("NamedRule", "sizes", "proj.weight", "A", "B", "proj.bias", scale="always 1"),
    Layer("AnnotatedRule", "sizes", "proj.weight", "A", "B", "proj.bias", scale="always 1"),
    Layer("MergesIfTold", "linear", "base.weight", "A", "B", "base.bias", merges="eval()", unmerges="train()"),
    Layer("BehindNoGrad", "linear", "base.weight", "A", "B", "base.bias", trains=("W", "b"),
          fault="No gradient goes through the base.", wrong=("GRAD",)),
    Layer("FixedDropout", "linear", "linear.weight", "A", "B", "linear.bias", merges="merge_into_base(module)",
          unmerges="unmerge_from_base(module)"),
    Layer("OffAtFirst", "linear", "base.weight", "A", "B", "base.bias"),
    Layer("Flagged", "linear", "fc.weight", "A", "B", "fc.bias"),
    Layer("use_swapped", "model", "q_proj.inner.weight", "q_proj.A", "q_proj.B", "q_proj.inner.bias"),
    Layer("PerTask", "linear", "layer.weight", "first.q_proj", "second.q_proj", "layer.bias"),
    Layer("ManyAdapters", "linear", "base_layer.weight", "lora_A.default", "lora_B.default", "base_layer.bias"),
    Layer("MergedAtFirst", "configuration", "dense.weight", "A", "B", "dense.bias"),
    Layer("Hooking", "model", "linear.q_proj.weight", "lora.1.weight", "lora.2.weight", "linear.q_proj.bias", "AB",
          trains=("W", "b")),
    Layer("OverConv1D", "linear", "conv.weight", "a", "b", "conv.bias", "W"),
    Layer("FloatBranch", "linear", "linear.weight", "lora_A", "lora_B", "linear.bias", "AB"),
    Layer("ThreeDropouts", "linear", "org_module.weight", "A", "B", "org_module.bias"),
    Layer("LinearOrConv1D", "linear", "weight", "A", "B", "bias"),
    Layer("NamedInConfig", "configuration", "weight", "first.default", "second.default", "bias"),
    Layer("BatchFirst", "linear", "fc.weight", "A", "B", "fc.bias"),
    Layer("RootOfTheRank", "sizes", "base.weight", "A", "B", "base.bias", scale="alpha / √rank"),
    Layer("PassesOn", "sizes", "linear.weight", "A", "B", "linear.bias"),
    Layer("TensorOrNone", "weight", "weight", "A", "B", "bias", trains=("b",),
          fault="The class makes the bias train, also one that was given frozen.", wrong=("PARAM",)),
    Layer("TwoMaps", "part", "base.weight", "lora.first.weight", "lora.second.weight", "base.bias", "AB", scale="always 1"),
    Layer("Branch", "part", "base.weight", "lora.down.weight", "lora.up.weight", "base.bias", "AB"),
    Layer("Joined", "linear", "original.weight", "branch.down.weight", "branch.up.weight", "original.bias", "AB",
          trains=("W", "b")),
    Layer("FromNamedTuple", "configuration", "dense.weight", "A", "B", "dense.bias"),
    Layer("FromOptions", "sizes", "base.weight", "A", "B", "base.bias"),
    Layer("FromShape", "sizes", "base.weight", "A", "B", "base.bias"),
    Layer("ImageTokens", "linear", "proj.weight", "A", "B", "proj.bias"),
    Layer("AtFirstPass", "linear", "linear.weight", "A", "B", "linear.bias"),
    Layer("LazyDelta", "parametrization", "parametrizations.weight.original", "parametrizations.weight.0.down",
          "parametrizations.weight.0.up", "bias", trains=("W", "b")),
    Layer("StartedLater", "sizes", "base.weight", "A", "B", "base.bias"),
    Layer("Attached", "sizes", "linear.weight", "A", "B", "linear.bias"),
    Layer("SmallScale", "sizes", "base.weight", "A", "B", "base.bias", scale="lora_scaling"),
    Layer("Residual", "linear", "linear.weight", "A", "B", "linear.bias"),
    Layer("NoneOrAKind", "sizes", "base.weight", "A", "B", "base.bias"),
    Layer("DrawnLater", "sizes", "base.weight", "A", "B", "base.bias"),
    Layer("NeedsTheRank", "sizes", "base.weight", "A", "B", "base.bias", scale="always 1"),
    Layer("Between", "linear", "linear.weight", "A", "B", "linear.bias"),
    Layer("SquareBranch", "part", "base.weight", "lora.down.weight", "lora.up.weight", "base.bias", "AB", scale="always 1"),
    Layer("CalledLinear", "linear", "linear.weight", "A", "B", "linear.bias", "W"),
    Layer("RankOfTheFile", "linear", "linear.weight", "A", "B", "linear.bias", scale="always 0.5"),
    Layer("FoldedInAModel", "linear", "linear.weight", "A", "B", "linear.bias"),
    Layer("MergedFromTheStart", "sizes", "linear.weight", "A", "B", "linear.bias"),
    Layer("AsksWhetherToMerge", "sizes", "linear.weight", "A", "B", "linear.bias"),
    Layer("DeltaOfAShape", "parametrization", "parametrizations.weight.original", "parametrizations.weight.0.lora_A",
          "parametrizations.weight.0.lora_B", "bias", "AB", trains=("W", "b")),
    Layer("WeightOrNothing", "weight", "weight", "A", "B", None, scale="always 2"),
    Layer("AsksForKeys", "linear", "base.weight", "A", "B", "base.bias"),
    Layer("MoreForTheBase", "linear", "weight", "A", "B", "bias"),
    Layer("NeedsAGate", "linear", "linear.weight", "A", "B", "linear.bias"),
    Layer("Prepared", "linear", "inner.weight", "A", "B", "inner.bias"),
)
REFUSED = {
    "NeedsAPrompt": r"its forward\(\) needs prompt besides x",
    "NeedsAProvider": r"its forward pass raises AttributeError: .*current_gain",
    "Thirds": r"fused layer with out = 3 · in, and holds 2 pairs of factors.*A_q with B_q, A_v with B_v",
    "Mixture": r"holds 2 pairs of factors .* this is no single LoRA",
}
