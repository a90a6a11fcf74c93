"""Torch layers on a device other than the CPU, tested without a GPU. A stand-in keeps its memory apart from NumPy's, as CUDA
does. torch's device "meta" refuses every operation that mixes its tensors with tensors of the CPU."""

import dataclasses
import io
import re
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import conformance.torch
from conformance.record.trace import Traced
from conformance.requirements import all_requirements
from conformance.run import plan, runner
from conformance.run.examine import Outcome, examine
from conformance.run.loading import load, missing_here
from conformance.run.worker import Worker
from conformance.subject import LayerConfig, Subject
from conformance.torch import TorchLayer, placed, to_array, to_tensor
from lora_torch import LinearLoRA

REQUIREMENTS = {r.id: r for r in all_requirements()}


class Spoils(torch.autograd.Function):
    """Returns x, and writes to a tensor that it was given: x in the forward pass, dy or the saved x in the backward pass."""

    @staticmethod
    def forward(ctx, x, what):
        ctx.what = what
        ctx.save_for_backward(x)
        y = x.clone()
        if what == "x":
            x.data.add_(1)
        return y

    @staticmethod
    def backward(ctx, dy):
        dx = dy.clone()
        if ctx.what == "dy":
            dy.data.add_(1)
        if ctx.what == "saved x":
            ctx.saved_tensors[0].data.add_(1)
        return dx, None


class Remembers:
    """The output of an input, by its address."""

    def __init__(self):
        self.known = {}

    def __call__(self, x, y):
        key = (x.data_ptr(), tuple(x.shape), torch.is_grad_enabled() and x.requires_grad)
        self.known = {key: self.known.get(key, y)}
        return self.known[key]


class Faulty(LinearLoRA):
    what = ""

    def forward(self, x):
        if self.what == "address":
            self.__dict__.setdefault("remembered", Remembers())
            return self.__dict__["remembered"](x, super().forward(x))
        if self.what == "strides":  # reads memory as if it were contiguous
            x = x.as_strided(x.shape, torch.empty(x.shape, device="meta").stride())
        if self.what == "dy":  # what is given for y arrives here as it is
            return Spoils.apply(super().forward(x), self.what)
        return super().forward(Spoils.apply(x, self.what))


def subject(what: str) -> Subject:
    class Built(Subject):
        name = what

        def build(self, config, weight, bias):
            torch.manual_seed(config.seed)
            module = Faulty(config.in_features, config.out_features, config.rank, config.alpha, bias=config.bias,
                            dropout=config.dropout, scaling=config.scaling, dtype=getattr(torch, config.dtype))
            module.what = what
            layer = TorchLayer(module, W="pre_trained_weight.weight", A="lora_A", B="lora_B",
                               b="pre_trained_weight.bias" if config.bias else None)
            layer.set_base(weight, bias)
            return layer

    return Built()


@pytest.fixture
def apart(monkeypatch):
    """Makes to_tensor behave as for CUDA: it gives a copy of the memory, in the same layout."""
    monkeypatch.setattr(conformance.torch, "to_tensor", lambda array, device="cpu": placed(to_tensor(array), device))


FAULTS = [("FWD-11", "x"), ("GRAD-15", "dy"), ("GRAD-15", "saved x"), ("FWD-12", "address"), ("FWD-10", "strides")]


@pytest.mark.parametrize("id, what", FAULTS)
def test_what_a_layer_does_to_its_input_is_seen_where_memory_is_not_shared(apart, id, what):
    options = {"dtypes": ("float32", "bfloat16"), "examples": 8, "seed": 0, "explain": False}
    found = {name: examine(REQUIREMENTS[id], subject(name), name, **options) for name in (what, "")}
    assert found[what].status == "fail", found[what]
    assert found[""].status == "pass", found[""]


def test_the_array_is_left_alone_where_the_layer_leaves_its_tensor_alone(apart):
    layer = subject("").build(LayerConfig(3, 2, 1, 1.0), np.ones((2, 3), np.float32), np.ones(2, np.float32))
    x = np.ones((4, 3), np.float32)
    layer.forward(x)
    x *= 2  # the caller's right, between the passes
    layer.backward(np.ones((4, 2), np.float32))
    assert (x == 2).all()
    x.flags.writeable = False
    spoilt = subject("x").build(LayerConfig(3, 2, 1, 1.0), np.ones((2, 3), np.float32), np.ones(2, np.float32))
    spoilt.forward(x)
    assert (x == 2).all()


