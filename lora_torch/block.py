"""One block of the transformer of transformer.py: attention, then the MLP, each on a normed input and added to h.

    x = norm(h)   a = o_proj(attention(x))   h ← h + a        gelu    mlp(x) = down_proj(gelu(up_proj(x)))
    x = norm(h)   a = mlp(x)                 h ← h + a        silu    mlp(x) = down_proj(silu(gate_proj(x)) · up_proj(x))

    attention(x): q, k, v = q_proj(x), k_proj(x), v_proj(x), in heads of s = width / heads columns
    softmax(q kᵀ / √s) v, where query head j uses the key and value head j // (heads / kv_heads)

    h, x, a (batch, S, width)   q (batch, heads, S, s)   k, v (batch, kv_heads, P + S, s), the first P from a prefix

The norms divide by √(· + 1e-5). gelu is the tanh form. Each part is a child module of the block, under the name that its arrays
have. LoRA replaces such a child. `adapters` holds the adapters, each under the name of its place with "/" for ".".

Sources: Vaswani et al. 2017, arXiv:1706.03762, pre-norm as in GPT-2; Ainslie et al. 2023, arXiv:2305.13245 (kv_heads);
Zhang & Sennrich 2019, arXiv:1910.07467 (rms); Shazeer 2020, arXiv:2002.05202 (silu). Left out: dropout, a cache of keys.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_torch.checks import is_size, require

_require = partial(require, "Config")

EPS = 1e-5


class Config(NamedTuple):
    """activation: gelu or silu. norm: layer or rms. bias: of every linear layer but lm_head. fused: q, k and v in one
    qkv_proj. tied: lm_head is embed_tokens."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp_width: int
    context: int
    activation: str
    norm: str
    bias: bool = True
    fused: bool = False
    tied: bool = False

    def check(self) -> None:
        """ValueError naming the field that is out of range."""
        for name in ("vocabulary", "width", "layers", "heads", "kv_heads", "mlp_width", "context"):
            _require(is_size(getattr(self, name)), name, getattr(self, name), "an integer ≥ 1", "it is a size")
        c = self
        _require(c.width % c.heads == 0, "heads", c.heads, f"a divisor of width = {c.width}", "heads are slices of it")
        _require(c.heads % c.kv_heads == 0, "kv_heads", c.kv_heads, f"a divisor of heads = {c.heads}", "as many share one")
        _require(c.activation in ("gelu", "silu"), "activation", c.activation, "gelu or silu", "the MLP has no other")
        _require(c.norm in ("layer", "rms"), "norm", c.norm, "layer or rms", "there is no other")
        for name in ("bias", "fused", "tied"):
            _require(isinstance(getattr(self, name), bool), name, getattr(self, name), "True or False", "it is a choice of two")

    @property
    def kv(self) -> int:
        """How many columns the keys have, and the values."""
        return self.width // self.heads * self.kv_heads


def linears(config: Config) -> dict[str, tuple[int, int]]:
    """The linear layers of one block: name → (in, out)."""
    width, kv, mlp_width = config.width, config.kv, config.mlp_width
    apart = {"q_proj": (width, width), "k_proj": (width, kv), "v_proj": (width, kv)}
    attention = {"qkv_proj": (width, width + 2 * kv)} if config.fused else apart
    gate = {"gate_proj": (width, mlp_width)} if config.activation == "silu" else {}
    return attention | {"o_proj": (width, width)} | gate | {"up_proj": (width, mlp_width), "down_proj": (mlp_width, width)}


def norm(config: Config, device: torch.device | str | int | None, dtype: torch.dtype | None) -> nn.Module:
    kind = nn.LayerNorm if config.norm == "layer" else nn.RMSNorm
    return kind(config.width, eps=EPS, device=device, dtype=dtype)


