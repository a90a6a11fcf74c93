"""Faults of torch modules to which something happens: they are copied, frozen, moved, loaded in part, or differentiated in
another way."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from conformance.mutants import mutant
from conformance.mutants.honest_torch import LoRA, layer_of, products


class Copied(LoRA):
    """A copy is made by the class itself, and then changed."""

    def __deepcopy__(self, memo: dict) -> nn.Module:
        other = type(self).__new__(type(self))
        other.__dict__ = copy.deepcopy(self.__dict__, memo)
        other.change()
        return other

    def change(self) -> None:
        raise NotImplementedError


@mutant("147", kills="TORCH-43")
@layer_of
class CopyForgetsTheRate(Copied):
    """A deep copy has no dropout."""

    def change(self) -> None:
        self.dropout.p = 0.0


@mutant("147", kills="TORCH-43")
@layer_of
class CopyTrainsEverything(Copied):
    """In a deep copy W and b train."""

    def change(self) -> None:
        self.linear.requires_grad_(True)


@mutant("123 147", kills="TORCH-43")
@layer_of
class KeepsTheLastPass(LoRA):
    """The output of the last pass stays on the module, with its graph, which cannot be copied."""

    last: Any = None

    def lora(self, x: Tensor) -> Tensor:
        self.last = super().lora(x)
        return self.last


@mutant("57", kills="TORCH-44")
@layer_of
class LooksOnceWhatTrains(LoRA):
    """Which factors train is looked up in the first pass."""

    trains: Any = None

    def lora(self, x: Tensor) -> Tensor:
        self.trains = self.trains or [own.requires_grad for own in (self.A, self.B)]
        A, B = (own if trains else own.detach() for own, trains in zip((self.A, self.B), self.trains, strict=True))
        return self.scale * (self.dropout(x) @ A @ B)


@mutant("110", kills="TORCH-44")
@layer_of
class FrozenProductIsKept(LoRA):
    """While both factors are frozen, their product is computed once."""

    product: Any = None

    def lora(self, x: Tensor) -> Tensor:
        if self.A.requires_grad or self.B.requires_grad:
            self.product = None
            return super().lora(x)
        self.product = self.A @ self.B if self.product is None else self.product
        return self.scale * (self.dropout(x) @ self.product)


@mutant(kills="TORCH-45")
@layer_of
class BiasGetsTheMean(LoRA):
    """A bias that was made to train gets the mean over the rows, and not the sum."""

    def forward(self, x: Tensor) -> Tensor:
        y, b = super().forward(x), self.linear.bias
        if b is None or not b.requires_grad:
            return y
        return y - b + b.detach() + (b - b.detach()) / max(1, x[..., 0].numel())


@mutant("59", kills="TORCH-46 TORCH-60")
@layer_of
class AddsToGradItself(LoRA):
    """The gradient of A is added to A.grad in the backward pass, and autograd gets none."""

    def lora(self, x: Tensor) -> Tensor:
        if not self.A.requires_grad or not torch.is_grad_enabled():
            return super().lora(x)
        A = self.A.detach().requires_grad_()
        A.register_hook(self.add)
        return self.scale * (self.dropout(x) @ A @ self.B)

    def add(self, gradient: Tensor) -> None:
        self.A.grad = gradient.clone() if self.A.grad is None else self.A.grad + gradient


@mutant("59", kills="TORCH-47")
@layer_of
class DxInABuffer(LoRA):
    """dx is written into a buffer that the layer keeps."""

    memory: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            x = x.view_as(x)
            x.register_hook(self.written)
        return super().forward(x)

    def written(self, dx: Tensor) -> Tensor:
        if self.memory is None or self.memory.shape != dx.shape or self.memory.dtype != dx.dtype:
            self.memory = torch.empty_like(dx)
        return self.memory.copy_(dx)


@mutant("127", kills="TORCH-48")
@layer_of
class NoDropoutUnderAutocast(LoRA):
    """Under autocast the LoRA part has a way of its own, without dropout."""

    def lora(self, x: Tensor) -> Tensor:
        return self.scale * (x @ self.A @ self.B) if torch.is_autocast_enabled("cpu") else super().lora(x)


@mutant("110 127", kills="TORCH-48")
@layer_of
class KeepsTheCastOfW(LoRA):
    """Under autocast W is converted once."""

    cast: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        self.cast = self.linear.weight.bfloat16() if self.cast is None else self.cast
        y = nn.functional.linear(x, self.cast, self.linear.bias)
        return y if self.kept is not None else y + self.lora(x)


@mutant(kills="TORCH-49")
@layer_of
class MergesIntoAFlatW(LoRA):
    """A merge adds to W.reshape(-1), which is a copy where W lies column by column."""

    @torch.no_grad()
    def merge(self) -> None:
        W = self.linear.weight
        self.kept = W.clone()
        W.reshape(-1).add_((self.scale * (self.A.double() @ self.B.double())).T.reshape(-1).to(W.dtype))


@mutant("71", kills="TORCH-50")
@layer_of
class FactorOfTheFirstRate(LoRA):
    """The factor 1 / (1 − p) is that of the rate which the constructor got."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.factor = 1 / (1 - self.dropout.p)

    def lora(self, x: Tensor) -> Tensor:
        if self.training and self.factor != 1:
            x = x * (torch.rand_like(x) >= self.dropout.p) * self.factor
        return self.scale * (x @ self.A @ self.B)


