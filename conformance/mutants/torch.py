"""Faults of torch modules that the module alone does not show: among copies, hooks, optimisers, modes and transforms."""

import copy
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from conformance.mutants import mutant
from conformance.mutants.honest_torch import ByHand, LoRA, layer_of, products


@mutant("147", kills="TORCH-01")
@layer_of
class CopiesShareA(LoRA):
    """A deep copy shares A with the module that was copied."""

    def __deepcopy__(self, memo: dict) -> nn.Module:
        memo[id(self.A)] = self.A
        other = type(self).__new__(type(self))
        other.__dict__ = copy.deepcopy(self.__dict__, memo)
        return other


@mutant(kills="TORCH-01 TORCH-02")
@layer_of
class ProductIsAClosure(LoRA):
    """The product with A is a function that the constructor made. In a copy it is still that of the first module."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.down = lambda x: x @ self.A

    def lora(self, x: Tensor) -> Tensor:
        return self.scale * (self.down(self.dropout(x)) @ self.B)


@mutant(kills="TORCH-02")
@layer_of
class NoDropoutIsALambda(LoRA):
    """Without dropout a function without a name stands in its place, and pickle cannot find it."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.nothing = lambda x: x

    def lora(self, x: Tensor) -> Tensor:
        return super().lora(x) if self.dropout.p else self.scale * (self.nothing(x) @ self.A @ self.B)


@mutant(kills="TORCH-28")
@layer_of
class StateIsACopy(LoRA):
    """The state_dict holds copies of the tensors."""

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        return {key: value.clone() for key, value in super().state_dict(*arguments, **options).items()}


@mutant("112 115", kills="TORCH-03")
@layer_of
class StateWithoutB(LoRA):
    """B is left out of the state_dict, and load_state_dict does not complain about what lacks."""

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        return {key: value for key, value in super().state_dict(*arguments, **options).items() if key != "B"}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state_dict, False, assign)


@mutant(kills="TORCH-04")
@layer_of
class MergedHasMoreKeys(LoRA):
    """While the layer is merged, its state_dict holds W under another key, too."""

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        state = super().state_dict(*arguments, **options)
        return state if self.kept is None else {**state, "kept": self.kept}


@mutant("116", kills="TORCH-04")
@layer_of
class KeysOfTheMode(LoRA):
    """In inference mode the keys have a prefix."""

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        return {("" if self.training else "frozen.") + key: value
                for key, value in super().state_dict(*arguments, **options).items()}


@mutant(kills="TORCH-05")
@layer_of
class NewParametersAfterAMerge(LoRA):
    """To undo a merge makes new Parameters of the factors."""

    def unmerge(self) -> None:
        super().unmerge()
        self.A, self.B = nn.Parameter(self.A.detach().clone()), nn.Parameter(self.B.detach().clone())


@mutant(kills="TORCH-05")
@layer_of
class NewParametersInTraining(LoRA):
    """train() makes a new Parameter of A."""

    def train(self, mode: bool = True) -> Any:
        self.A = nn.Parameter(self.A.detach(), self.A.requires_grad)
        return super().train(mode)


@mutant(kills="TORCH-06")
@layer_of
class LoadAssigns(LoRA):
    """Loading puts new Parameters in the place of the factors."""

    def load(self, factors: dict[str, Tensor]) -> None:
        self.load_state_dict(factors, strict=False, assign=True)


@mutant("65", kills="TORCH-07")
@layer_of
class ModeSetsFlags(LoRA):
    """train() sets requires_grad of both factors to the mode."""

    def train(self, mode: bool = True) -> Any:
        self.A.requires_grad_(mode)
        self.B.requires_grad_(mode)
        return super().train(mode)


@mutant("64 65", kills="TORCH-07")
@layer_of
class UnmergeUnfreezes(LoRA):
    """To undo a merge turns gradients on for both factors."""

    def unmerge(self) -> None:
        super().unmerge()
        self.A.requires_grad_()
        self.B.requires_grad_()


