"""Runs the benchmark. The subjects take turns at each workload, so that a machine that becomes slower favours none."""

import copy
import ctypes
import gc
import random
import statistics
import sys
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import nn

from conformance.bench import measure
from conformance.bench.forms import FORMS
from conformance.bench.measure import Passes, Trial
from conformance.bench.workloads import WORKLOADS, Workload, sweep
from conformance.run.loading import LoadError, as_subject, built_in, load
from conformance.subject import LayerConfig, Subject
from conformance.torch import TorchLayer, to_tensor

FROZEN = "frozen layer"
GRAPH = ", CUDA graph"
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # as in malloc.h
SECONDS_OF_A_TURN = 0.03
Told = Callable[[str, int, int], None]  # gets what is measured, the turns done, and all turns
Swept = dict[str, list["Result"]]
Kept = Callable[[list["Result"], Swept], None]  # gets all results so far


@dataclass(frozen=True)
class Options:
    device: str = "cpu"
    dtype: str = "float32"
    workloads: tuple[str, ...] = ()  # names; empty: all of the device
    threads: int = 2
    rounds: int = 11
    sweep: bool = True
    small: bool = False  # a rehearsal: every step, at sizes that take little time


@dataclass
class Cost:
    """The cost of one subject at one workload, or the reason why it was not measured. There is one ratio for each round."""

    subject: str
    version: str = ""
    reason: str = ""
    milliseconds: list[Passes] = field(default_factory=list)
    ratios: list[Passes] = field(default_factory=list)  # over the frozen layer's passes
    total: list[float] = field(default_factory=list)  # both passes over both passes of the frozen layer
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.total)


@dataclass
class Result:
    workload: Workload
    caches: str  # "warm", or "flushed" before each call
    costs: list[Cost]


def default_subjects(device: str) -> list[str]:
    """lora_torch, and the other layers and formulas that can run here."""
    ready = [name for name, missing in built_in().items() if not missing]
    names = ["lora_torch", "lora_torch-plain", "peft", "loralib", "torchtune-form", "unsloth-form", "peft-form-compiled"]
    if device == "cuda":
        names += ["lora_torch-one-pass", "peft-base-dtype", "peft-form-autotuned"]
    return [name for name in names if name in ready or (name in FORMS and (name != "peft-base-dtype" or "peft" in ready))]


def loaded(spec: str) -> Subject:
    """The subject of that name: a formula of bench/forms.py, or what `conformance run` would load. Raises LoadError."""
    if spec in FORMS:
        subject = as_subject(FORMS[spec], spec)
        subject.name = spec
        return subject
    return load(spec)


