"""The Triton kernel: compiled on CUDA, and on the CPU through Triton's interpreter, which checks its arithmetic.

A compiled kernel takes no CPU tensors, so the CPU has tests only where the interpreter is on. bfloat16 has tests on CUDA alone:
NumPy, in which the interpreter computes, has no bfloat16, and the interpreter multiplies the bits as if they were integers.
"""

import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch_layers import cases, every_device, examples, integers, no_cuda

from lora_ref.error import bounds
from lora_torch import LinearLoRA, fast, paths

kernels = pytest.importorskip("lora_torch.kernels", reason="triton is not installed", exc_type=ModuleNotFoundError)
compiled = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="TRITON_INTERPRET is not 1: a compiled kernel takes no CPU tensors"
)
every_kernel = pytest.mark.parametrize("device", [pytest.param("cpu", marks=compiled), pytest.param("cuda", marks=no_cuda)])
every_kernel_and_dtype = pytest.mark.parametrize("device, dtype", [
    *(pytest.param("cpu", dtype, marks=compiled) for dtype in (torch.float32, torch.float16)),
    *(pytest.param("cuda", dtype, marks=no_cuda) for dtype in (torch.float32, torch.float16, torch.bfloat16)),
])
sizes = st.sampled_from([1, 2, 15, 63, 64, 65, 130, 700])


@every_kernel_and_dtype
@examples
@given(n=st.sampled_from([0, 1, 63, 64, 65, 200, 5000]), out=sizes, rank=st.integers(1, 33), seed=st.integers(0, 999))
def test_integers_are_exact(device, dtype, n, out, rank, seed):
    draws = torch.Generator().manual_seed(seed)
    few = (50 if dtype == torch.bfloat16 else 200) / max(n, out)  # sums below 2⁸, or below 2¹¹ for float16
    dy, B, h = (t.to(device, dtype) for t in (
        integers((n, out), 1, draws) * (torch.rand(n, out, generator=draws) < few),
        integers((rank, out), 1, draws), integers((n, rank), 1, draws),
    ))
    u, dB = kernels.one_pass(dy, B, h, 0.5)
    assert u.shape == (n, rank) and dB.shape == (rank, out) and u.dtype == dB.dtype == dtype
    assert torch.equal(u.double(), 0.5 * dy.double() @ B.double().t())
    assert torch.equal(dB.double(), h.double().t() @ dy.double())


@every_kernel
@examples
@given(st.integers(1, 200), st.integers(1, 150), st.integers(1, 20), st.integers(0, 999))
def test_real_numbers_keep_their_bounds_and_repeat_their_bits(device, n, out, rank, seed):
    torch.manual_seed(seed)
    dy, B, h = (torch.randn(shape, device=device) for shape in ((n, out), (rank, out), (n, rank)))
    u, dB = kernels.one_pass(dy, B, h, 0.3)
    for got, a, b, scale in ((u, dy, B.t(), 0.3), (dB, h.t(), dy, 1.0)):
        a, b = (t.double().cpu().numpy() for t in (a, b))
        # One sum of a.shape[1] products, one product with the scale and one rounding.
        bound = bounds._gamma(a.shape[1] + 2, bounds.PRECISIONS["float32"].u) * scale * (np.abs(a) @ np.abs(b))
        assert (np.abs(got.double().cpu().numpy() - scale * (a @ b)) <= bound).all()
    again = kernels.one_pass(dy, B, h, 0.3)
    assert torch.equal(again[0], u) and torch.equal(again[1], dB)


@no_cuda
@examples
@given(st.integers(1, 200), st.integers(1, 150), st.integers(1, 20), st.integers(0, 999))
def test_real_numbers_in_bfloat16_are_summed_in_float32_and_rounded_once(n, out, rank, seed):
    torch.manual_seed(seed)
    dy, B, h = (torch.randn(shape, device="cuda").bfloat16() for shape in ((n, out), (rank, out), (n, rank)))
    for got, a, b in zip(kernels.one_pass(dy, B, h, 0.5), (dy, h.t()), (B.t(), dy), strict=True):
        scale = 0.5 if b is not dy else 1.0
        a, b = (t.double().cpu().numpy() for t in (a, b))
        sums = bounds._gamma(a.shape[1] + 2, bounds.PRECISIONS["float32"].u) * scale * (np.abs(a) @ np.abs(b))
        bound = sums + bounds.PRECISIONS["bfloat16"].u * (np.abs(scale * (a @ b)) + sums)
        assert (np.abs(got.double().cpu().numpy() - scale * (a @ b)) <= bound).all()


@every_kernel
@examples
@given(data=st.data())
def test_strides_of_every_kind_go_in(device, data):
    draws = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    arrays = []
    for shape in ((70, 30), (5, 30), (70, 5)):
        wide = integers((2 * shape[0], 3 * shape[1]), 1, draws).float().to(device)
        forms = [wide[::2, ::3], wide[: shape[0], -shape[1] :], wide.t().contiguous().t()[: shape[0], : shape[1]]]
        arrays.append(data.draw(st.sampled_from(forms)))
    dy, B, h = arrays
    u, dB = kernels.one_pass(dy, B, h, 2.0)
    assert torch.equal(u, 2 * dy @ B.t()) and torch.equal(dB, h.t() @ dy)


@every_kernel_and_dtype
@examples
@given(data=st.data())
def test_the_fast_path_gives_the_same_bits_with_it(device, dtype, data):
    layer, x, dy = data.draw(cases(dtype, device))
    results = []
    for one_pass in (False, True):
        base = layer.pre_trained_weight
        y = fast.FrozenLinearLoRA.apply(x, base.weight, base.bias, layer.lora_A, layer.lora_B, layer.scale, 0.0, one_pass)
        results.append(torch.autograd.grad(y, (x, layer.lora_A, layer.lora_B), dy.reshape(y.shape)))  # pyright: ignore
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)


@every_device
def test_it_is_taken_on_request_alone_and_never_on_the_cpu(device, monkeypatch):
    called = []
    monkeypatch.setattr(kernels, "one_pass", lambda dy, B, h, scale: called.append(1) or (dy @ B.t(), h.t() @ dy))
    layer, x = LinearLoRA(4, 3, 2, 2.0, device=device), torch.ones(5, 4, device=device)
    layer.fast = True
    layer(x).sum().backward()
    assert not layer.one_pass and not called
    layer.one_pass = True
    layer(x).sum().backward()
    assert called == ([1] if device == "cuda" else [])
    monkeypatch.setattr(paths, "has_triton", lambda: False)
    layer(x).sum().backward()
    assert called == ([1] if device == "cuda" else [])