class Block(nn.Module):
    """One block. Its linear layers are children by the names that `linears` gives; a new block has no adapters."""

    def __init__(self, config: Config, device: torch.device | str | int | None, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.config = config
        self.attention_norm = norm(config, device, dtype)
        self.mlp_norm = norm(config, device, dtype)
        for name, (n_in, n_out) in linears(config).items():
            self.add_module(name, nn.Linear(n_in, n_out, config.bias, device, dtype))
        self.adapters = nn.ModuleDict()

    def forward(self, h: Tensor, prefix: tuple[Tensor, Tensor] | None, attention_mask: Tensor | None) -> Tensor:
        """h (batch, S, width); prefix: keys and values (P, kv) each; attention_mask (…, 1, S, P + S), None: causal → h."""
        x = self.attention_norm(h)
        h = h + self._adapted("attention", x, self._attention(x, prefix, attention_mask))
        x = self.mlp_norm(h)
        h = h + self._adapted("mlp", x, self._mlp(x))
        return self._with_own("output", h)

    def _attention(self, x: Tensor, prefix: tuple[Tensor, Tensor] | None, attention_mask: Tensor | None) -> Tensor:
        c = self.config
        if c.fused:
            q, k, v = self.get_submodule("qkv_proj")(x).split((c.width, c.kv, c.kv), dim=-1)
        else:
            q, k, v = (self.get_submodule(name)(x) for name in ("q_proj", "k_proj", "v_proj"))
        if prefix is not None:
            k, v = (torch.cat([p.to(t.dtype).expand(len(x), -1, -1), t], dim=1) for p, t in zip(prefix, (k, v), strict=True))
        q, k, v = _heads(q, c.heads), _heads(k, c.kv_heads), _heads(v, c.kv_heads)
        if c.kv_heads < c.heads:
            k, v = (t.repeat_interleave(c.heads // c.kv_heads, dim=1) for t in (k, v))    # (batch, heads, P + S, s)
        y = F.scaled_dot_product_attention(q, k, v, attention_mask, is_causal=attention_mask is None)
        return self.get_submodule("o_proj")(y.transpose(1, 2).flatten(2))

    def _mlp(self, x: Tensor) -> Tensor:
        up = self.get_submodule("up_proj")(x)    # (batch, S, mlp_width)
        if self.config.activation == "gelu":
            k = F.gelu(up, approximate="tanh")
        else:
            k = F.silu(self.get_submodule("gate_proj")(x)) * up
        return self.get_submodule("down_proj")(k)

    def _adapted(self, place: str, x: Tensor, a: Tensor) -> Tensor:
        """The output a of a sub-layer with what the adapters beside it and behind it add."""
        if place in self.adapters:
            a = a + self.adapters[place](x)
        return self._with_own(f"{place}/output", a)

    def _with_own(self, place: str, z: Tensor) -> Tensor:
        return z + self.adapters[place](z) if place in self.adapters else z


def _heads(t: Tensor, heads: int) -> Tensor:
    """(batch, S, heads · s) → (batch, heads, S, s)."""
    return t.unflatten(-1, (heads, -1)).transpose(1, 2)


def make_attention_mask(h: Tensor, mask: Tensor | None, tokens: Tensor | None, prefix: int) -> Tensor | None:
    """True where a query may look at a key (…, 1, S, prefix + S). None if it may at every place up to its own.

    h (batch, S, width), mask (batch, T) or None. tokens (T): where in the sequence they stand, None: nothing else does.
    """
    if mask is None and not prefix:
        return None
    S = h.shape[1]
    seen = torch.ones(S, S, dtype=torch.bool, device=h.device).tril()
    if mask is not None:
        keys = mask
        if tokens is not None:
            keys = mask.new_ones(len(h), S)
            keys[:, tokens] = mask
        itself = torch.eye(S, dtype=torch.bool, device=h.device)
        seen = seen & keys[:, None] | itself    # (batch, S, S)
    return F.pad(seen, (prefix, 0), value=True).unsqueeze(-3)
