"""A frozen layer of any model with named LoRA adapters beside it, and a frozen module with trained copies beside it.

    a layer              its W         with the active adapters a, b, …                    W merged
    nn.Linear            (out, in)     x Wᵀ + bias + Σ scale · (dropout(x) A) B            W + Σ scale · (A B)ᵀ
    transformers.Conv1D  (in, out)     x W + bias + Σ scale · (dropout(x) A) B             W + Σ scale · A B
    nn.Embedding         (in, out)     W[x] + Σ scale · A[x] B, without dropout            W + Σ scale · A B

    A (in, rank)   B (rank, out)   in, out = num_embeddings, embedding_dim for an embedding

A starts as `init` of linear.py says and B at zero. For an embedding A starts at zero and B ~ N(0, 1). So a new adapter changes
no output. Sources: linear.py; PEFT's developer guide "Checkpoint format", and its lora/layer.py for what an embedding's
factors mean and how they start.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_torch.linear import INITS, SCALINGS
from lora_torch.merging import merged_weight, put_at_once, save_unmerged
from lora_torch.paths import SMALL, are_bare, fast, is_traced

# The dtypes that a layer may have, and the dtype that its factors get if nobody asks for another one.
FACTORS = {
    torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float32: torch.float32, torch.float64: torch.float64
}


def sizes(layer: nn.Module) -> tuple[int, int] | None:
    """(in, out) of a layer that can have LoRA. None for any other module."""
    W = layer._parameters.get("weight")
    if W is None or W.dim() != 2 or W.dtype not in FACTORS:
        return None
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    plain = type(layer).forward is nn.Embedding.forward and getattr(layer, "max_norm", None) is None
    return (W.shape[0], W.shape[1]) if plain or is_conv1d(layer) else None


def is_conv1d(layer: nn.Module) -> bool:
    """Whether it is the linear layer of GPT-2 in transformers, which this package does not import."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf")


