"""Faults of torch modules in use: while they serve, as parts of a model, and in what torch has for modules."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from conformance.mutants import mutant
from conformance.mutants.honest_torch import ByHand, LoRA, layer_of, products


class Serving(LoRA):
    """What takes another way where nobody wants a gradient of it."""

    @property
    def serves(self) -> bool:
        return not self.training and not torch.is_grad_enabled()


@mutant(kills="TORCH-33")
@layer_of
class ServesByAddress(Serving):
    """While it serves, it reads the rows of x one after the other, whatever the strides are."""

    def lora(self, x: Tensor) -> Tensor:
        if self.serves and x.numel():
            x = x.as_strided(x.shape, torch.empty(x.shape, device="meta").stride(), x.storage_offset())
        return super().lora(x)


@mutant(kills="TORCH-33")
@layer_of
class ServesMatrices(Serving):
    """While it serves, y of a vector is a matrix of one row."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[None] if self.serves and x.dim() == 1 else x)


@mutant("123", kills="TORCH-33")
@layer_of
class TwoOutputsByTurns(Serving):
    """While it serves, it writes its outputs into two buffers by turns."""

    buffers_of: Any = None

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if not self.serves:
            return y
        have = self.buffers_of or []
        if len(have) < 2 or have[0].shape != y.shape:
            self.buffers_of = [y, *(one for one in have[:1] if one.shape == y.shape)]
            return y
        self.buffers_of = have[::-1]
        return have[1].copy_(y)


@mutant("110", kills="TORCH-34")
@layer_of
class ProductKnowsA(Serving):
    """While it serves, it keeps A B until A has other numbers."""

    known: Any = None

    def lora(self, x: Tensor) -> Tensor:
        if not self.serves:
            return super().lora(x)
        if self.known is None or self.known[0].dtype != self.A.dtype or not torch.equal(self.known[0], self.A):
            self.known = self.A.clone(), self.A @ self.B
        return self.scale * (x @ self.known[1])


@mutant("110", kills="TORCH-34")
@layer_of
class CloseIsEqual(Serving):
    """While it serves, it keeps A B as long as the factors are close to those that it knows."""

    known: Any = None

    def lora(self, x: Tensor) -> Tensor:
        if not self.serves:
            return super().lora(x)
        if self.known is None or self.known[0].dtype != self.A.dtype or not (
                torch.allclose(self.known[0], self.A) and torch.allclose(self.known[1], self.B)):
            self.known = self.A.clone(), self.B.clone(), self.A @ self.B
        return self.scale * (x @ self.known[2])


@mutant("110", kills="TORCH-34")
@layer_of
class ServesTheOldWeight(Serving):
    """While it serves, it keeps W with A B in it until A or B has other numbers."""

    known: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.serves or self.kept is not None:
            return super().forward(x)
        have = self.known
        if have is None or have[0].dtype != self.A.dtype or not (torch.equal(have[0], self.A) and torch.equal(have[1], self.B)):
            W = self.linear.weight
            merged = (W.double() + self.scale * (self.A.double() @ self.B.double()).T).to(W.dtype)
            self.known = self.A.clone(), self.B.clone(), merged
        return nn.functional.linear(x, self.known[2], self.linear.bias)


@mutant("74", kills="TORCH-35")
@layer_of
class DropsForGradientsOnly(LoRA):
    """Nothing is dropped where no gradient is recorded."""

    def lora(self, x: Tensor) -> Tensor:
        return super().lora(x) if torch.is_grad_enabled() else self.scale * (x @ self.A @ self.B)


@mutant("115", kills="TORCH-36")
@layer_of
class KeysWithoutAPrefix(LoRA):
    """The factors are in the state_dict of a model under their own names."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in ("A", "B"):
            destination[name] = destination.pop(prefix + name)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *more: Any) -> None:
        own = {prefix + name: state_dict[name] for name in ("A", "B") if name in state_dict}
        super()._load_from_state_dict({**state_dict, **own}, prefix, *more)
        for unexpected in (more[3], more[2]):
            unexpected[:] = [key for key in unexpected if key not in ("A", "B")]


@mutant(kills="TORCH-37")
@layer_of
class FormatOfTheFile(LoRA):
    """A factor that is loaded keeps the number format of the file."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *more: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *more)
        for name, own in (("A", self.A), ("B", self.B)):
            if isinstance(came := state_dict.get(prefix + name), Tensor) and came.shape == own.shape:
                own.data = came.clone()