class Scaled(torch.autograd.Function):
    """scale · h, with a rule for forward-mode derivatives that lacks the scale."""

    @staticmethod
    def forward(h: Tensor, scale: float) -> Tensor:
        return scale * h

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.scale = inputs[1]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return ctx.scale * dy, None

    @staticmethod
    def jvp(ctx: Any, h: Tensor, _: Any) -> Tensor:
        return h


@mutant("58", kills="TORCH-51")
@layer_of
class ForwardModeWithoutScale(LoRA):
    """The forward-mode derivative lacks the scale."""

    def lora(self, x: Tensor) -> Tensor:
        return Scaled.apply(self.dropout(x) @ self.A @ self.B, self.scale)  # pyright: ignore[reportReturnType]


@mutant(kills="TORCH-52")
@layer_of
class OneGraphForAllStates(LoRA):
    """Compiled, it adds the LoRA part also while it is merged, so that there is one graph."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.lora(x) if torch.compiler.is_compiling() else super().forward(x)


@mutant("115", kills="TORCH-53")
@layer_of
class LoadBeginsFromNothing(LoRA):
    """A load that does not hold B makes B zero."""

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *arguments: Any) -> None:
        if f"{prefix}B" not in state_dict:
            nn.init.zeros_(self.B)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


@mutant("110", kills="TORCH-54")
@layer_of
class LoadStaysMerged(LoRA):
    """After a load the layer counts as merged, as before, and W is that of the file."""

    def _load_from_state_dict(self, *arguments: Any) -> None:
        nn.Module._load_from_state_dict(self, *arguments)


@mutant("26", kills="TORCH-55")
@layer_of
class DrawsAAlone(LoRA):
    """reset_parameters draws A anew, and leaves B."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.A)


@mutant("115", kills="TORCH-56")
@layer_of
class RanksInNoState(LoRA):
    """Which ranks are in use is a buffer that is not in the state_dict."""

    used: Tensor

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.register_buffer("used", torch.ones_like(self.B[:, 0]), persistent=False)

    def lora(self, x: Tensor) -> Tensor:
        return self.scale * (self.dropout(x) @ (self.A * self.used) @ self.B)


@mutant("123", kills="TORCH-57")
@layer_of
class GivesItsLastOutputAgain(LoRA):
    """While nothing has changed, the output of the last pass is given again."""

    known: Any = None

    def forward(self, x: Tensor) -> Tensor:
        now = [(id(own), own._version) for own in (x, *self.parameters())] + [self.training, torch.is_grad_enabled()]
        if self.known is None or self.known[0] != now or self.dropout.p:
            self.known = now, super().forward(x), x
        return self.known[1]


@mutant("123", kills="TORCH-58")
@layer_of
class ComputesInTheDefaultDtype(LoRA):
    """The LoRA part is computed in the default dtype."""

    def lora(self, x: Tensor) -> Tensor:
        x, A, B = (tensor.to(torch.get_default_dtype()) for tensor in (self.dropout(x), self.A, self.B))
        return (self.scale * (x @ A @ B)).to(self.A.dtype)


@mutant("123", kills="TORCH-59")
@layer_of
class LeavesHOnTheModule(LoRA):
    """x A is left on the module, from where the next step takes it."""

    h: Any = None

    def lora(self, x: Tensor) -> Tensor:
        self.h = self.dropout(x) @ self.A
        B = self.B * self.scale
        return self.h @ B


