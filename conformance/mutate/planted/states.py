"""Faults of modes, of merging, and of what is saved and loaded."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .arrays import Arrays, multiple
from .catalogue import fault
from .patch import Pass, Patch

# --- modes -------------------------------------------------------------------------------------------------------------


@fault(kills="TORCH-13 GRAD-12 GRAD-02 STATE-09")
def eval_freezes_A(p: Patch) -> None:
    """After a time in inference mode A trains no more."""
    def train(old: Any, module: nn.Module, mode: bool = True) -> Any:
        result, arrays = old(module, mode), p.arrays(module)
        if not mode and arrays.whole:
            arrays.stored("A").requires_grad_(False)
        return result

    p.method("train", train)


@fault(kills="PARAM-02 GRAD-10 STATE-09 GRAD-12")
def train_thaws_the_base(p: Patch) -> None:
    """train() lets W train."""
    def train(old: Any, module: nn.Module, mode: bool = True) -> Any:
        result, arrays = old(module, mode), p.arrays(module)
        if mode and "W" in arrays and isinstance(arrays.stored("W"), nn.Parameter):
            arrays.stored("W").requires_grad_(True)
        return result

    p.method("train", train)


@fault(kills="TORCH-15")
def modes_give_nothing(p: Patch) -> None:
    """train() and eval() give None, and not the module."""
    def train(old: Any, module: nn.Module, mode: bool = True) -> None:
        old(module, mode)

    p.method("train", train)


@fault(kills="GRAD-15 STATE-09 FWD-12 FWD-01")
def pass_changes_A(p: Patch) -> None:
    """Every pass shrinks A in its place, as a normalisation would."""
    def change(one: Pass) -> Tensor:
        y = one.y(A=one.arrays["A"].clone())
        one.arrays.stored("A").data.mul_(0.5)
        return y

    p.forward(change)


# --- merging -----------------------------------------------------------------------------------------------------------


@fault(kills="MERGE-01 MERGE-03")
def merge_without_scale(p: Patch) -> None:
    """The merge adds A B without the scale."""
    def change(arrays: Arrays, before: Tensor, after: Tensor) -> Tensor:
        scale = multiple(after - before, (arrays["A"] @ arrays["B"]).t())
        return before + (after - before) / scale if scale else after

    p.merged(change)


@fault(kills="MERGE-01 MERGE-12 MERGE-03")
def merge_of_nothing(p: Patch) -> None:
    """The merge leaves W as it is, and the LoRA part is not added any more."""
    p.merged(lambda arrays, before, after: before)


@fault(kills="MERGE-01 MERGE-03")
def merge_subtracts(p: Patch) -> None:
    """The merge subtracts what it should add."""
    p.merged(lambda arrays, before, after: before - (after - before))


@fault(kills="MERGE-01 MERGE-03")
def merge_adds_twice(p: Patch) -> None:
    """The merge adds the LoRA part twice."""
    p.merged(lambda arrays, before, after: after + (after - before))


@fault(kills="MERGE-01 MERGE-15 MERGE-03")
def merge_reads_transposed(p: Patch) -> None:
    """The merge reads the memory of its product in the other layout."""
    p.merged(lambda arrays, before, after: before + (after - before).t().reshape(before.shape))


@fault(kills="MERGE-02 MERGE-04 MERGE-01")
def merge_in_bfloat16(p: Patch) -> None:
    """What is merged is rounded to bfloat16."""
    p.merged(lambda arrays, before, after: before + (after - before).to(torch.bfloat16).to(before.dtype))


@fault(kills="MERGE-05 STATE-09")
def second_merge_adds_again(p: Patch) -> None:
    """A merge of a merged layer adds the LoRA part once more."""
    def merge(old: Any, module: nn.Module, *arguments: Any, **options: Any) -> Any:
        arrays, kept = p.arrays(module), p.kept(module)
        if not arrays.whole or "W" not in arrays:
            return old(module, *arguments, **options)
        before = arrays["W"].detach().clone()
        result = old(module, *arguments, **options)
        added = arrays["W"].detach() - before
        if bool(added.any()):
            kept["added"] = added
        elif "added" in kept:
            arrays.write("W", arrays["W"].detach() + kept["added"])
        return result

    p.merge(merge)


@fault(kills="MERGE-03 MERGE-10 STATE-09")
def merged_adds_as_well(p: Patch) -> None:
    """A merged layer goes on adding the LoRA part."""
    def merge(old: Any, module: nn.Module, *arguments: Any, **options: Any) -> Any:
        arrays = p.arrays(module)
        before = arrays["W"].detach().clone() if "W" in arrays else None
        result = old(module, *arguments, **options)
        if before is not None and not torch.equal(before, arrays["W"]):
            p.kept(module)["added"] = arrays["W"].detach() - before
        return result

    def unmerge(old: Any, module: nn.Module, *arguments: Any, **options: Any) -> Any:
        p.kept(module).pop("added", None)
        return old(module, *arguments, **options)

    def forward(one: Pass) -> Tensor:
        added = one.kept.get("added")
        return one.y() if added is None else one.y() + one.x.to(added.dtype) @ added.t()

    if p.facts["merge"]:
        p.merge(merge)
        p.unmerge(unmerge)
        p.forward(forward)


@fault(kills="MERGE-09 MERGE-10 PARAM-02 STATE-09")
def merge_thaws_the_base(p: Patch) -> None:
    """After a merge W trains."""
    def change(arrays: Arrays, before: Tensor, after: Tensor) -> Tensor:
        stored = arrays.stored("W")
        if isinstance(stored, nn.Parameter):
            stored.requires_grad_(True)
        return after

    p.merged(change)


@fault(kills="MERGE-09 MERGE-03")
def merge_clears_the_bias(p: Patch) -> None:
    """The merge sets the bias to zero."""
    def change(arrays: Arrays, before: Tensor, after: Tensor) -> Tensor:
        if "b" in arrays:
            arrays.write("b", 0 * arrays["b"])
        return after

    p.merged(change)


def after_unmerge(p: Patch, change: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Gives W after an unmerge the value of `change(W merged, W unmerged)`."""
    def unmerge(old: Any, module: nn.Module, *arguments: Any, **options: Any) -> Any:
        arrays = p.arrays(module)
        if "W" not in arrays:
            return old(module, *arguments, **options)
        before = arrays["W"].detach().clone()
        result = old(module, *arguments, **options)
        after = arrays["W"].detach().clone()
        if not torch.equal(before, after):
            arrays.write("W", change(before, after))
        return result

    p.unmerge(unmerge)