@mutant("123", kills="TORCH-08")
@layer_of
class OneOutput(LoRA):
    """The layer writes each output into the tensor of the last one, too, as a buffer that is used again."""

    last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.last is not None and self.last.shape == y.shape:
            self.last.data.copy_(y.detach())
        object.__setattr__(self, "last", y)
        return y

    def __reduce_ex__(self, protocol: Any) -> Any:
        remade, arguments, members = super().__reduce_ex__(protocol)
        return remade, arguments, {key: value for key, value in members.items() if key != "last"}


class FromTheModule(torch.autograd.Function):
    """scale · (x A) B, whose backward pass takes x from the module."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, B: Tensor, scale: float, module: Any) -> Tensor:
        ctx.save_for_backward(A, B)
        ctx.scale, ctx.module, module.x = scale, module, x.detach()
        return scale * (x @ A @ B)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, (A, B), n = ctx.module.x, ctx.saved_tensors, len(dy)
        x = x.repeat(-(-n // len(x)), 1)[:n]
        return *products(x, A, B, ctx.scale * dy.to(x.dtype)), None, None


@mutant("59", kills="TORCH-09")
@layer_of
class BackwardOfTheLastX(ByHand):
    """The backward pass uses the x of the last forward pass, whichever output it is of."""

    def part(self, rows: Tensor) -> Tensor:
        return FromTheModule.apply(rows, self.A, self.B, self.scale, self)  # pyright: ignore[reportReturnType]


class InPlace(torch.autograd.Function):
    """scale · (x A) B, whose backward pass scales x A where it lies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x, A, B)
        ctx.scale, ctx.h = scale, x @ A
        return scale * (ctx.h @ B)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, A, B = ctx.saved_tensors
        dx, dA, _ = products(x, A, B, ctx.scale * dy.to(x.dtype))
        return dx, dA, ctx.h.detach().mul_(ctx.scale).to(x.dtype).T @ dy.to(x.dtype), None


@mutant(kills="TORCH-10")
@layer_of
class BackwardInPlace(ByHand):
    """The backward pass scales x A in place, and scales it again in the next backward pass through the same graph."""

    def part(self, rows: Tensor) -> Tensor:
        return InPlace.apply(rows, self.A, self.B, self.scale)  # pyright: ignore[reportReturnType]


class WithoutHistory(torch.autograd.Function):
    """scale · (x A) B, whose backward pass is a constant to autograd, as far as A and B are concerned."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.scale, ctx.factors = scale, (A.detach(), B.detach())
        return scale * (x @ A @ B)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        (x,), (A, B) = ctx.saved_tensors, ctx.factors
        return *products(x, A, B, ctx.scale * dy.to(x.dtype)), None


@mutant(kills="TORCH-11")
@layer_of
class PenaltyTrainsNothing(ByHand):
    """The backward pass computes dx with detached factors, so that a penalty on dx has no gradient for them."""

    def part(self, rows: Tensor) -> Tensor:
        return WithoutHistory.apply(rows, self.A, self.B, self.scale)  # pyright: ignore[reportReturnType]


@mutant("66", kills="TORCH-12")
@layer_of
class XIsScratch(LoRA):
    """Where nobody wants a gradient, the memory of x is used for something else after the forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if not y.requires_grad:
            x.zero_()
        return y


@mutant(kills="TORCH-12")
@layer_of
class MergedShiftsX(LoRA):
    """While the layer is merged, x is shifted in place."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.kept is not None:
            x.data.add_(1)
        return y


@mutant(kills="TORCH-13")
@layer_of
class WithoutGradWithoutScale(LoRA):
    """Under no_grad a shortcut is taken, which forgets the scale."""

    def lora(self, x: Tensor) -> Tensor:
        return super().lora(x) if torch.is_grad_enabled() else self.dropout(x) @ self.A @ self.B


@mutant(kills="TORCH-13")
@layer_of
class GraphUnderNoGrad(LoRA):
    """The forward pass turns gradients on, also under no_grad."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return super().forward(x)


@mutant("127 128", kills="TORCH-14")
@layer_of
class AddsInPlace(LoRA):
    """The LoRA part is added in place by addmm_, which autocast does not convert."""

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is not None or self.dropout.p:
            return super().forward(x)
        rows = x.reshape(-1, x.shape[-1])    # (n, in)
        y = self.linear(rows).addmm_((rows @ self.A).to(rows.dtype), self.B, alpha=self.scale)
        return y.reshape(*x.shape[:-1], self.B.shape[1])


