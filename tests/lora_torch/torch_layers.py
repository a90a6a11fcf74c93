"""Cases on which every sum is exact in all four dtypes, whatever the order of summation: no test needs a tolerance.

Entries are integers, |A|, |B| ≤ 1 and |W|, |b|, |x|, |dy| ≤ 2; in, out ≤ 4, rank ≤ 3, at most 4 samples; the scale is a
power of two from 1/4 to 4. The largest intermediate is then s·xᵀ(dy Bᵀ) ≤ 4·4·2·8 = 2⁸ in units of 1 (or of 1/4 where
s is), which bfloat16 holds exactly.
"""

import copy
import weakref
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lora_torch import LinearLoRA
from lora_torch.fast import FrozenLinearLoRA

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
no_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda.is_available() is False on this machine")
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=no_cuda)])
# nn.Dropout on CUDA draws another mask than the fast path does, so only without dropout are the two the same there.
every_device_and_rate = pytest.mark.parametrize(
    "device, rate", [("cpu", 0.0), ("cpu", 0.5), pytest.param("cuda", 0.0, marks=no_cuda)]
)
examples = settings(max_examples=60, deadline=None)

LEADING = [(), (0,), (1,), (4,), (2, 2), (1, 3), (2, 0, 1)]


class Case(NamedTuple):
    layer: LinearLoRA
    x: Tensor  # (…, in), requires grad
    dy: Tensor  # (…, out)


@st.composite
def cases(draw: st.DrawFn, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Case:
    n_in, n_out, rank = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    scale = draw(st.sampled_from([1 / 4, 1 / 2, -1.0, 2.0, 4.0]))
    layer = LinearLoRA(
        n_in, n_out, rank, alpha=scale * rank, bias=draw(st.booleans()), device=torch.device(device), dtype=dtype
    )
    leading = draw(st.sampled_from(LEADING))
    draws = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    fill(layer, draws)
    layer.fast = draw(st.sampled_from([None, True, False]))
    x = integers((*leading, n_in), 2, draws).to(device, dtype)
    return Case(layer, x.requires_grad_(), integers((*leading, n_out), 2, draws).to(device, dtype))


@torch.no_grad()
def fill(layer: LinearLoRA, draws: torch.Generator) -> None:
    """Puts small integers into every tensor of the layer, including W and b."""
    for name, parameter in layer.named_parameters():
        parameter.copy_(integers(parameter.shape, 1 if name.startswith("lora") else 2, draws))


def integers(shape: tuple[int, ...], largest: int, draws: torch.Generator) -> Tensor:
    return torch.randint(-largest, largest + 1, shape, generator=draws, dtype=torch.float64)


def merged_weight(layer: LinearLoRA) -> Tensor:
    """W + scale · (A B)ᵀ of an unmerged layer, one outer product after another."""
    W = layer.pre_trained_weight.weight.detach().clone()    # (out, in)
    for a, b in zip(layer.lora_A.detach().T, layer.lora_B.detach(), strict=True):
        W += layer.scale * b[:, None] * a[None, :]
    return W


def same_bits(got: Tensor, want: Tensor) -> bool:
    """Same shape, dtype and bits: tells −0.0 from 0.0, and NaN is itself."""
    got_bytes, want_bytes = (t.detach().flatten().contiguous().view(torch.uint8) for t in (got, want))
    return got.shape == want.shape and got.dtype == want.dtype and torch.equal(got_bytes, want_bytes)


def integer_layer(fast: bool | None = True, **options: Any) -> tuple[LinearLoRA, Tensor, Tensor]:
    """in 4, out 3, rank 2, x (2, 5, 4), dy (2, 5, 3). It takes the fast path where that is valid, though it is small."""
    layer, draws = LinearLoRA(4, 3, 2, 4.0, **options), torch.Generator().manual_seed(3)
    fill(layer, draws)
    layer.fast = fast
    x, dy = (integers(shape, 2, draws).to(layer.lora_A) for shape in ((2, 5, 4), (2, 5, 3)))    # its dtype and device
    return layer, x.requires_grad_(), dy


def plain(layer: LinearLoRA) -> LinearLoRA:
    other = copy.deepcopy(layer)
    other.fast = False
    return other


def is_fast(y: Tensor) -> bool:
    """Whether a FrozenLinearLoRA is in the graph of y."""
    nodes, seen = [y.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [following for following, _ in node.next_functions]
    return any(type(node).__name__ == f"{FrozenLinearLoRA.__name__}Backward" for node in seen)


def run(layer: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor | None]:
    """y, dx and the gradients of all parameters."""
    x = x.detach().requires_grad_(x.requires_grad)
    y = layer(x)
    y.backward(dy)
    return [y.detach(), x.grad, *(parameter.grad for parameter in layer.parameters())]


def assert_same(got: list, want: list) -> None:
    for g, w in zip(got, want, strict=True):
        assert (g is None) == (w is None) and (g is None or torch.equal(g, w))


class Allocations(TorchDispatchMode):
    """Counts the bytes of the tensors that are made under it: `peak` at the fullest moment, `largest` of a single one."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.largest = 0
        self.living: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in known | self.living:
                self._made(tensor.untyped_storage())
        return result

    def _made(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        self.living.add(key)
        self.now += size
        self.peak, self.largest = max(self.peak, self.now), max(self.largest, size)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self.living.discard(key)
        self.now -= size


class Operations(TorchDispatchMode):
    """Names the products of matrices that are computed under it, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.products: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if "mm" in name:
            self.products.append(name)
        return func(*args, **(kwargs or {}))