@mutant(kills="TORCH-37")
@layer_of
class SharesWhatItLoads(LoRA):
    """The factors use the memory of the tensors that were loaded."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *more: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *more)
        for name, own in (("A", self.A), ("B", self.B)):
            if isinstance(came := state_dict.get(prefix + name), Tensor) and came.shape == own.shape:
                own.data = came.detach().to(own.dtype)


@mutant(kills="TORCH-37")
@layer_of
class KnowsItsFirstFactors(LoRA):
    """The constructor keeps A and B in a tuple, from which they are taken. load_state_dict(assign=True) does not reach it."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.both = self.A, self.B

    def lora(self, x: Tensor) -> Tensor:
        A, B = self.both
        return self.scale * (self.dropout(x) @ A @ B)


@mutant(kills="TORCH-38")
@layer_of
class MergesInAutocast(LoRA):
    """The product of a merge is in the format of autocast, where the merge is inside it."""

    @torch.no_grad()
    def merge(self) -> None:
        if self.kept is not None:
            raise RuntimeError("merge: the layer is merged already")
        W = self.linear.weight
        self.kept = W.clone()
        W.copy_(W + self.scale * (self.A.to(W.dtype) @ self.B.to(W.dtype)).T)


@mutant(kills="TORCH-38")
@layer_of
class MergesIntoANewTensor(LoRA):
    """A merge makes a new Parameter, of which there is no gradient if it was made under inference_mode."""

    def merge(self) -> None:
        super().merge()
        self.linear.weight = nn.Parameter(self.linear.weight.detach().clone(), requires_grad=False)


@mutant(kills="TORCH-39")
@layer_of
class LooksForTheParameter(LoRA):
    """Without a Parameter of the name A, the adapter counts as removed."""

    def lora(self, x: Tensor) -> Tensor:
        return super().lora(x) if "A" in self._parameters else 0 * (x @ self.A @ self.B)


@mutant(kills="TORCH-41")
@layer_of
class PassesTheBaseBy(LoRA):
    """It calls forward() of the layer that it was made around, and so none of its hooks."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear.forward(x)
        return y if self.kept is not None else y + self.lora(x)


@mutant(kills="TORCH-42")
@layer_of
class ScaleIsABuffer(LoRA):
    """The scale is a buffer of one number, in the format of the layer."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        scale = torch.tensor(float(self.scale), dtype=self.A.dtype)
        del self.scale
        self.register_buffer("scale", scale, persistent=False)


class OneGradientForAll(torch.autograd.Function):
    """scale · (x A) B, whose dA and dB are sums over all that comes in."""

    @staticmethod
    def forward(x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
        return scale * (x @ A @ B)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, A, B, ctx.scale = inputs
        ctx.save_for_backward(x, A, B)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, A, B = ctx.saved_tensors
        return (*Products.apply(x, A, B, ctx.scale * dy), None)  # pyright: ignore[reportGeneralTypeIssues]

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, A: Tensor, B: Tensor, scale: float) -> Any:
        return OneGradientForAll.apply(x.movedim(dims[0], 0), A, B, scale), 0


class Products(torch.autograd.Function):
    """dx, dA and dB. Under vmap the last two are those of all samples together."""

    @staticmethod
    def forward(x: Tensor, A: Tensor, B: Tensor, dy: Tensor) -> Any:
        dx, dA, dB = products(x.reshape(-1, x.shape[-1]), A, B, dy.reshape(-1, dy.shape[-1]))
        return dx.reshape(x.shape), dA, dB

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, dims: Any, x: Tensor, A: Tensor, B: Tensor, dy: Tensor) -> Any:
        x, dy = (array if dim is None else array.movedim(dim, 0) for array, dim in ((x, dims[0]), (dy, dims[3])))
        return Products.apply(x, A, B, dy), (0, None, None)


@mutant(kills="TORCH-40")
@layer_of
class OneGradientForAllSamples(LoRA):
    """Gradients of single samples are the sum over all of them."""

    def lora(self, x: Tensor) -> Tensor:
        found: Any = OneGradientForAll.apply(self.dropout(x), self.A, self.B, self.scale)
        return found