class Adapter(nn.Module):
    """The trained lora_A (in, rank) and lora_B (rank, out) of one layer under one name. They have `dtype`, or, with None, the
    dtype of the layer, and float32 if that is float16 or bfloat16. Without `init` they are on the meta device."""

    def __init__(
        self, layer: nn.Module, rank: int, alpha: float, dropout: float, scaling: str, init: str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        n_in, n_out = sizes(layer) or (0, 0)
        W = layer.get_parameter("weight")
        self.rank, self.alpha, self.scale = int(rank), alpha, float(SCALINGS[scaling](alpha, int(rank)))
        like: dict[str, Any] = {"device": W.device if init else "meta", "dtype": dtype or FACTORS[W.dtype]}
        self.lora_A = nn.Parameter(torch.zeros(n_in, self.rank, **like))
        self.lora_B = nn.Parameter(torch.zeros(self.rank, n_out, **like))
        self.lora_dropout = nn.Dropout(dropout)
        self.train(layer.training)
        with torch.no_grad():
            if isinstance(layer, nn.Embedding):
                self.lora_B.normal_()
            elif init:
                INITS[init](self.lora_A)

    def added_to(self, y: Tensor, x: Tensor, layer: nn.Module) -> Tensor:
        """y + scale · (x A) B (…, out), in the wider of the two dtypes. For an embedding A[x] in the place of x A."""
        A, B = self.lora_A, self.lora_B
        if isinstance(layer, nn.Embedding):
            h = F.embedding(x, A, layer.padding_idx, scale_grad_by_freq=layer.scale_grad_by_freq, sparse=layer.sparse)
        else:
            h = self.lora_dropout(x.to(A.dtype)) @ A    # (…, rank)
        return torch.add(y, h @ B, alpha=self.scale)

    def extra_repr(self) -> str:
        return f"in={len(self.lora_A)}, out={self.lora_B.shape[1]}, rank={self.rank}, alpha={self.alpha}, scale={self.scale:g}"


class Adapted(nn.Module):
    """A frozen layer, `pre_trained_weight`, and its `adapters` by name. The `active` ones are added to what it gives.

    While merged, the layer has another weight, and W is in the buffer `unmerged_weight`. state_dict always holds W itself, and
    a merged layer that loads a state is merged with what was loaded.
    """

    unmerged_weight: Tensor | None

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.pre_trained_weight, self.adapters = layer, nn.ModuleDict()
        self.training = self.adapters.training = layer.training
        self.active: tuple[str, ...] = ()
        self.loads_merged = False
        self.register_buffer("unmerged_weight", None, persistent=False)
        self.register_state_dict_post_hook(save_unmerged)
        self.register_load_state_dict_post_hook(_merge_what_was_loaded)

    def forward(self, x: Tensor) -> Tensor:
        """x (…, in), of an embedding (…) of integers → y (…, out), in the dtype of the frozen layer's output."""
        layer, at_work = self.pre_trained_weight, [] if self.merged else self.at_work()
        if len(at_work) == 1 and not is_traced() and are_bare(layer, at_work[0].lora_dropout):
            A, B, drop = at_work[0].lora_A, at_work[0].lora_B, at_work[0].lora_dropout
            if x.dim() and x.shape[-1] == len(A) and x.numel() * B.shape[1] >= SMALL:
                rate = drop.p if drop.training else 0.0
                y = fast(x, self.weight, self.bias, A, B, at_work[0].scale, rate)
                if y is not None:
                    return y
        y = z = layer(x)    # (…, out)
        for adapter in at_work:
            z = adapter.added_to(z, x, layer)
        return z.to(y.dtype)

    def at_work(self) -> list[Any]:
        """The adapters that are active here."""
        return [self.adapters[name] for name in self.active if name in self.adapters]

    @property
    def weight(self) -> Tensor:
        """That of the frozen layer, for models that read it."""
        return self.pre_trained_weight.weight  # pyright: ignore[reportReturnType]

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.pre_trained_weight, "bias", None)

    @property
    def merged(self) -> bool:
        return self._buffers["unmerged_weight"] is not None

    def with_adapters(self) -> nn.Parameter:
        """W with all active adapters in it, rounded once, as a new Parameter."""
        with torch.inference_mode(False):  # no backward pass may use a tensor that was made under inference_mode
            return nn.Parameter(self._with_adapters(), requires_grad=False)

    def _with_adapters(self) -> Tensor:
        adapters = self.at_work()
        A, B, scale = adapters[0].lora_A, adapters[0].lora_B, adapters[0].scale
        if len(adapters) > 1:
            A = torch.cat([adapter.lora_A.detach().double() for adapter in adapters], dim=1)
            B, scale = torch.cat([adapter.scale * adapter.lora_B.detach().double() for adapter in adapters]), 1.0
        if not isinstance(self.pre_trained_weight, nn.Linear):  # W is (in, out)
            A, B = B.T, A.T
        return merged_weight(self.weight, A, B, scale)

    def merging(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """What put_at_once has to change for the layer to be merged."""
        new = {"weight": self.with_adapters()}
        return [(self._buffers, {"unmerged_weight": self.weight}), (self.pre_trained_weight._parameters, new)]

    def unmerging(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """The same the other way: the Parameter that was there returns, unless .to() has made another tensor of it."""
        W = self.unmerged_weight
        W = W if W is None or isinstance(W, nn.Parameter) else nn.Parameter(W, requires_grad=False)
        return [(self._buffers, {"unmerged_weight": None}), (self.pre_trained_weight._parameters, {"weight": W})]

    def _load_from_state_dict(self, *arguments: Any) -> None:
        if self.merged:
            self.loads_merged = True
            put_at_once(*self.unmerging())
        super()._load_from_state_dict(*arguments)


def _merge_what_was_loaded(layer: Any, _: object) -> None:
    if layer.loads_merged:
        layer.loads_merged = False
        put_at_once(*layer.merging())


class Kept(nn.Module):
    """A module that an adapter trains and keeps whole: the frozen `original`, and a trained copy for each adapter's name.

    The copy of the active adapter does the work, and without one the original. What else is asked of it, it asks of that one.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original, self.copies = original, nn.ModuleDict()
        self.training = self.copies.training = original.training
        self.active: tuple[str, ...] = ()

    def at_work(self) -> nn.Module:
        return next((self.copies[name] for name in self.active if name in self.copies), self.original)

    def forward(self, *arguments: Any, **options: Any) -> Any:
        return self.at_work()(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_modules" not in self.__dict__ or "copies" not in self._modules:  # not made yet, or being copied
                raise
            return getattr(self.at_work(), name)