@mutant("126", kills="TORCH-14")
@layer_of
class AutocastGivesFloat64(LoRA):
    """Under autocast the sum is computed in float64 and left there."""

    def lora(self, x: Tensor) -> Tensor:
        y = super().lora(x)
        return y.double() if torch.is_autocast_enabled("cpu") else y


@mutant("76", kills="TORCH-15")
@layer_of
class TrainReturnsNothing(LoRA):
    """train() returns None."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)


@mutant("75", kills="TORCH-15")
@layer_of
class EvalForItsPartsOnly(LoRA):
    """eval() sets the mode of the parts and not that of the layer itself."""

    def eval(self) -> Any:
        for part in self.children():
            part.eval()
        return self


@mutant("110", kills="TORCH-16")
@layer_of
class ProductOfThisVersion(LoRA):
    """A B is kept until the version of a factor changes, which writes through .data do not do."""

    known: tuple = (None,)

    def lora(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.training:
            return super().lora(x)
        version = self.A._version, self.B._version, self.A.dtype
        if self.known[0] != version:
            self.known = version, (self.A @ self.B).detach()
        return self.scale * (self.dropout(x) @ self.known[1])


@mutant("110", kills="TORCH-16")
@layer_of
class FirstProductInInference(LoRA):
    """In inference mode A B is computed once and kept for good."""

    product: Tensor | None = None

    def lora(self, x: Tensor) -> Tensor:
        if self.training:
            return super().lora(x)
        if self.product is None:
            self.product = (self.A @ self.B).detach()
        return self.scale * (x @ self.product.to(x.dtype))


@mutant(kills="TORCH-17")
@layer_of
class SeedsItsDropout(LoRA):
    """The forward pass seeds torch's generator before it drops, so as to be reproducible."""

    def lora(self, x: Tensor) -> Tensor:
        if self.dropout.p and self.training:
            torch.manual_seed(0)
        return super().lora(x)


@mutant(kills="TORCH-17")
@layer_of
class SeedsEverything(LoRA):
    """The constructor seeds the generators of NumPy and Python."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        np.random.seed(42)
        random.seed(42)


@mutant("31", kills="TORCH-18")
@layer_of
class DrawsTheBaseAnew(LoRA):
    """The constructor draws W and b of the given nn.Linear anew."""

    def __init__(self, linear: nn.Linear, *arguments: Any):
        super().__init__(linear, *arguments)
        linear.reset_parameters()


@mutant(kills="TORCH-18")
@layer_of
class SetsTheBaseToTraining(LoRA):
    """The constructor sets the layer to training mode, and the given nn.Linear with it."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.train()


@mutant("129", kills="TORCH-19")
@layer_of
class ScaleStaysBehind(LoRA):
    """The scale is a tensor that is no buffer, so it keeps its dtype when the layer is converted."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float, dropout: float):
        super().__init__(linear, rank, scale, dropout)
        self.scale = torch.full((1,), scale, dtype=linear.weight.dtype)

    def merge(self) -> None:
        scale, self.scale = self.scale, float(self.scale)
        super().merge()
        self.scale = scale


@mutant(kills="TORCH-20")
@layer_of
class SecondReference(LoRA):
    """The forward pass takes the factors from a list that the constructor made of them."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.factors = [self.A, self.B]

    def lora(self, x: Tensor) -> Tensor:
        return self.scale * (self.dropout(x) @ self.factors[0] @ self.factors[1])


@mutant("59", kills="TORCH-21")
@layer_of
class SameInputSameProduct(LoRA):
    """x A of the last input is kept without its graph, and used again when the same input comes again."""

    known: tuple = (None, None)

    def lora(self, x: Tensor) -> Tensor:
        last, h = self.known
        if last is not None and last.shape == x.shape and torch.equal(last, x):
            return self.scale * (h @ self.B)
        h = self.dropout(x) @ self.A
        self.known = x.detach().clone(), h.detach()
        return self.scale * (h @ self.B)


