"""LinearLoRA: dropout as the output shows it, and layers whose parts have different dtypes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch_layers import cases, every_device, examples

from lora_torch import LinearLoRA

# Dropout. With A = B = I, W = 0 and scale 1 the output is the dropped-out input itself.


every_fast = pytest.mark.parametrize("fast", [True, None])


def mirror(d: int, dropout: float, device: str, fast: bool | None) -> LinearLoRA:
    layer = LinearLoRA(d, d, d, d, bias=False, dropout=dropout, device=device)
    layer.fast = fast
    with torch.no_grad():
        layer.lora_A.copy_(torch.eye(d))
        layer.lora_B.copy_(torch.eye(d))
        layer.pre_trained_weight.weight.zero_()
    return layer


@every_device
@every_fast
def test_dropout_zeroes_or_doubles_the_input_of_A_in_training_alone(device, fast):
    torch.manual_seed(0)
    layer, x = mirror(16, 0.5, device, fast), torch.arange(1.0, 257, device=device).reshape(16, 16)
    kept = layer(x) / x
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(layer(x) / x, kept)  # equal once in 2²⁵⁶
    assert torch.equal(layer.eval()(x), x)
    assert not torch.equal(layer.train()(x), x)
    nn.init.ones_(layer.pre_trained_weight.weight)
    base = layer.pre_trained_weight(x)
    assert set(((layer(x) - base) / x).unique().tolist()) == {0.0, 2.0}  # the base sees all of x


@every_device
@every_fast
def test_dropout_is_the_probability_of_a_zero(device, fast):
    torch.manual_seed(0)
    dropped = (mirror(100, 0.75, device, fast)(torch.ones(100, 100, device=device)) == 0).sum()
    assert 7100 < dropped < 7900  # Hoeffding: outside once in 2 exp(−2 · 10⁴ · 0.04²) < 3e-14


@every_device
@examples
@given(st.data())
def test_the_gradients_see_the_mask_that_the_output_saw(device, data):
    layer, x, dy = data.draw(cases(torch.float32, device))
    layer.lora_dropout.p = 0.5
    with torch.no_grad():
        for parameter in layer.pre_trained_weight.parameters():
            parameter.zero_()
    y = layer(x)
    factors = [x, layer.lora_A, layer.lora_B]
    # Linear in x, in A and in B, each alone: ⟨dy, y⟩ = ⟨dx, x⟩ = ⟨dA, A⟩ = ⟨dB, B⟩.
    want = (dy * y).sum()
    for factor, gradient in zip(factors, torch.autograd.grad(y, factors, dy), strict=True):
        assert (gradient * factor).sum() == want


# Dtypes.


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16], ids=str)
@examples
@given(st.data())
def test_a_wider_adapter_answers_in_the_dtype_of_the_base(narrow, data):
    layer, x, dy = data.draw(cases(narrow))
    want = layer(x)
    layer.lora_A, layer.lora_B = nn.Parameter(layer.lora_A.float()), nn.Parameter(layer.lora_B.float())
    y = layer(x)
    gradients = torch.autograd.grad(y, [x, layer.lora_A, layer.lora_B], dy)
    assert y.dtype == narrow and torch.equal(y, want)
    assert [g.dtype for g in gradients] == [narrow, torch.float32, torch.float32]


@every_device
@examples
@given(st.data())
def test_autocast_answers_in_the_lower_dtype_with_gradients_in_the_higher(device, data):
    layer, x, dy = data.draw(cases(torch.float32, device))
    want = layer(x)
    with torch.autocast(device, torch.bfloat16):
        y = layer(x)
        layer.merge()
        assert torch.equal(layer(x), y)
    layer.unmerge()
    gradients = torch.autograd.grad(y, [x, layer.lora_A, layer.lora_B], dy.bfloat16())
    assert y.dtype == torch.bfloat16 and torch.equal(y.float(), want)
    assert {g.dtype for g in gradients} == {torch.float32}
