"""How A B goes into W, how a layer is turned from one state into the other, and how it is saved and loaded.

    W' = W + scale · (A B)ᵀ     W (out, in)   A (in, rank)   B (rank, out)

Whatever interrupts a step, an exception or another thread, finds the layer as it was before or as it is after. So a step first
makes all that it needs, and then puts all of it in place at once.

Two functions below are hooks of state_dict and load_state_dict. They are functions of the module and not methods bound to it,
so that a copy or a pickle of a layer has hooks that work on the copy.
"""

from collections import deque
from itertools import starmap
from operator import call
from typing import Any

import torch
from torch import Tensor, nn

# So much of W is in float64 at one time: 2 MiB. Long rows are faster: a merge of 4096 × 4096 numbers takes three quarters of
# the CPU time that it takes with tiles of 512 × 512.
ROWS, COLUMNS = 64, 4096


def merged_weight(W: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """A new tensor with W + scale · (A B)ᵀ (out, in): computed in float64, then rounded once to W's dtype.

    Neither autocast nor TF32 touches float64. W is worked on in tiles: beside the new tensor only one tile of W, and the parts
    of A and B that belong to it, are ever there in float64.
    """
    if W.shape != (B.shape[1], A.shape[0]):
        raise RuntimeError(
            f"LinearLoRA.merge: (A B)ᵀ is {(B.shape[1], A.shape[0])}, expected {tuple(W.shape)}, because it is added to W"
        )
    W, A, B = W.detach(), A.detach(), B.detach()  # not under no_grad, which an interrupt can leave on
    if W.dtype == torch.float64 or W.is_meta:  # there is nothing to convert, or there are no numbers
        return torch.addmm(W, B.to(W.dtype).T, A.to(W.dtype).T, alpha=scale)
    merged = torch.empty_like(W, memory_format=torch.contiguous_format)    # (out, in)
    for columns in _tiles(W.shape[1], COLUMNS):
        a = A[columns].double().T    # (rank, columns)
        for rows in _tiles(W.shape[0], ROWS):
            # In one expression, so that the tile is freed before the next one is made.
            merged[rows, columns] = W[rows, columns].double().addmm_(B[:, rows].double().T, a, alpha=scale)
        del a  # before the next one is made
    return merged


def _tiles(length: int, size: int) -> list[slice]:
    return [slice(first, first + size) for first in range(0, length, size)]


def put_at_once(*changes: tuple[dict[str, Any], dict[str, Any]], turns: list[int] | None = None, turn: int = 0) -> None:
    """Update each dictionary with the one beside it, all of them in one instruction of the interpreter.

    CPython, unless it is built without its global lock, runs handlers of signals and other threads between two instructions of
    Python code alone. None is in here: the loop is in C, and what is replaced lives on until it is over, so that no finaliser
    runs. A lock of our own would be left behind by an exception that comes while it is taken or given back.

    turns: what a layer counts in, raised by one. RuntimeError if it is not `turn` any more; then nothing is changed.
    """
    replaced = [dict(old) for old, _ in changes]
    steps: list[tuple[Any, ...]] = [(dict.update, *change) for change in changes]
    if turns is not None:
        steps = [(list.index, turns, turn), (list.__setitem__, turns, 0, turn + 1), *steps]  # the first raises, or does nothing
    try:
        deque(starmap(call, steps), 0)
    except ValueError:
        raise RuntimeError(
            "LinearLoRA: another thread merged, unmerged or loaded the layer meanwhile, expected one thread at a time, because "
            "A B would be added twice or W be lost"
        ) from None
    del replaced


def copy_at_once(own: list[Tensor], values: list[Tensor]) -> None:
    """Copy each value, of its tensor's dtype and device, into its tensor, all of them in one operation of torch."""
    own, values = [tensor.detach() for tensor in own], [tensor.detach() for tensor in values]
    if all(type(tensor) is Tensor for tensor in (*own, *values)):
        torch._foreach_copy_(own, values)  # pyright: ignore[reportPrivateImportUsage]
    else:  # a subclass of Tensor, quantised or distributed, may not know this operation
        for tensor, value in zip(own, values, strict=True):
            tensor.copy_(value)


def put_turned(layer: Any, turn: int, weight: nn.Parameter, unmerged: Tensor | None) -> None:
    """Merge the layer, or unmerge it: put these two in their places, if `turn` is still the number of its turns."""
    arrays = layer.pre_trained_weight._parameters
    if "weight" not in arrays:
        raise RuntimeError(
            "LinearLoRA: pre_trained_weight.weight is computed from other tensors, expected a Parameter, because merge() puts "
            "another one in its place"
        )
    put_at_once((layer._buffers, {"unmerged_weight": unmerged}), (arrays, {"weight": weight}), turns=layer._turns, turn=turn)


def save_unmerged(layer: Any, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """After state_dict: put W into the state in the place of the merged weight."""
    if layer.unmerged_weight is not None:
        state[prefix + "pre_trained_weight.weight"] = layer.unmerged_weight.detach()


def load_at_once(layer: Any, state: dict[str, Any], prefix: str, metadata: dict[str, Any], *_: object) -> None:
    """Before load_state_dict copies one tensor after the other: load all that came for the layer, and merge it, or nothing.

    Then it leaves in `state` what is in the layer already, so that torch copies each tensor into itself.
    """
    _check_state(layer, state, prefix, metadata.get("strict", False))
    turn, base = layer._turns[0], layer.pre_trained_weight._parameters
    places = {prefix + name: (layer._parameters, name) for name in ("lora_A", "lora_B")}
    places |= {f"{prefix}pre_trained_weight.{name}": (base, name) for name in ("weight", "bias")}
    W = prefix + "pre_trained_weight.weight"
    if layer.merged:
        places[W] = layer._buffers, "unmerged_weight"
    after = {key: arrays[name] for key, (arrays, name) in places.items() if arrays.get(name) is not None}
    assign = metadata.get("assign_to_params_buffers", False)
    came = {key: state[key] for key, own in after.items() if key in state and (assign or not own.is_meta)}
    new = {key: (_as_parameter if assign else as_own)(tensor, after[key]) for key, tensor in came.items()}
    if layer.merged:
        after |= new
        merged = merged_weight(after[W], after[prefix + "lora_A"], after[prefix + "lora_B"], layer.scale)
        places["merged"], new["merged"] = (base, "weight"), nn.Parameter(merged, requires_grad=False)
    into = {key: places[key] for key in new}
    if assign:
        put_at_once(*((arrays, {name: new[key]}) for key, (arrays, name) in into.items()), turns=layer._turns, turn=turn)
    else:
        copy_at_once([arrays[name] for arrays, name in into.values()], list(new.values()))
    state.update({key: places[key][0][places[key][1]] for key in came})
    if W in came:
        state[W] = base["weight"]


def _check_state(layer: Any, state: dict[str, Any], prefix: str, strict: bool) -> None:
    """RuntimeError for what torch would find after it has copied the rest."""
    own = layer.state_dict()
    for name, tensor in own.items():
        came = state.get(prefix + name, tensor)
        is_tensor = isinstance(came, Tensor)
        if isinstance(tensor, Tensor) and not (is_tensor and came.shape == tensor.shape):
            got, kind = (tuple(came.shape), "") if is_tensor else (f"a {type(came).__name__}", "a Tensor ")
            raise RuntimeError(
                f"LinearLoRA.load_state_dict: {prefix}{name} is {got}, expected {kind}{tuple(tensor.shape)}, because the layer "
                f"has in, out, rank = {layer.in_features}, {layer.out_features}, {layer.rank}; nothing of it was loaded"
            )
    missing, unexpected = own.keys() - state.keys(), state.keys() - own.keys()
    if strict and (missing or unexpected):
        found = (("Missing", missing), ("Unexpected", unexpected))
        lines = [f"{what} key(s) in state_dict: {', '.join(map(repr, sorted(keys)))}. " for what, keys in found if keys]
        raise RuntimeError(f"Error(s) in loading state_dict for {type(layer).__name__}:\n\t" + "\n\t".join(lines))


def as_own(came: Tensor, own: Tensor) -> Tensor:
    """The numbers that came, as a tensor that is copied into `own` without anything that can fail."""
    same = (came.dtype, came.device, came.layout) == (own.dtype, own.device, own.layout)
    return came.detach() if same else torch.empty_like(own, requires_grad=False).copy_(came.detach())


def _as_parameter(came: Tensor, own: Tensor) -> nn.Parameter:
    if isinstance(came, nn.Parameter):
        came.requires_grad_(own.requires_grad)
        return came
    return nn.Parameter(came, requires_grad=own.requires_grad)