# --- what torch.py asks, in regimes of its own ---------------------------------------------------------------------------


@mutant("147", kills="TORCH-01")
@layer_of
class CopiesShareB(LoRA):
    """A deep copy shares B with the module that was copied."""

    def __deepcopy__(self, memo: dict) -> nn.Module:
        memo[id(self.B)] = self.B
        other = type(self).__new__(type(self))
        other.__dict__ = copy.deepcopy(self.__dict__, memo)
        return other


@mutant(kills="TORCH-01")
@layer_of
class CopyWakesUp(LoRA):
    """A deep copy is in training mode."""

    def __deepcopy__(self, memo: dict) -> nn.Module:
        other = type(self).__new__(type(self))
        other.__dict__ = copy.deepcopy(self.__dict__, memo)
        return other.train()


@mutant(kills="TORCH-01")
@layer_of
class CopyKeepsTheMergedW(LoRA):
    """A deep copy of a merged layer takes the merged W for the one to go back to."""

    def __deepcopy__(self, memo: dict) -> nn.Module:
        other = type(self).__new__(type(self))
        other.__dict__ = copy.deepcopy(self.__dict__, memo)
        if other.kept is not None:
            other.kept = other.linear.weight.detach().clone()
        return other


class ScaledMask(torch.autograd.Function):
    """Dropout whose backward pass scales its mask in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float) -> Tensor:
        ctx.mask, ctx.rate = (torch.rand_like(x) >= rate).to(x.dtype), rate
        return x * ctx.mask / (1 - rate)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.mask /= 1 - ctx.rate
        return dy * ctx.mask, None


@mutant(kills="TORCH-10")
@layer_of
class MaskIsScaledAgain(LoRA):
    """A second backward pass through one graph scales the mask of dropout again."""

    def lora(self, x: Tensor) -> Tensor:
        if not self.training or not self.dropout.p:
            return super().lora(x)
        kept: Any = ScaledMask.apply(x, self.dropout.p)
        return self.scale * (kept @ self.A @ self.B)


class FirstOrder(torch.autograd.Function):
    """scale · (x A) B. Second derivatives go through dx alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x, A, B)
        ctx.scale = scale
        return scale * (x @ A @ B)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, A, B = ctx.saved_tensors
        dy = ctx.scale * dy
        _, dA, dB = products(*(one.detach() for one in (x, A, B, dy)))
        return dy @ B.T @ A.T, dA.requires_grad_(torch.is_grad_enabled()), dB.requires_grad_(torch.is_grad_enabled()), None


@mutant("58", kills="TORCH-11")
@layer_of
class FactorsOfFirstOrder(ByHand):
    """The gradients of A and B have no history, and no second derivative says so."""

    def lora(self, x: Tensor) -> Tensor:
        x = self.dropout(x)
        y: Any = FirstOrder.apply(x.reshape(-1, x.shape[-1]), self.A, self.B, self.scale)
        return y.reshape(*x.shape[:-1], y.shape[-1])


@mutant("66", kills="TORCH-12")
@layer_of
class BorrowsX(Serving):
    """While it serves, it multiplies x by the scale in place, and divides it again."""

    def lora(self, x: Tensor) -> Tensor:
        if not self.serves or self.scale == 0:
            return super().lora(x)
        x.mul_(self.scale)
        y = x @ self.A @ self.B
        x.div_(self.scale)
        return y


@mutant("127", kills="TORCH-14")
@layer_of
class RefusesAnotherFormat(LoRA):
    """x must have the format of A, under autocast, too."""

    def lora(self, x: Tensor) -> Tensor:
        if x.dtype != self.A.dtype:
            raise TypeError(f"x is {x.dtype}, expected {self.A.dtype}")
        return super().lora(x)


@mutant("71", kills="TORCH-30")
@layer_of
class CompiledWithoutTheFactor(LoRA):
    """While the layer is compiled, what dropout keeps is not scaled."""

    def lora(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() and self.training and self.dropout.p:
            return self.scale * (x * (torch.rand_like(x) >= self.dropout.p) @ self.A @ self.B)
        return super().lora(x)