@mutant("110", kills="TORCH-61")
@layer_of
class MergesItsOwnMemory(LoRA):
    """A and B are views of one vector that the module keeps, and a merge reads that."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.memory = torch.cat([self.A.detach().reshape(-1), self.B.detach().reshape(-1)])
        for own, part in zip((self.A, self.B), self.parts(), strict=True):
            own.data = part

    def parts(self) -> list[Tensor]:
        A, B = self.memory.split([self.A.numel(), self.B.numel()])
        return [A.view_as(self.A), B.view_as(self.B)]

    @torch.no_grad()
    def merge(self) -> None:
        (A, B), W = self.parts(), self.linear.weight
        self.kept = W.clone()
        W.copy_(W.double() + self.scale * (A.double() @ B.double()).T)


@mutant("110", kills="TORCH-62")
@layer_of
class KeepsTheFirstW(LoRA):
    """The copy of W that unmerge restores is made by the first merge alone."""

    first: Any = None

    @torch.no_grad()
    def unmerge(self) -> None:
        self.first = self.kept if self.first is None else self.first
        super().unmerge()
        self.linear.weight.copy_(self.first)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.first = None


@mutant(kills="TORCH-63")
@layer_of
class SetsItsForward(LoRA):
    """The way of a merged layer, and then the usual one, is put at self.forward."""

    def merge(self) -> None:
        super().merge()
        self.__dict__["forward"] = self.linear.forward

    def unmerge(self) -> None:
        super().unmerge()
        self.__dict__["forward"] = super().forward


@mutant("61", kills="GRAD-22")
@layer_of
class DxWithTheStridesOfX(LoRA):
    """dx is written into memory with the strides of x, in which rows may overlap."""

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled() and 0 not in x.stride():
            sizes, strides, x = x.shape, x.stride(), x.view_as(x)
            x.register_hook(lambda dx: dx.new_empty(0).new_empty_strided(sizes, strides).copy_(dx))
        return super().forward(x)


@mutant("126", kills="DTYPE-12")
@layer_of
class CutsOff(LoRA):
    """What is too large for the format becomes its largest number."""

    def lora(self, x: Tensor) -> Tensor:
        most = torch.finfo(x.dtype).max
        A, B = self.A.view_as(self.A), self.B.view_as(self.B)
        for factor in (A, B):
            if factor.requires_grad and torch.is_grad_enabled():
                factor.register_hook(lambda gradient: gradient.nan_to_num(nan=torch.nan, posinf=most, neginf=-most))
        return self.scale * (self.dropout(x) @ A @ B)


@mutant("71", kills="TORCH-50")
@layer_of
class SecondReferenceToDropout(LoRA):
    """The nn.Dropout that the constructor made is used, whatever stands in its place."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.drops = [self.dropout]

    def lora(self, x: Tensor) -> Tensor:
        self.drops[0].train(self.training)
        return self.scale * (self.drops[0](x) @ self.A @ self.B)


@mutant("115", kills="TORCH-36")
@layer_of
class NoPrefixWhileMerged(LoRA):
    """While the layer is merged its state_dict has W as it was, under a key without a prefix."""

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.kept is not None:
            destination["linear.weight"] = self.kept


@mutant(kills="TORCH-39")
@layer_of
class LooksForBAmongParameters(LoRA):
    """A layer that has no Parameter B counts as one without an adapter."""

    def lora(self, x: Tensor) -> Tensor:
        return super().lora(x) if "B" in self._parameters else 0 * self.linear(x)


@mutant("147", kills="TORCH-01")
@layer_of
class CopiesFactorsByItself(Copied):
    """A deep copy makes its factors anew, and not by the memo of what is copied already."""

    def change(self) -> None:
        self.A, self.B = (nn.Parameter(own.detach().clone()) for own in (self.A, self.B))


@mutant(kills="TORCH-13")
@layer_of
class NoGraphInInference(LoRA):
    """In inference mode no graph is kept, also in grad mode."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
            return super().forward(x)


@mutant("126", kills="TORCH-14")
@layer_of
class AutocastThroughFloat16(LoRA):
    """Under autocast the LoRA part is computed in float16, also where autocast is to bfloat16."""

    def lora(self, x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):
            return super().lora(x)
        with torch.autocast("cpu", torch.float16):
            return super().lora(x).to(torch.get_autocast_dtype("cpu"))


@mutant("129", kills="TORCH-19")
@layer_of
class MergesInItsFirstDtype(LoRA):
    """The product of a merge is computed in the dtype that the layer had when it was built."""

    def __init__(self, linear: nn.Linear, *arguments: Any):
        super().__init__(linear, *arguments)
        self.first = linear.weight.dtype

    @torch.no_grad()
    def merge(self) -> None:
        exact = self.A.data
        self.A.data = exact.to(self.first).to(exact.dtype)
        super().merge()
        self.A.data = exact


@mutant("57", kills="TORCH-07")
@layer_of
class LoadsThaw(LoRA):
    """After a load both factors train."""

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self.A.requires_grad_()
        self.B.requires_grad_()


@mutant("57", kills="TORCH-07")
@layer_of
class UnmergeBringsFlagsBack(LoRA):
    """An unmerge brings back what trained when the layer was merged."""

    def merge(self) -> None:
        super().merge()
        self.trained = [parameter.requires_grad for parameter in self.parameters()]

    def unmerge(self) -> None:
        super().unmerge()
        for parameter, trained in zip(self.parameters(), self.trained, strict=True):
            parameter.requires_grad_(trained)


@mutant(kills="TORCH-21")
@layer_of
class CountsPasses(LoRA):
    """A merge is refused while a pass runs. A pass that a checkpoint ends early counts as one that runs for good."""

    running = 0

    def forward(self, x: Tensor) -> Tensor:
        self.running += 1
        y = super().forward(x)
        self.running -= 1
        return y

    def merge(self) -> None:
        if self.running:
            raise RuntimeError("merge: a pass is running")
        super().merge()


class DyByHand(torch.autograd.Function):
    """y + b, with the gradient of b by hand."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, b: Tensor) -> Tensor:
        return y + b

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return dy, dy.sum(tuple(range(dy.dim() - 1)))  # of a vector: an empty tuple, which stands for all


