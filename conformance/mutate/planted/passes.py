"""Faults of the forward pass: scale, factors, base, rows, dropout, number formats."""

import torch
from torch import Tensor
from torch.nn import functional

from .arrays import drops, modes, rate_of
from .catalogue import fault
from .patch import Pass, Patch

# --- the scale ---------------------------------------------------------------------------------------------------------


def scaled(p: Patch, by) -> None:
    """Multiplies the LoRA part by `by(pass)`."""
    p.arrays_in_forward(lambda one: {"B": one.arrays["B"] * by(one)})


@fault(kills="SCALE-01 FWD-01")
def scale_is_alpha(p: Patch) -> None:
    """The scale is alpha, and not alpha / rank."""
    scaled(p, lambda one: one.arrays.rank)


@fault(kills="SCALE-01 FWD-01")
def scale_by_root_rank(p: Patch) -> None:
    """The scale is alpha / √rank, where alpha / rank was asked for."""
    scaled(p, lambda one: one.arrays.rank**0.5)


@fault(kills="SCALE-03 SCALE-01 FWD-01")
def scale_without_root(p: Patch) -> None:
    """The scale is divided by √rank once more: alpha / rank where alpha / √rank was asked for."""
    scaled(p, lambda one: one.arrays.rank**-0.5)


@fault(kills="SCALE-01 FWD-01")
def scale_is_one(p: Patch) -> None:
    """Alpha and rank are ignored: the scale is 1."""
    scaled(p, lambda one: 1 / one.scale)


@fault(kills="SCALE-01 FWD-01")
def scale_twice(p: Patch) -> None:
    """The scale is applied twice."""
    scaled(p, lambda one: one.scale)


@fault(kills="SCALE-01 FWD-01")
def scale_turned(p: Patch) -> None:
    """The scale is rank / alpha."""
    scaled(p, lambda one: one.scale**-2)


@fault(kills="SCALE-11 SCALE-01 FWD-01")
def scale_negative(p: Patch) -> None:
    """The LoRA part is subtracted."""
    scaled(p, lambda one: -1)


@fault(kills="FWD-01")
def scale_on_all(p: Patch) -> None:
    """The scale is applied to the whole output, and not to the LoRA part alone."""
    p.forward(lambda one: one.y() + (one.scale - 1) * one.base())


@fault(kills="GRAD-12 GRAD-02")
def scale_doubled_in_training(p: Patch) -> None:
    """The LoRA part is doubled in training mode."""
    scaled(p, lambda one: 2 if one.module.training else 1)


# --- the factors -------------------------------------------------------------------------------------------------------


def with_A(p: Patch, change) -> None:
    p.arrays_in_forward(lambda one: {"A": change(one.arrays["A"])})


def with_B(p: Patch, change) -> None:
    p.arrays_in_forward(lambda one: {"B": change(one.arrays["B"])})


@fault(kills="FWD-01")
def lora_part_dropped(p: Patch) -> None:
    """The LoRA part is never added."""
    with_B(p, lambda B: 0 * B)


@fault(kills="FWD-01 GRAD-12")
def lora_part_only_in_training(p: Patch) -> None:
    """The LoRA part is missing in inference mode."""
    p.forward(lambda one: one.y() if one.module.training else one.base())


@fault(kills="GRAD-02 GRAD-12")
def lora_part_only_in_inference(p: Patch) -> None:
    """The LoRA part is missing in training mode."""
    p.forward(lambda one: one.base() if one.module.training else one.y())


@fault(kills="FWD-01")
def A_read_transposed(p: Patch) -> None:
    """The memory of A is read in the other layout."""
    with_A(p, lambda A: A.t().reshape(A.shape))


@fault(kills="FWD-01")
def B_read_transposed(p: Patch) -> None:
    """The memory of B is read in the other layout."""
    with_B(p, lambda B: B.t().reshape(B.shape))


