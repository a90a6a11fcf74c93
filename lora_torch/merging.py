"""How A B goes into W, and how a layer that is merged is saved and loaded.

    W' = W + scale · (A B)ᵀ     W (out, in)   A (in, rank)   B (rank, out)

Three functions below are hooks of state_dict and load_state_dict. They are functions of the module and not methods bound to
it, so that a copy or a pickle of a layer has hooks that work on the copy.
"""

from typing import Any

import torch
from torch import Tensor

TILE = 512  # rows and columns of W that are in float64 at one time: 2 MiB


def merged_weight(W: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    """A new tensor with W + scale · (A B)ᵀ (out, in): computed in float64, then rounded once to W's dtype.

    Neither autocast nor TF32 touches float64. W is worked on in square tiles: beside the new tensor only one tile of W, and
    the parts of A and B that belong to it, are ever there in float64.
    """
    if W.shape != (B.shape[1], A.shape[0]):
        raise RuntimeError(
            f"LinearLoRA.merge: (A B)ᵀ is {(B.shape[1], A.shape[0])}, expected {tuple(W.shape)}, because it is added to W"
        )
    if W.dtype == torch.float64 or W.is_meta:  # there is nothing to convert, or there are no numbers
        return torch.addmm(W, B.to(W.dtype).T, A.to(W.dtype).T, alpha=scale)
    merged = torch.empty_like(W, memory_format=torch.contiguous_format)    # (out, in)
    for rows in _tiles(W.shape[0]):
        for columns in _tiles(W.shape[1]):
            # In one expression, so that the tile is freed before the next one is made.
            merged[rows, columns] = W[rows, columns].double().addmm_(
                B[:, rows].double().T, A[columns].double().T, alpha=scale
            )
    return merged


def _tiles(length: int) -> list[slice]:
    return [slice(first, first + TILE) for first in range(0, length, TILE)]


def save_unmerged(layer: Any, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """After state_dict: put W into the state in the place of the merged weight."""
    if layer.unmerged_weight is not None:
        state[prefix + "pre_trained_weight.weight"] = layer.unmerged_weight.detach()


def unmerge_before_load(layer: Any, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Before load_state_dict: put W back, because loading writes into pre_trained_weight.weight.

    torch copies the tensors that fit and then complains of the others. A state of another shape is therefore refused here,
    before anything is copied.
    """
    for name, own in layer.state_dict().items():
        came = state.get(prefix + name)
        if came is not None and came.shape != own.shape:
            raise RuntimeError(
                f"LinearLoRA.load_state_dict: {prefix}{name} is {tuple(came.shape)}, expected {tuple(own.shape)}, because the "
                f"layer has in, out, rank = {layer.in_features}, {layer.out_features}, {layer.rank}; nothing of it was loaded"
            )
    layer._was_merged = layer.merged
    if layer.merged:
        layer.unmerge()


def merge_after_load(layer: Any, *_: object) -> None:
    """After load_state_dict: merge a layer that was merged before it, with what was loaded."""
    if layer._was_merged:
        layer.merge()
