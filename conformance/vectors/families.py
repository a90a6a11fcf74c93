"""Which vectors there are. A family is about one requirement, and has cases of chosen levels of `conformance.truth.space`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from conformance.requirements.helpers.sequences import RATE
from conformance.truth.case import Case

SINGLE, HALF = ("float32", "float64"), ("float16", "bfloat16")
ALL = (*SINGLE, *HALF)
TRAIN = ("forward", "backward", "step")
CYCLE = ("merge", "unmerge")


class Family(NamedTuple):
    requirement: str
    operation: str
    formats: tuple[str, ...] = ALL
    count: int = 2  # of vectors, for each format
    levels: dict[str, tuple] = {}
    real: bool = False  # numbers of a normal distribution, judged by bounds
    change: Callable[[Case], Case] = lambda case: case
    asks: tuple[str, ...] = ()  # the answers that count; (): all
    more: dict[str, Any] = {}  # settings beside those of the layer


def base_away(case: Case) -> Case:
    return case.replace(W=0 * case.W, b=None if case.b is None else 0 * case.b)


def empty(case: Case) -> Case:
    return case.replace(x=case.x[:0], dy=case.dy[:0])


def too_wide(case: Case) -> Case:
    return case.replace(x=np.concatenate([case.x, case.x[..., :1]], -1))


def one_not_finite(case: Case) -> Case:
    x = case.x.copy()
    x[0, 0] = np.nan if case.config.seed % 2 else np.inf
    W = np.where(case.W == 0, np.ones_like(case.W), case.W)  # no zeros, since infinity times zero is NaN
    return case.replace(x=x, W=W)


ODD = {"rank": (3, 5, 6, 7), "in": (8, 9), "out": (10, 11)}
ROOT = {"scaling": ("rslora",), "rank": (4,), "in": (5, 7), "out": (6, 9), "scale": ("4", "-1/4")}
SQUARE = {"in": (4,), "out": (4,), "rank": (4,)}
LARGE = {"in": (33, 17), "out": (18, 34), "rank": (2, 8), "rows": (5,)}
FAMILIES = (
    Family("FWD-01", "forward", levels={"leading": (1, 2)}),
    Family("FWD-02", "forward", SINGLE, 3, real=True),
    Family("FWD-03", "forward", levels={"leading": (0,), "rows": (1,)}, count=1),
    Family("FWD-04", "forward", change=empty, count=1),
    Family("FWD-05", "forward", levels={"leading": (3, 4), "rows": (4,)}, count=1),
    Family("FWD-06", "forward", levels={"rank": (1,)}, count=1),
    Family("FWD-07", "forward", SINGLE, 1, {"rank": (8,), "in": (3, 5), "out": (4, 6)}),
    Family("FWD-08", "forward", levels={"bias": (False,)}, count=1),
    Family("FWD-13", "forward", SINGLE, 2, {"rows": (2, 3)}, change=one_not_finite),
    Family("FWD-18", "forward", levels=SQUARE, count=1),
    Family("FWD-19", "forward", SINGLE, 2, LARGE),
    Family("INIT-01", "fresh"),
    Family("GRAD-01", "backward", asks=("dx",)),
    Family("GRAD-02", "backward", asks=("dA",)),
    Family("GRAD-03", "backward", asks=("dB",)),
    Family("GRAD-04", "backward", SINGLE, 3, real=True),
    Family("GRAD-05", "backward", count=1, change=lambda case: case.replace(B=0 * case.B), asks=("dx",)),
    Family("GRAD-05", "backward", count=1, change=lambda case: case.replace(W=0 * case.W), asks=("dx",)),
    Family("GRAD-06", "backward", count=1, change=lambda case: case.replace(B=0 * case.B), asks=("dA", "dB")),
    Family("GRAD-07", "sequence", SINGLE, 1, asks=("dA", "dB"),
           more={"steps": ("forward", "backward", "forward", "backward")}),
    Family("GRAD-07", "sequence", SINGLE, 1, asks=("dA", "dB"),
           more={"steps": ("forward", "backward", "zero_grad", "forward", "backward")}),
    Family("GRAD-14", "backward", SINGLE, 1, {"leading": (0,), "rows": (1,)}),
    Family("GRAD-14", "backward", SINGLE, 1, {"leading": (3, 4), "rows": (4, 6)}),
    Family("GRAD-14", "backward", SINGLE, 1, change=empty, asks=("dx",)),  # no dA is as good as zero
    Family("GRAD-19", "backward", SINGLE, 1, LARGE),
    Family("INPUT-01", "refused", ("float32",), 2, change=too_wide),
    Family("PARAM-01", "parameters", ("float32",), 2),
    Family("PARAM-04", "sequence", SINGLE, 2, asks=("A", "B"), more={"steps": TRAIN, "lr": RATE}),
    Family("SCALE-01", "forward", levels={"rank": (2, 3, 5, 6), "in": (7, 8), "out": (9, 10)}, change=base_away),
    Family("SCALE-02", "forward", SINGLE, 2, ODD, real=True, change=lambda case: base_away(case.replace(alpha=16.0))),
    Family("SCALE-03", "forward", levels=ROOT),
    Family("SCALE-04", "forward", SINGLE, 2, ODD | {"scaling": ("rslora",)}, real=True),
    Family("SCALE-06", "forward", SINGLE, 1, change=lambda case: case.replace(alpha=0.0)),
    Family("SCALE-09", "backward", SINGLE, 1, ROOT),
    Family("SCALE-10", "merge", SINGLE, 1, ROOT),
    Family("SCALE-11", "forward", SINGLE, 1, change=lambda case: case.replace(alpha=-case.config.alpha)),
    Family("SCALE-12", "forward", SINGLE, 1, {"scale": ("far below", "far above")}),
    Family("MERGE-01", "merge"),
    Family("MERGE-02", "merge", SINGLE, 3, real=True),
    Family("MERGE-03", "sequence", count=1, asks=("y",), more={"steps": ("merge",)}),
    Family("MERGE-04", "sequence", ("float32",), 2, real=True, asks=("y",), more={"steps": ("merge",)}),
    Family("MERGE-06", "sequence", count=1, asks=("W", "y"), more={"steps": CYCLE * 2}),
    Family("MERGE-07", "sequence", ("float32",), 2, real=True, asks=("W",), more={"steps": CYCLE}),
    Family("MERGE-10", "sequence", SINGLE, 1, asks=("A", "B", "y"), more={"steps": (*CYCLE, *TRAIN), "lr": RATE}),
    Family("MERGE-15", "merge", levels=SQUARE, count=1),
    Family("DROP-02", "dropout", SINGLE, 2, change=lambda case: case.replace(dropout=0.5, B=0 * case.B), asks=("y",)),
    Family("DROP-04", "dropout", SINGLE, 2, change=lambda case: case.replace(dropout=0.5)),
    Family("DROP-09", "dropout", SINGLE, 1, change=lambda case: case.replace(dropout=0.5, B=0 * case.B), asks=("dx",)),
    Family("STATE-09", "sequence", SINGLE, 2, {"rows": (1, 2), "in": (3, 5), "rank": (2,), "scale": ("4", "-1/4")},
           asks=("y", "A", "B", "W"), more={"steps": (*TRAIN, *CYCLE, "zero_grad", *TRAIN, *CYCLE), "lr": RATE}),
    Family("STATE-12", "sequence", ("float32",), 3, real=True, asks=("y", "A", "B", "W"),
           more={"steps": (*TRAIN, *CYCLE, "zero_grad", *TRAIN), "lr": RATE}),
    Family("DTYPE-03", "forward", ("float16",), 3, real=True),
    Family("DTYPE-04", "forward", ("bfloat16",), 3, real=True),
    Family("DTYPE-05", "backward", HALF, 3, real=True),
    Family("DTYPE-06", "merge", HALF, 3, real=True),
    Family("DTYPE-08", "backward", HALF, 2),
    Family("MULTI-03", "several", SINGLE, 2, asks=("y",)),
    Family("MULTI-08", "several", SINGLE, 2, asks=("W",)),
    Family("MULTI-14", "several", SINGLE, 1, ROOT, asks=("y",)),
    Family("INIT-03", "initial", ("float32",), 1, asks=("zero_factors",)),
    Family("INIT-04", "initial", ("float32",), 1, asks=("mean",)),
    Family("INIT-07", "initial", ("float32",), 1, asks=("log_spread",)),
    Family("ADAPT-02", "adapter", SINGLE, 2, asks=("y",)),
    Family("ADAPT-03", "adapter", SINGLE, 2),
    Family("PTUNE-08", "prompts", SINGLE, 2, asks=("y",)),
    Family("PTUNE-09", "prompts", SINGLE, 2),
    Family("PREFIX-02", "attention", SINGLE, 2, real=True),
    Family("PREFIX-07", "network", SINGLE, 2, real=True, asks=("keys", "values")),
    Family("PREFIX-08", "network", SINGLE, 2, real=True),
)