@fault(kills="FWD-01 FWD-16")
def ranks_do_not_pair(p: Patch) -> None:
    """The columns of A meet the rows of B in the wrong order."""
    with_A(p, lambda A: A.flip(1))


@fault(kills="FWD-01 FWD-16")
def first_rank_alone(p: Patch) -> None:
    """Only the first rank counts."""
    with_A(p, lambda A: torch.cat([A[:, :1], 0 * A[:, 1:]], 1))


@fault(kills="FWD-01")
def last_rank_lost(p: Patch) -> None:
    """The last rank is left out, as by a loop that ends too early."""
    with_A(p, lambda A: torch.cat([A[:, :-1], 0 * A[:, -1:]], 1))


@fault(kills="FWD-01")
def last_input_lost(p: Patch) -> None:
    """The last feature of x does not reach the LoRA part."""
    with_A(p, lambda A: torch.cat([A[:-1], 0 * A[-1:]]))


@fault(kills="FWD-01")
def last_output_lost(p: Patch) -> None:
    """The last feature of y gets no LoRA part."""
    with_B(p, lambda B: torch.cat([B[:, :-1], 0 * B[:, -1:]], 1))


@fault(kills="FWD-01")
def A_without_sign(p: Patch) -> None:
    """Negative entries of A count as zero, as by a nonlinearity between the factors."""
    with_A(p, torch.relu)


@fault(kills="STATE-14 TORCH-16 STATE-09")
def B_of_the_first_pass(p: Patch) -> None:
    """B is kept at the first pass in inference mode, and later changes of it are not seen: a stale cache."""
    def change(one: Pass) -> dict[str, Tensor]:
        if one.module.training:
            return {}
        first = one.kept.setdefault("B", one.arrays["B"].detach().clone())
        return {"B": first} if first.shape == one.arrays["B"].shape else {}

    p.arrays_in_forward(change)


# --- the base ----------------------------------------------------------------------------------------------------------


@fault(kills="FWD-01")
def base_dropped(p: Patch) -> None:
    """Only the LoRA part is computed."""
    p.forward(Pass.part)


@fault(kills="FWD-01")
def base_twice(p: Patch) -> None:
    """The base is added twice."""
    p.forward(lambda one: one.y() + one.base())


@fault(kills="FWD-01")
def bias_dropped(p: Patch) -> None:
    """The bias is not added."""
    p.forward(lambda one: one.y() - one.arrays["b"] if "b" in one.arrays else one.y())


@fault(kills="FWD-01")
def bias_twice(p: Patch) -> None:
    """The bias is added twice, once for each path."""
    p.forward(lambda one: one.y() + one.arrays["b"] if "b" in one.arrays else one.y())


# --- rows --------------------------------------------------------------------------------------------------------------


def on_rows(p: Patch, keep) -> None:
    """Adds the LoRA part only where the mask of rows says so. `keep` makes it from the number of rows."""
    def change(one: Pass) -> Tensor:
        base = one.base()
        rows = base.numel() // max(base.shape[-1], 1)
        mask = keep(torch.arange(rows, device=base.device), rows).reshape(base.shape[:-1] + (1,))
        return torch.where(mask, one.y(), base)

    p.forward(change)


@fault(kills="FWD-01 FWD-09")
def first_row_alone(p: Patch) -> None:
    """Only the first row gets the LoRA part."""
    on_rows(p, lambda row, rows: row < 1)


@fault(kills="FWD-01 FWD-09")
def last_row_lost(p: Patch) -> None:
    """The last of several rows gets no LoRA part."""
    on_rows(p, lambda row, rows: (row < rows - 1) | (rows == 1))


@fault(kills="FWD-09 FWD-05 FWD-01")
def rows_share_the_mean(p: Patch) -> None:
    """Every row gets the mean of the LoRA parts of all rows."""
    def change(one: Pass) -> Tensor:
        base = one.base()
        part = one.y() - base
        return base + part.reshape(-1, part.shape[-1]).mean(0) if part.numel() else base

    p.forward(change)