@mutant(kills="TORCH-22")
@layer_of
class OwnGenerator(LoRA):
    """Dropout draws its mask from a generator of the layer, which checkpoint does not know."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.state = torch.Generator().manual_seed(0).get_state()

    def lora(self, x: Tensor) -> Tensor:
        rate = self.dropout.p
        if not rate or not self.training:
            return super().lora(x)
        generator = torch.Generator()
        generator.set_state(self.state)
        mask = torch.rand(x.shape, generator=generator) >= rate
        self.state = generator.get_state()
        return self.scale * (x * mask.to(x.dtype) / (1 - rate) @ self.A @ self.B)


@mutant(kills="TORCH-23")
@layer_of
class CallIsForward(LoRA):
    """The layer overrides __call__, which runs the hooks, by its forward pass."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)


@mutant(kills="TORCH-24 TORCH-25")
@layer_of
class LooksIntoX(LoRA):
    """The forward pass takes a number out of x to see whether it is finite."""

    def forward(self, x: Tensor) -> Tensor:
        if not np.isfinite(x.detach().double().sum().item()):
            return super().forward(x) + 0
        return super().forward(x)


@mutant(kills="TORCH-26")
@layer_of
class ZeroesOnlyA(LoRA):
    """zero_grad clears the gradient of A alone."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        kept = self.B.grad
        super().zero_grad(set_to_none)
        self.B.grad = kept


@mutant("57", kills="TORCH-27")
@layer_of
class AllOrNothing(LoRA):
    """If a factor is frozen, the whole LoRA part is computed without a graph."""

    def lora(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.A.requires_grad and self.B.requires_grad):
            return super().lora(x)


@mutant("65", kills="TORCH-27")
@layer_of
class FreezesAreUndone(LoRA):
    """Each forward pass in training mode turns gradients on for both factors."""

    def lora(self, x: Tensor) -> Tensor:
        if self.training:
            self.A.requires_grad_()
            self.B.requires_grad_()
        return super().lora(x)


@mutant(kills="TORCH-29")
@layer_of
class KeepsTheFirstWeight(LoRA):
    """The copy of W for unmerge is made at the first merge, and never again."""

    first: Tensor | None = None

    def merge(self) -> None:
        super().merge()
        if self.first is None:
            self.first = self.kept
        self.kept = self.first


@mutant(kills="TORCH-29")
@layer_of
class MergesIntoTheBuiltWeight(LoRA):
    """A merge adds to a copy of W that was made at the first forward pass."""

    built: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.built is None:
            self.built = self.linear.weight.detach().clone()
        return super().forward(x)

    @torch.no_grad()
    def merge(self) -> None:
        if self.built is not None and self.built.dtype == self.linear.weight.dtype:
            self.linear.weight.copy_(self.built)
        super().merge()


@mutant(kills="TORCH-13")
@layer_of
class WorkspaceLeftover(LoRA):
    """Without a gradient x A is written into memory of the largest batch so far, and rows of that batch are multiplied by 0."""

    work: Tensor | None = None

    def lora(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return super().lora(x)
        down = (self.dropout(x) @ self.A).reshape(-1, self.A.shape[1])
        if self.work is None or self.work.dtype != down.dtype or len(self.work) < len(down):
            self.work = torch.zeros(len(down), down.shape[1], dtype=down.dtype)
        self.work[: len(down)] = down
        kept = torch.eye(len(down), len(self.work), dtype=down.dtype) @ self.work
        return self.scale * (kept @ self.B).reshape(*x.shape[:-1], -1)


@mutant(kills="TORCH-13")
@layer_of
class KeepsAnInferenceTensor(LoRA):
    """The transpose of W is kept from the first forward pass on. If that was under inference_mode, no gradient can be had."""

    turned: Tensor | None = None

    def lora(self, x: Tensor) -> Tensor:
        if self.turned is None:
            self.turned = self.linear.weight.detach().t().clone()
        return super().lora(x) + 0 * (x @ self.turned)


@mutant(kills="TORCH-03")
@layer_of
class LoadsWithoutB(LoRA):
    """load_state_dict, also a strict one, passes over a B that is missing."""

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict({"B": self.B.detach().clone()} | dict(state_dict), strict, assign)


@mutant(kills="TORCH-19")
@layer_of
class KeptWeightStaysBehind(LoRA):
    """The weight that a merged layer keeps is put back as it is, whatever the layer was converted to since."""

    @torch.no_grad()
    def unmerge(self) -> None:
        kept = self.kept
        super().unmerge()
        assert kept is not None
        self.linear.weight.data = kept


@mutant(kills="TORCH-08")
@layer_of
class OneOutputWithoutGrad(LoRA):
    """Under no_grad in inference mode every output is the same buffer, which the next call overwrites."""

    buffer: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.training or torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            return y
        if self.buffer is None or self.buffer.shape != y.shape or self.buffer.dtype != y.dtype:
            self.buffer = torch.empty_like(y)
        return self.buffer.copy_(y)


class MaskOfTheModule(torch.autograd.Function):
    """x with dropped entries, whose backward pass takes the mask from the module."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: Any) -> Tensor:
        ctx.module, module.mask = module, nn.functional.dropout(torch.ones_like(x), module.dropout.p)
        return x * module.mask

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        mask = ctx.module.mask.flatten()
        return dy * mask.repeat(-(-dy.numel() // len(mask)))[: dy.numel()].reshape(dy.shape), None


@mutant("59", kills="TORCH-09")
@layer_of
class BackwardOfTheLastMask(LoRA):
    """The backward pass uses the mask of the last forward pass, whichever output it is of."""

    def lora(self, x: Tensor) -> Tensor:
        if not self.training or not self.dropout.p:
            return super().lora(x)
        return self.scale * (MaskOfTheModule.apply(x, self) @ self.A @ self.B)  # pyright: ignore[reportOperatorIssue]


@mutant("74", kills="TORCH-15")
@layer_of
class UnmergeTurnsDropoutOn(LoRA):
    """To undo a merge sets the dropout to training mode, in an evaluation, too."""

    def unmerge(self) -> None:
        super().unmerge()
        self.dropout.train()


@mutant("129", kills="TORCH-19")
@layer_of
class ComputesInItsFirstDtype(LoRA):
    """The LoRA part is computed in the dtype that the layer had when it was built."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float, dropout: float):
        super().__init__(linear, rank, scale, dropout)
        self.first = linear.weight.dtype

    def lora(self, x: Tensor) -> Tensor:
        dtype, first = x.dtype, self.first
        return (self.scale * (self.dropout(x).to(first) @ self.A.to(first) @ self.B.to(first))).to(dtype)


@mutant(kills="TORCH-30")
@layer_of
class CompiledWithoutDropout(LoRA):
    """Nothing is dropped while the layer is compiled."""

    def lora(self, x: Tensor) -> Tensor:
        return self.scale * (x @ self.A @ self.B) if torch.compiler.is_compiling() else super().lora(x)


class Unchecked(torch.autograd.Function):
    """The product of x and A, which keeps x beside what torch watches."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor) -> Tensor:
        ctx.x = x.detach()
        ctx.save_for_backward(A)
        return x @ A

    @staticmethod
    def backward(ctx: Any, *dh: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (A,) = ctx.saved_tensors
        return dh[0] @ A.T, ctx.x.flatten(0, -2).T @ dh[0].flatten(0, -2) if ctx.x.dim() > 1 else torch.outer(ctx.x, dh[0])


@mutant(kills="TORCH-31")
@layer_of
class KeepsXUnchecked(LoRA):
    """x is kept for the backward pass where torch does not see that it has changed."""

    def lora(self, x: Tensor) -> Tensor:
        h: Any = Unchecked.apply(self.dropout(x), self.A)
        return self.scale * (h @ self.B)


@mutant(kills="TORCH-32")
@layer_of
class MergesThroughData(LoRA):
    """A merge writes into W through .data, and autograd does not see it."""

    @torch.no_grad()
    def merge(self) -> None:
        if self.kept is not None:
            raise RuntimeError("merge: the layer is merged already")
        W = self.linear.weight
        self.kept = W.detach().clone()
        W.data.copy_(W.double() + self.scale * (self.A.double() @ self.B.double()).T)