@mutant(kills="TORCH-45")
@layer_of
class BiasOfAVector(LoRA):
    """The gradient of a bias that trains is summed over all dimensions but the last, and for a vector over that one, too."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        b = self.linear.bias
        return y if b is None or not b.requires_grad else DyByHand.apply(y - b.detach(), b)  # pyright: ignore[reportReturnType]


@mutant(kills="TORCH-49")
@layer_of
class BiasWithoutGaps(LoRA):
    """The bias is laid over the rows by strides of 0 and 1, whatever its own stride is."""

    def forward(self, x: Tensor) -> Tensor:
        b = self.linear.bias
        y = super().forward(x)
        return y if b is None else y - b.detach() + b.detach().as_strided(y.shape, (0,) * (y.dim() - 1) + (1,))


@mutant(kills="TORCH-52")
@layer_of
class MergedIsAConstant(LoRA):
    """Whether the layer is merged goes into a compiled pass as a constant."""

    @torch.compiler.assume_constant_result
    def merged(self) -> bool:
        return self.kept is not None

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y if self.merged() else y + self.lora(x)


@mutant("147", kills="TORCH-01")
@layer_of
class CopiesWithoutHooks(Copied):
    """A deep copy has no hooks."""

    def change(self) -> None:
        self._forward_hooks.clear()


@mutant("126", kills="TORCH-14")
@layer_of
class AutocastConvertsForGood(LoRA):
    """Under autocast the factors themselves are converted."""

    def lora(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            self.to(torch.get_autocast_dtype("cpu"))
            x = x.to(self.A.dtype)
        return super().lora(x)


@mutant("123", kills="TORCH-59")
@layer_of
class WaitsOnAStack(LoRA):
    """x waits on a stack of the layer while the base is computed. Passes of two threads that overlap exchange it."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.stack: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.stack.append(x)
        y = self.linear(x)
        x = self.stack.pop()
        return y if self.kept is not None else y + self.lora(x)


class DrawnInTheFormat(torch.autograd.Function):
    """scale · ((x ∘ mask) A) B. The backward pass draws the mask again, in the format of dy, on which the numbers depend."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, B: Tensor, scale: float, rate: float) -> Tensor:
        ctx.save_for_backward(x, A, B)
        ctx.seed, ctx.rate, ctx.scale = int(torch.randint(2**31, ())), rate, scale
        return scale * (x * mask_of(ctx.seed, rate, x.shape, x.dtype) @ A @ B)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, A, B = ctx.saved_tensors
        mask = mask_of(ctx.seed, ctx.rate, x.shape, dy.dtype).to(x.dtype)
        dx, dA, dB = products(x * mask, A, B, ctx.scale * dy.to(x.dtype))
        return dx * mask, dA, dB, None, None


def mask_of(seed: int, rate: float, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(seed + dtype.itemsize))
    return (drawn >= rate).to(dtype) / (1 - rate)


@mutant("70", kills="TORCH-48")
@layer_of
class MaskInTheFormat(LoRA):
    """The mask is drawn again in the backward pass, in the format of dy. Under autocast x has another one."""

    def lora(self, x: Tensor) -> Tensor:
        if not self.training or not self.dropout.p:
            return super().lora(x)
        rows = x.reshape(-1, x.shape[-1])
        part: Any = DrawnInTheFormat.apply(rows, self.A, self.B, self.scale, self.dropout.p)
        return part.reshape(*x.shape[:-1], -1)