@fault(kills="FWD-03")
def one_dimension_refused(p: Patch) -> None:
    """An x without a leading dimension gets no LoRA part."""
    p.forward(lambda one: one.base() if one.x.dim() == 1 else one.y())


# --- x and y -----------------------------------------------------------------------------------------------------------


@fault(kills="FWD-11")
def x_changed_in_place(p: Patch) -> None:
    """x is multiplied by the scale in its place, after the pass."""
    def change(one: Pass) -> Tensor:
        y = one.y()
        one.x.data.mul_(one.scale)
        return y

    p.forward(change)


@fault(kills="DTYPE-01 TORCH-19")
def always_float32(p: Patch) -> None:
    """y is float32, whatever x is."""
    p.forward(lambda one: one.y().float())


@fault(kills="FWD-02 GRAD-04")
def factors_in_bfloat16(p: Patch) -> None:
    """A and B are rounded to bfloat16 on their way."""
    def rounded(tensor: Tensor) -> Tensor:
        return tensor + (tensor.to(torch.bfloat16).to(tensor.dtype) - tensor).detach()

    p.arrays_in_forward(lambda one: {name: rounded(one.arrays[name]) for name in "AB"})


@fault(kills="FWD-02")
def y_in_bfloat16(p: Patch) -> None:
    """y is rounded to bfloat16, and turned back."""
    def change(one: Pass) -> Tensor:
        y = one.y()
        return y.to(torch.bfloat16).to(y.dtype)

    p.forward(change)


@fault(kills="FWD-01 FWD-13")
def y_without_infinities(p: Patch) -> None:
    """NaN and infinities are replaced by numbers."""
    p.forward(lambda one: torch.nan_to_num(one.y()))


# --- dropout -----------------------------------------------------------------------------------------------------------


@fault(kills="DROP-01 FWD-12")
def dropout_in_inference(p: Patch) -> None:
    """Dropout is not switched off in inference mode."""
    def change(one: Pass) -> Tensor:
        with modes(one.module, True, lambda part: drops(part) or not any(map(drops, one.module.modules()))):
            return one.y()

    p.forward(change)


@fault(kills="DROP-03 DROP-07 DROP-16")
def dropout_never(p: Patch) -> None:
    """Dropout does nothing."""
    def change(one: Pass) -> Tensor:
        with modes(one.module, False):
            return one.y()

    p.forward(change)


@fault(kills="DROP-03 DROP-16")
def dropout_not_scaled(p: Patch) -> None:
    """What dropout keeps is not divided by the share that it keeps."""
    scaled(p, lambda one: 1 - rate_of(one.module) if one.module.training else 1)


@fault(kills="DROP-02 DROP-09")
def dropout_of_y(p: Patch) -> None:
    """Dropout acts on the whole output."""
    p.forward(lambda one: functional.dropout(one.y(), rate_of(one.module), one.module.training))


@fault(kills="DROP-02 DROP-09")
def dropout_of_the_base(p: Patch) -> None:
    """Dropout acts on the x of the base, too."""
    p.forward(lambda one: one.part() + one.base(functional.dropout(one.x, rate_of(one.module), one.module.training)))


@fault(kills="DROP-07 DROP-15")
def dropout_with_one_seed(p: Patch) -> None:
    """Every pass draws the same mask."""
    def change(one: Pass) -> Tensor:
        if not one.module.training or not rate_of(one.module):
            return one.y()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return one.y()

    p.forward(change)


@fault(kills="DROP-07 DROP-16 DROP-15")
def dropout_of_whole_features(p: Patch) -> None:
    """One mask is drawn for all rows."""
    def change(one: Pass) -> Tensor:
        rate = rate_of(one.module)
        if not one.module.training or not rate:
            return one.y()
        A = one.arrays["A"]
        mask = functional.dropout(torch.ones_like(A[:, :1]), rate)
        with modes(one.module, False):
            return one.y(A=mask * A)

    p.forward(change)