def run(specs: list[str], options: Options, told: Told = lambda *_: None,
        kept: Kept = lambda *_: None) -> tuple[list[Result], Swept]:
    """The results of the workloads, and those of the sweep by what grows in it: rank, rows, width. `kept` gets all results so
    far after each workload. Raises LoadError if a subject cannot be loaded."""
    subjects = {spec: loaded(spec) for spec in specs}
    chosen = [w for w in WORKLOADS[options.device] if not options.workloads or w.name in options.workloads]
    grown = sweep(options.device) if options.sweep else {}
    torch.set_num_threads(options.threads)
    _keep_memory()
    made: list[Result] = []
    swept: Swept = {}
    plan = [(w, flush) for flush in ((False, True) if options.device == "cuda" else (False,)) for w in chosen]
    turns = len(plan) + sum(map(len, grown.values()))
    for workload, flush in plan:
        told(workload.name, len(made), turns)
        if (options.dtype, options.threads) != {"cpu": ("float32", 2), "cuda": ("bfloat16", options.threads)}[options.device]:
            workload = workload._replace(goal=None)
        made.append(_result(workload, subjects, options, flush, options.rounds, whole=not flush))
        kept(made, swept)
    fast = {spec: subject for spec, subject in subjects.items() if not spec.startswith("peft-form")}  # compiled for each size
    for name, workloads in grown.items():
        swept[name] = []
        for workload in workloads:
            told(workload.name, len(made) + sum(map(len, swept.values())), turns)
            swept[name].append(_result(workload, fast, options, False, max(3, options.rounds // 2), whole=False))
            kept(made, swept)
    return made, swept


def _keep_memory() -> None:
    """Makes glibc keep freed memory, as torch does on CUDA. It does nothing with another C library.

    By default glibc returns large blocks to the system at each free. The benchmark would then measure page faults, whose number
    depends on the order in which a layer frees its blocks."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _result(workload: Workload, subjects: dict, options: Options, flush: bool, rounds: int, whole: bool) -> Result:
    """The costs of all subjects at one workload. If the frozen layer itself cannot run, for instance because the GPU is too
    small, the result holds only the reason."""
    if options.small:
        workload, rounds = workload.smaller(), 2
    caches, frozen = "flushed" if flush else "warm", Cost(FROZEN, torch.__version__)
    with _reason_kept(frozen):
        return Result(workload, caches, _costs(frozen, workload, subjects, options, flush, rounds, whole))
    return Result(workload, caches, [frozen])


def _costs(frozen: Cost, workload: Workload, subjects: dict, options: Options, flush: bool, rounds: int,
           whole: bool) -> list[Cost]:
    torch._dynamo.reset()  # what was compiled for other sizes
    arrays = _arrays(workload, options)
    x, dy = (to_tensor(arrays[name], options.device) for name in ("x", "dy"))
    linear = nn.Linear(workload.in_features, workload.out_features, device=options.device, dtype=x.dtype).requires_grad_(False)
    with torch.no_grad():
        linear.weight.copy_(to_tensor(arrays["W"], options.device))
        linear.bias.copy_(to_tensor(arrays["b"], options.device))
    costs = {FROZEN: frozen}
    trials = {FROZEN: Trial(linear, x.clone().requires_grad_(), dy)}
    for spec, subject in subjects.items():
        cost = costs[spec] = Cost(spec, subject.version)
        with _reason_kept(cost):
            layer = _layer(subject, workload, options, arrays)
            trial = Trial(layer.measured, x.clone().requires_grad_(), dy)
            trial.run()
            if whole:
                cost.measured = {
                    "saved_bytes": measure.saved(trial), "peak_bytes": measure.peaks(trial)._asdict(),
                    "kernels": measure.kernels(trial), "errors": measure.errors(trial, layer, scale=2.0),
                    "same_bits_20_times": measure.repeats(trial),
                }
            trials[spec] = trial
    if whole and options.device == "cuda" and workload.name == "S4":
        for name in [name for name in trials if not name.startswith("peft-form")]:
            cost = costs[name + GRAPH] = Cost(name + GRAPH, costs[name].version)
            with _reason_kept(cost):
                module = copy.deepcopy(trials[name].module)
                trials[name + GRAPH] = measure.graphed(Trial(module, x.clone().requires_grad_(), dy))
    _take_turns(costs, trials, rounds, flush)
    del trials, linear
    gc.collect()
    return list(costs.values())


@contextmanager
def _reason_kept(cost: Cost):
    """Turns an exception of a library into the reason why it was not measured, so that the others are still measured."""
    try:
        yield
    except Exception as error:
        cost.reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def _take_turns(costs: dict[str, Cost], trials: dict[str, Trial], rounds: int, flush: bool) -> None:
    """Times all trials in each round, in a random order. A CUDA graph is compared with the CUDA graph of the frozen layer."""
    once = measure.timed(trials[FROZEN], 3).total / 1000
    calls = max(3, min(200, round(SECONDS_OF_A_TURN / once)))
    order = random.Random(0)
    for _ in range(rounds):
        turn: dict[str, Passes] = {}
        names = [name for name in trials if not costs[name].reason]
        for name in order.sample(names, len(names)):
            with _reason_kept(costs[name]) if name != FROZEN else nullcontext():
                turn[name] = measure.timed(trials[name], calls, flush)
        for name, passes in turn.items():
            cost, base = costs[name], turn.get(FROZEN + GRAPH if name.endswith(GRAPH) else FROZEN)
            if base is None:
                cost.reason = "the frozen layer that it is set beside was not measured"
                continue
            cost.milliseconds.append(passes)
            cost.ratios.append(Passes(passes.forward / base.forward, passes.backward / base.backward))
            cost.total.append(passes.total / base.total)


def _layer(subject: Subject, workload: Workload, options: Options, arrays: dict[str, np.ndarray]) -> TorchLayer:
    config = LayerConfig(workload.in_features, workload.out_features, workload.rank, 2.0 * workload.rank,
                         dtype=options.dtype, device=options.device)
    layer = subject.build(config, arrays["W"], arrays["b"])
    if not isinstance(layer, TorchLayer):
        raise LoadError("no torch module, which alone can be measured beside torch's frozen layer")
    layer.set_adapter({name: arrays[name] for name in "AB"})
    return layer


def _arrays(workload: Workload, options: Options) -> dict[str, np.ndarray]:
    """Random arrays with magnitudes as in training: W has standard deviation 0.02, and scale · A B has 0.001."""
    n, n_in, n_out, rank = workload.sizes
    rng, dtype = np.random.default_rng(0), getattr(ml_dtypes, options.dtype, None) or np.dtype(options.dtype)
    shapes = {"x": (n, n_in), "dy": (n, n_out), "W": (n_out, n_in), "b": (n_out,), "A": (n_in, rank), "B": (rank, n_out)}
    widths = {"x": 1.0, "dy": 1.0, "W": 0.02, "b": 0.02, "A": 1 / sqrt(n_in), "B": 0.001 * sqrt(n_in / rank) / 2}
    return {name: (np.float32(widths[name]) * rng.standard_normal(shape, np.float32)).astype(dtype)
            for name, shape in shapes.items()}
