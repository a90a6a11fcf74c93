"""Measures one layer on one input: time, memory, kernels and errors of a forward and a backward pass."""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from conformance.torch import TorchLayer

FLUSHED = 256 << 20  # bytes that are written to empty the caches of a GPU
ROWS_CHECKED = 64  # rows of y and dx whose errors are computed


class Passes(NamedTuple):
    """Milliseconds, or bytes, of the two passes."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        return self.forward + self.backward


class Trial(NamedTuple):
    module: nn.Module
    x: Tensor  # (n, in), requires grad
    dy: Tensor  # (n, out)

    def forget(self) -> None:
        self.x.grad = None
        for parameter in self.module.parameters():
            parameter.grad = None

    def run(self) -> Tensor:
        y = self.module(self.x)
        y.backward(self.dy)
        return y


def timed(trial: Trial, calls: int, flush: bool = False) -> Passes:
    """Runs both passes `calls` times, after one run that does not count, and returns the median times."""
    cuda = trial.x.is_cuda
    junk = torch.empty(FLUSHED, dtype=torch.int8, device=trial.x.device) if flush and cuda else None
    laps = []
    for _ in range(calls + 1):
        trial.forget()
        if junk is not None:
            junk.zero_()
        marks = [_mark(cuda)]
        y = trial.module(trial.x)
        marks.append(_mark(cuda))
        y.backward(trial.dy)
        marks.append(_mark(cuda))
        laps.append(marks)
        del y
    if cuda:
        torch.cuda.synchronize()
    passes = [Passes(_between(a, b), _between(b, c)) for a, b, c in laps[1:]]
    return Passes(*map(statistics.median, zip(*passes, strict=True)))


def _mark(cuda: bool):
    if not cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(a, b) -> float:
    return a.elapsed_time(b) if isinstance(a, torch.cuda.Event) else 1000 * (b - a)


def graphed(trial: Trial) -> Trial:
    """The trial with both passes as CUDA graphs, so that launching kernels one by one takes no time."""
    module = torch.cuda.make_graphed_callables(trial.module, (trial.x,))
    return trial._replace(module=module)  # pyright: ignore[reportArgumentType]


def saved(trial: Trial) -> int:
    """Bytes that a forward pass keeps for its backward pass, without x and the parameters. Shared memory counts once."""
    known = {t.untyped_storage().data_ptr() for t in (trial.x, *trial.module.parameters(), *trial.module.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        trial.module(trial.x)
    return sum(kept.values())


def peaks(trial: Trial) -> Passes:
    """The most bytes that each pass had allocated at one time, less those that it returns."""
    trial.forget()
    y, forward = _peak(lambda: trial.module(trial.x), trial.x.device)
    _, backward = _peak(lambda: y.backward(trial.dy), trial.x.device)
    assert trial.x.grad is not None
    returned = [trial.x.grad, *(p.grad for p in trial.module.parameters() if p.grad is not None)]
    trial.forget()
    return Passes(forward - _bytes(y), backward - sum(map(_bytes, returned)))


def _bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def _peak(call: Callable, device: torch.device) -> tuple[Tensor, int]:
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = call()
        torch.cuda.synchronize()
        return result, torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    now = most = 0
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        now += event["args"]["Bytes"]
        most = max(most, now)
    return result, most


def kernels(trial: Trial) -> dict[str, dict[str, int]]:
    """The number of CUDA kernels of each pass, by kind. Empty on the CPU."""
    if not trial.x.is_cuda:
        return {}
    trial.forget()
    counts, y = {}, []
    passes = {"forward": lambda: y.append(trial.module(trial.x)), "backward": lambda: y[0].backward(trial.dy)}
    for name, call in passes.items():
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            call()
            torch.cuda.synchronize()
        kinds = [_kind(e.name) for e in profiler.events() or () if e.device_type.name == "CUDA"]
        counts[name] = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    trial.forget()
    return counts


def _kind(kernel: str) -> str:
    name = kernel.lower()
    if "splitk" in name and "reduce" in name:
        return "split-K sum"
    if any(part in name for part in ("gemm", "cutlass", "xmma", "nvjet", "gemv", "cublas")):
        return "product"
    if any(part in name for part in ("elementwise", "memcpy", "memset", "copy", "fill", "reduce_kernel")):
        return "elementwise or copy"
    return "other"


def errors(trial: Trial, layer: TorchLayer, scale: float) -> dict[str, float]:
    """The relative errors of y, dx, dA and dB: the root mean square of the error over that of the true value.

    The true values come from the formula in float64, on the numbers that the layer holds. For y and dx, ROWS_CHECKED rows are
    compared."""
    trial.forget()
    y = trial.run().detach()
    W, A, B = (layer.tensor(name).detach().double() for name in "WAB")
    x, dy = trial.x.detach().double(), trial.dy.double()
    h, u = scale * (x @ A), scale * (dy @ B.t())    # (n, rank) both
    some = torch.linspace(0, len(x) - 1, min(ROWS_CHECKED, len(x)), device=x.device).long()
    want = {"y": x[some] @ W.t() + h[some] @ B, "dx": dy[some] @ W + u[some] @ A.t(), "dA": x.t() @ u, "dB": h.t() @ dy}
    if "b" in layer.paths:
        want["y"] += layer.tensor("b").detach().double()
    assert trial.x.grad is not None
    got = {"y": y[some], "dx": trial.x.grad[some]} | {f"d{name}": _gradient(layer, name) for name in "AB"}
    trial.forget()
    return {name: float((got[name].double() - w).norm() / w.norm()) for name, w in want.items()}


def _gradient(layer: TorchLayer, name: str) -> Tensor:
    gradient = layer.module.get_parameter(layer.paths[name]).grad
    assert gradient is not None
    return gradient.t() if name in layer.transposed else gradient


def repeats(trial: Trial, times: int = 20) -> bool:
    """Whether `times` further runs give the same bits as the first."""
    first: list[Tensor] = []
    for _ in range(times + 1):
        trial.forget()
        y = trial.run().detach()
        assert trial.x.grad is not None
        bits = [y, trial.x.grad, *(p.grad for p in trial.module.parameters() if p.grad is not None)]
        first = first or [t.clone() for t in bits]
        if not all(torch.equal(a, b) for a, b in zip(bits, first, strict=True)):
            return False
    return True
