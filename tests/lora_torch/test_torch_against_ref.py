"""LinearLoRA agrees with lora_ref: bit for bit on exact cases, and otherwise within bounds."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_layers import cases, every_device, every_dtype, examples

import lora_torch
from lora_ref import lora
from lora_ref.error import bounds
from lora_torch import LinearLoRA

PACKAGE = Path(lora_torch.__file__).parent


def array(tensor: Tensor) -> np.ndarray:
    """Every value of every dtype as it is, in the widest format of NumPy."""
    return tensor.detach().cpu().double().numpy().astype(np.longdouble)


def reference(layer: LinearLoRA) -> tuple[np.ndarray, np.ndarray | None, lora.LoRA]:
    W, b = layer.pre_trained_weight.weight, layer.pre_trained_weight.bias
    return array(W), None if b is None else array(b), lora.LoRA(array(layer.lora_A), array(layer.lora_B))


def gradients(layer: LinearLoRA, x: Tensor, dy: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    y = layer(x)
    return y, torch.autograd.grad(y, [x, layer.lora_A, layer.lora_B], dy)


@every_device
@every_dtype
@examples
@given(st.data())
def test_integers_agree_bit_for_bit(dtype, device, data):
    layer, x, dy = data.draw(cases(dtype, device))
    W, b, p = reference(layer)
    y, cache = lora.forward(array(x), W, b, p, layer.scale)
    dx, dp = lora.backward(array(dy), cache)
    got, (got_dx, got_dA, got_dB) = gradients(layer, x, dy)
    for mine, theirs in ((got, y), (got_dx, dx), (got_dA, dp.A), (got_dB, dp.B)):
        assert mine.dtype == dtype and np.array_equal(array(mine), theirs)
    layer.merge()
    assert np.array_equal(array(layer.pre_trained_weight.weight), lora.merge(W, b, p, layer.scale)[0])


@examples
@given(st.data(), st.integers(0, 2**32 - 1))
def test_dropout_agrees_bit_for_bit(data, seed):
    layer, x, dy = data.draw(cases())
    layer.lora_dropout.p = 0.5
    torch.manual_seed(seed)
    mask = array(nn.functional.dropout(torch.ones_like(x), 0.5))    # (…, in), 0 or 2
    y, cache = lora.forward(array(x), *reference(layer), layer.scale, mask)
    dx, dp = lora.backward(array(dy), cache)
    torch.manual_seed(seed)
    got, (got_dx, got_dA, got_dB) = gradients(layer, x, dy)
    for mine, theirs in ((got, y), (got_dx, dx), (got_dA, dp.A), (got_dB, dp.B)):
        assert np.array_equal(array(mine), theirs)


# Kernels may take a scale for zero that float32 holds as a subnormal number at best; the bounds do not reach down there.
alphas = st.floats(-8, 8).filter(lambda alpha: alpha == 0 or abs(alpha) > 2**-20)


@every_device
@every_dtype
@examples
@given(
    st.integers(1, 70), st.integers(1, 70), st.integers(1, 20), st.integers(1, 20), alphas, st.booleans(),
    st.integers(0, 2**32 - 1), st.sampled_from([None, True, False]),
)
def test_real_numbers_agree_within_the_bounds(dtype, device, n_in, n_out, rank, n, alpha, bias, seed, fast):
    torch.manual_seed(seed)
    layer = LinearLoRA(n_in, n_out, rank, alpha, bias, device=torch.device(device), dtype=dtype)
    layer.fast = fast
    nn.init.normal_(layer.lora_B)
    x = torch.randn(n, n_in).to(device, dtype).requires_grad_()
    dy = torch.randn(n, n_out).to(device, dtype)
    precision = str(dtype).removeprefix("torch.")

    W, b, p = reference(layer)
    y, cache = lora.forward(array(x), W, b, p, layer.scale)
    dx, dp = lora.backward(array(dy), cache)
    got, (got_dx, got_dA, got_dB) = gradients(layer, x, dy)
    bound_y = bounds.forward(array(x), W, b, p, layer.scale, precision)
    bound_dx, bound_dp = bounds.backward(array(dy), array(x), W, p, layer.scale, precision)
    assert np.all(np.abs(array(got) - y) <= bound_y)
    assert np.all(np.abs(array(got_dx) - dx) <= bound_dx)
    assert np.all(np.abs(array(got_dA) - dp.A) <= bound_dp.A)
    assert np.all(np.abs(array(got_dB) - dp.B) <= bound_dp.B)

    layer.merge()
    off = np.abs(array(layer.pre_trained_weight.weight) - lora.merge(W, b, p, layer.scale)[0])
    assert np.all(off <= bounds.merge_rounded_once(W, p, layer.scale, precision))


@every_device
@every_dtype
@pytest.mark.parametrize("fast", [True, None, False])
def test_a_new_layer_and_its_base_are_both_within_the_bounds_of_the_base(dtype, device, fast):
    torch.manual_seed(0)
    layer, x = LinearLoRA(70, 50, 4, 8.0, device=device, dtype=dtype), torch.randn(33, 70).to(device, dtype)
    layer.fast = fast
    W, b, p = reference(layer)
    assert b is not None and not p.B.any()
    truth, bound = array(x) @ W.T + b, bounds.forward(array(x), W, b, p, layer.scale, str(dtype).removeprefix("torch."))
    for y in (layer(x), layer.pre_trained_weight(x)):
        assert np.all(np.abs(array(y) - truth) <= bound)


def test_counts_agree():
    for n_in, n_out, rank in ((1000, 1000, 2), (7, 5, 3), (1, 1, 1)):
        layer = LinearLoRA(n_in, n_out, rank, 1.0, device="meta")
        trainable = sum(p.numel() for p in layer.parameters() if p.requires_grad)
        assert trainable == lora.parameter_count(n_in, n_out, rank)


# Two writings of one formula: neither may lean on the other.


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_lora_torch_names_torch_safetensors_and_the_standard_library_alone(path):
    allowed = {"torch", "safetensors", "lora_torch", *sys.stdlib_module_names}
    allowed |= {"triton"} if path.name == "kernels.py" else set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert {name.partition(".")[0] for name in names} <= allowed


def test_lora_torch_comes_without_lora_ref_and_conformance():
    code = "import lora_torch, sys; print(sorted({'lora_torch', 'lora_ref', 'conformance'} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=PACKAGE.parent).stdout
    assert shown.strip() == "['lora_torch']"