@pytest.mark.parametrize("array", [
    np.arange(24.0).reshape(4, 6)[:, ::2], np.arange(24.0).reshape(4, 6)[1:, 1:4], np.arange(12.0).reshape(3, 4).T,
    np.broadcast_to(np.arange(3.0), (4, 3)), np.zeros((0, 3)), np.array(2.0), np.zeros((2, 0, 3))[:, :, ::2],
])
def test_a_copy_on_a_device_has_the_layout_of_the_array(array):
    copy = placed(to_tensor(array), "cpu")
    assert np.array_equal(to_array(copy), array)
    if array.size:
        assert copy.stride() == tuple(stride // 8 for stride in array.strides) and copy.data_ptr() != array.ctypes.data


def ready(*names: str) -> list:
    return [pytest.param(name, marks=pytest.mark.skipif(bool(missing_here(name)), reason=f"{name} is not installed here"))
            for name in names]


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
@pytest.mark.parametrize("form", ["lora_torch", "lora_torch, plain", *ready("peft", "loralib")])
def test_no_tensor_of_the_cpu_is_in_a_pass(form):
    config = LayerConfig(6, 4, 2, 4.0, device="meta", seed=3)
    layer = load(form.split(",")[0]).build(config, np.ones((4, 6), np.float32), np.ones(4, np.float32))
    assert isinstance(layer, TorchLayer)
    if "plain" in form:
        layer.measured.fast = False  # pyright: ignore[reportArgumentType]
    layer.set_adapter({"A": np.ones((6, 2), np.float32), "B": np.ones((2, 4), np.float32)})
    x = to_tensor(np.ones((3, 6), np.float32), "meta").requires_grad_()
    y = layer.measured(x)
    y.sum().backward()
    assert y.device.type == x.device.type == "meta" and x.grad is not None and layer.trainable()
    layer.step(0.5)
    assert {p.device.type for p in layer.measured.parameters()} == {"meta"}


def test_what_is_typed_to_see_a_failure_again_names_the_device(monkeypatch):
    sent = {"device": "cuda", "dtypes": ("float32", "float64"), "seed": 0}
    worker = Worker("my layers.py:Mine", sent, timeout=1.0)
    worker._process = SimpleNamespace(stdin=io.StringIO())  # pyright: ignore[reportAttributeAccessIssue]
    worker._noise = SimpleNamespace(last_words=lambda: "")  # pyright: ignore[reportAttributeAccessIssue]
    for name, answer in {"_say": None, "_answer": "took longer than 1 s", "stop": None}.items():
        monkeypatch.setattr(worker, name, lambda *_, answer=answer: answer)
    outcome = worker.examine("FWD-01")
    again = "conformance run 'my layers.py:Mine' --only FWD-01 --seed 0 --device cuda --dtype float32 float64"
    assert (outcome.status, outcome.reproduce) == ("timeout", again)

    spoilt = subject("x")
    build = spoilt.build
    monkeypatch.setattr(spoilt, "build", lambda config, *arrays: build(dataclasses.replace(config, device="cpu"), *arrays))
    outcome = examine(REQUIREMENTS["FWD-11"], spoilt, "spoilt", dtypes=("float32",), examples=2, seed=0, device="cuda")
    assert outcome.reproduce and outcome.reproduce.endswith("conformance run spoilt --only FWD-11 --seed 0 --device cuda")
    outcome = examine(REQUIREMENTS["FWD-11"], spoilt, "spoilt", dtypes=("float32",), examples=2, seed=0, asked=("float32",))
    assert outcome.reproduce and outcome.reproduce.endswith("--only FWD-11 --seed 0 --dtype float32")


@pytest.mark.parametrize("device, specs, most", [("cpu", ["a"], 6), ("cuda", ["a"], 2), ("cuda", ["a", "b", "c"], 2)])
def test_at_most_two_processes_have_a_context_on_a_gpu(monkeypatch, device, specs, most):
    alive, seen, lock = [0], [0], threading.Lock()

    class Counted:
        about, cancelled, hung = {"name": "", "version": "", "declined": []}, False, 0

        def __init__(self, *_):
            with lock:
                alive[0] += 1
                seen[0] = max(seen[0], alive[0])

        def start(self):
            time.sleep(0.05)  # for the others to start beside it

        def examine(self, id):
            time.sleep(0.01)
            return Outcome(id, "pass")

        def ask_about(self, what):
            return {}

        def stop(self):
            with lock:
                alive[0] -= 1

    monkeypatch.setattr(runner, "Worker", Counted)
    runner.run(specs, plan.Options(only=("FWD",), device=device, jobs=6))
    assert seen[0] == most and alive == [0]


class Elsewhere(Subject):
    """Builds on the CPU the layers that a case wants on another device, so that its scripts can be checked."""

    def __init__(self, name: str):
        self.own, self.name = load(name), name

    def build(self, config, weight, bias):
        return self.own.build(dataclasses.replace(config, device="cpu"), weight, bias)

    def script(self, calls, spec):
        return self.own.script(calls, spec)


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
@pytest.mark.parametrize("name", ["lora_torch", *ready("peft", "loralib")])
def test_a_script_has_all_its_tensors_on_the_device_of_the_case(name):
    traced = Traced(Elsewhere(name))
    layer = traced.build(LayerConfig(3, 2, 1, 2.0, device="meta"), np.ones((2, 3), np.float32), np.ones(2, np.float32))
    layer.set_adapter({"A": np.ones((3, 1), np.float32), "B": np.ones((1, 2), np.float32)})
    x = np.ones((4, 3), np.float32)[::2]
    layer.forward(x)
    layer.backward(np.full((2, 2), 2, np.float32))
    layer.forward(np.zeros((2, 3), np.float32))
    script = traced.script(name)
    assert script and "conformance" not in script and script.count("device='meta'") >= 4
    exec(without_numbers(script), {})  # of "meta": mixed with a tensor of the CPU, it raises
    with pytest.raises((RuntimeError, NotImplementedError)):
        exec(without_numbers(script.replace("torch.zeros(2, 3, device='meta')", "torch.zeros(2, 3)")), {})


def without_numbers(script: str) -> str:
    """A tensor of "meta" has none to print."""
    return re.sub(r"\.tolist\(\)", ".shape", script)


def test_a_linear_layer_of_the_cpu_is_refused_by_the_device_of_these_tests():
    with pytest.raises((RuntimeError, NotImplementedError)):
        nn.Linear(3, 2, device="meta")(torch.ones(1, 3))