@fault(kills="MERGE-06 STATE-09")
def unmerge_of_nothing(p: Patch) -> None:
    """The unmerge leaves the merged W, and the LoRA part is added again."""
    after_unmerge(p, lambda merged, unmerged: merged)


@fault(kills="MERGE-06 STATE-09")
def unmerge_subtracts_twice(p: Patch) -> None:
    """The unmerge subtracts the LoRA part twice."""
    after_unmerge(p, lambda merged, unmerged: unmerged - (merged - unmerged))


@fault(kills="MERGE-07 MERGE-06 STATE-12")
def unmerge_in_bfloat16(p: Patch) -> None:
    """W is rounded to bfloat16 by an unmerge."""
    after_unmerge(p, lambda merged, unmerged: unmerged.to(torch.bfloat16).to(unmerged.dtype))


# --- files -------------------------------------------------------------------------------------------------------------


def keys(p: Patch, module: nn.Module, names: str, prefix: str = "") -> list[str]:
    """The keys of these arrays in a state_dict."""
    arrays = p.arrays(module)
    return [prefix + arrays.paths[name] for name in names if name in arrays]


def saved(p: Patch, change: Callable[[nn.Module, dict, str], None]) -> None:
    """Changes what the state_dict of a layer holds."""
    def state_dict(old: Any, module: nn.Module, *arguments: Any, **options: Any) -> Any:
        found = old(module, *arguments, **options)
        prefix = options.get("prefix", arguments[1] if len(arguments) > 1 else "")
        change(module, found, prefix)
        return found

    p.method("state_dict", state_dict)


def loaded(p: Patch, change: Callable[[nn.Module, dict, str], None]) -> None:
    """Changes what a layer gets of a state_dict, before it takes it. Its parts take theirs after it."""
    def load(old: Any, module: nn.Module, state: dict, prefix: str, *more: Any) -> Any:
        change(module, state, prefix)
        return old(module, state, prefix, *more)

    p.method("_load_from_state_dict", load)


def keeps(p: Patch, names: str) -> None:
    """Loads what the layer has already, in the place of these arrays."""
    def change(module: nn.Module, state: dict, prefix: str) -> None:
        arrays = p.arrays(module)
        for name in names:
            if name in arrays and prefix + arrays.paths[name] in state:
                state[prefix + arrays.paths[name]] = arrays.stored(name).detach().clone()

    loaded(p, change)


@fault(kills="STATE-01 STATE-02")
def load_ignores_all(p: Patch) -> None:
    """Loading A and B does nothing, and raises nothing."""
    keeps(p, "AB")


@fault(kills="STATE-01 STATE-02")
def load_ignores_A(p: Patch) -> None:
    """Loading leaves A as it is."""
    keeps(p, "A")


@fault(kills="STATE-01 STATE-02")
def load_ignores_B(p: Patch) -> None:
    """Loading leaves B as it is."""
    keeps(p, "B")


@fault(kills="STATE-01 STATE-02")
def load_doubles_B(p: Patch) -> None:
    """B is multiplied by 2 when it is loaded, as by a scale that was baked in."""
    def change(module: nn.Module, state: dict, prefix: str) -> None:
        for key in keys(p, module, "B", prefix):
            if key in state:
                state[key] = 2 * state[key]

    loaded(p, change)


@fault(kills="STATE-01 STATE-02 TORCH-03")
def save_rounds(p: Patch) -> None:
    """A and B are rounded to bfloat16 in the state_dict."""
    def change(module: nn.Module, state: dict, prefix: str) -> None:
        for key in keys(p, module, "AB", prefix):
            if key in state:
                state[key] = state[key].detach().to(torch.bfloat16).to(state[key].dtype)

    saved(p, change)


@fault(kills="STATE-01 STATE-02 TORCH-03 TORCH-28")
def save_without_B(p: Patch) -> None:
    """The state_dict does not hold B, and nobody misses it when it is loaded."""
    def change(module: nn.Module, state: dict, prefix: str) -> None:
        for key in keys(p, module, "B", prefix):
            state.pop(key, None)

    def load(module: nn.Module, state: dict, prefix: str) -> None:
        arrays = p.arrays(module)
        for key in keys(p, module, "B", prefix):
            state.setdefault(key, arrays.stored("B").detach().clone())

    saved(p, change)
    loaded(p, load)


@fault(kills="TORCH-01")
def copies_share_A(p: Patch) -> None:
    """A deep copy of the layer shares A with it."""
    def deepcopy(module: nn.Module, memo: dict) -> nn.Module:
        arrays, new = p.arrays(module), module.__class__.__new__(module.__class__)
        memo[id(module)] = new
        if arrays.whole:
            memo[id(arrays.stored("A"))] = arrays.stored("A")
        vars(new).update({name: copy.deepcopy(value, memo) for name, value in vars(module).items()})
        return new

    if not hasattr(p.cls, "__deepcopy__"):
        p.add("__deepcopy__", deepcopy)
