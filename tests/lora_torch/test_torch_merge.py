"""merge() and unmerge() keep the output, W returns bit for bit, nothing else changes, and a failed merge changes nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch_layers import (
    DTYPES,
    Allocations,
    cases,
    every_device,
    every_dtype,
    examples,
    integers,
    merged_weight,
    same_bits,
)

from lora_torch import LinearLoRA
from lora_torch.merging import COLUMNS, ROWS


def random_layer(dtype: torch.dtype = torch.float32, seed: int = 0, **options: object) -> LinearLoRA:
    torch.manual_seed(seed)
    layer = LinearLoRA(7, 5, 3, 2.0, dtype=dtype, **options)  # pyright: ignore[reportArgumentType]
    nn.init.normal_(layer.lora_B)
    return layer


@every_device
@every_dtype
@examples
@given(st.data())
def test_merged_equals_unmerged(dtype, device, data):
    layer, x, dy = data.draw(cases(dtype, device))
    want, W = layer(x), merged_weight(layer)
    (dx,) = torch.autograd.grad(want, x, dy)

    layer.merge()
    y = layer(x)
    y.backward(dy)
    assert layer.merged and torch.equal(layer.pre_trained_weight.weight, W)
    assert torch.equal(y, want) and x.grad is not None and torch.equal(x.grad, dx)
    assert [name for name, p in layer.named_parameters() if p.grad is not None] == []

    layer.unmerge()
    assert not layer.merged and torch.equal(layer(x), want)


@every_device
@every_dtype
@examples
@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_W_returns_bit_for_bit_after_any_number_of_merges(dtype, device, seed, times):
    layer = random_layer(dtype, seed).to(device)
    W, before = layer.pre_trained_weight.weight, {k: v.clone() for k, v in layer.state_dict().items()}
    for _ in range(times):
        layer.merge()
        assert layer.pre_trained_weight.weight.dtype == dtype and layer.pre_trained_weight.weight.is_contiguous()
        assert not layer.pre_trained_weight.weight.requires_grad
        assert not same_bits(layer.pre_trained_weight.weight, before["pre_trained_weight.weight"])
        for name in ("lora_A", "lora_B", "pre_trained_weight.bias"):
            assert same_bits(layer.get_parameter(name), before[name])
        layer.unmerge()
    assert layer.pre_trained_weight.weight is W  # the very Parameter, and its bits
    assert all(same_bits(v, before[k]) for k, v in layer.state_dict().items())


@pytest.mark.parametrize("dtype, u", [(torch.float32, 2.0**-24), (torch.float16, 2.0**-11), (torch.bfloat16, 2.0**-8)])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_merged_weight_is_rounded_once(dtype, u, autocast):
    # 1 + u + u² lies above the middle of 1 and its neighbour 1 + 2u. If u + u² is rounded first it is u; 1 + u gives 1.
    layer = LinearLoRA(1, 1, 2, 2, dtype=dtype)
    with torch.no_grad():
        layer.pre_trained_weight.weight.fill_(1.0)
        layer.lora_A.fill_(1.0)
        layer.lora_B.copy_(torch.tensor([[u], [u * u]]))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        layer.merge()
    assert layer.pre_trained_weight.weight.item() == 1 + 2 * u


@every_device
@pytest.mark.parametrize("dtype, digits", [(torch.float64, 20), (torch.float32, 11), (torch.float16, 8), (torch.bfloat16, 7)])
@pytest.mark.parametrize("n_out, n_in, rank", [(1, 1, 1), (65, 700, 3), (130, 4100, 5)])
def test_the_merged_weight_has_the_bits_of_the_formula_in_one_step(device, dtype, digits, n_out, n_in, rank):
    """All numbers are multiples of 2^-digits below 1, so that every sum is exact in float64 and most are not in dtype."""
    draws = torch.Generator().manual_seed(rank)
    layer = LinearLoRA(n_in, n_out, rank, rank / 4, device=device, dtype=dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(integers(parameter.shape, 2**digits - 1, draws) / 2**digits)
    W, A, B = (t.detach().double() for t in (layer.pre_trained_weight.weight, layer.lora_A, layer.lora_B))
    exact = torch.addmm(W, B.T, A.T, alpha=layer.scale)
    layer.merge()
    assert same_bits(layer.pre_trained_weight.weight, exact.to(dtype))
    assert dtype == torch.float64 or n_out == 1 or not torch.equal(exact.to(dtype).double(), exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_merge_allocates_the_merged_weight_and_a_tile_that_does_not_grow(dtype):
    rank, most = 4, []
    for n_in, n_out in ((COLUMNS, ROWS), (2 * COLUMNS, 2 * ROWS)):
        layer = LinearLoRA(n_in, n_out, rank, 1.0, dtype=dtype)
        with Allocations() as allocated:
            layer.merge()
        most.append(allocated.peak - n_in * n_out * dtype.itemsize)
    tile = 8 * (ROWS * COLUMNS + (ROWS + COLUMNS) * rank)
    assert most[0] == most[1] == (0 if dtype == torch.float64 else tile)


def test_merging_twice_and_unmerging_what_is_not_merged_are_refused_and_change_nothing():
    layer = random_layer()
    with pytest.raises(RuntimeError, match="LinearLoRA.unmerge: the layer is not merged"):
        layer.unmerge()
    layer.merge()
    W, original = layer.pre_trained_weight.weight, layer.unmerged_weight
    bits = W.clone()
    with pytest.raises(RuntimeError, match="LinearLoRA.merge: the layer is merged"):
        layer.merge()
    assert layer.pre_trained_weight.weight is W and same_bits(W, bits) and layer.unmerged_weight is original
    layer.unmerge()
    with pytest.raises(RuntimeError, match="LinearLoRA.unmerge: the layer is not merged"):
        layer.unmerge()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 6e4])
def test_W_returns_from_a_merge_that_left_no_finite_number(dtype, value):
    layer = random_layer(dtype)
    W = layer.pre_trained_weight.weight.clone()
    nn.init.constant_(layer.lora_B, value)
    nn.init.constant_(layer.lora_A, value)
    layer.merge()
    assert not same_bits(layer.pre_trained_weight.weight, W)
    layer.unmerge()
    assert same_bits(layer.pre_trained_weight.weight, W)


@pytest.mark.parametrize("columns", [1, 4])
def test_a_merge_that_fails_leaves_the_layer_as_it_was(columns):
    layer = random_layer()
    W, bits = layer.pre_trained_weight.weight, layer.pre_trained_weight.weight.clone()
    layer.lora_B = nn.Parameter(torch.ones(3, columns))  # one column would broadcast over the 5 outputs
    with pytest.raises(RuntimeError):
        layer.merge()
    assert not layer.merged and layer.pre_trained_weight.weight is W and same_bits(W, bits)
    assert "pre_trained_weight.weight" in layer.state_dict()


def test_what_is_written_to_A_and_B_while_merged_counts_from_the_next_merge():
    layer, x = random_layer(), torch.ones(2, 7)
    W = layer.pre_trained_weight.weight.clone()
    layer.merge()
    y = layer(x)
    layer.reset_parameters()
    assert same_bits(layer(x), y)
    layer.unmerge()
    assert same_bits(layer.pre_trained_weight.weight, W) and not same_bits(layer(x), y)
    layer.merge()
    assert same_bits(layer.pre_trained_weight.weight, W)  # B is zero again


def test_a_module_that_shares_W_never_sees_the_merge():
    layer, tied = random_layer(), nn.Linear(7, 5)
    tied.weight = layer.pre_trained_weight.weight
    bits = tied.weight.clone()
    layer.merge()
    assert same_bits(tied.weight, bits)
    layer.unmerge()
    assert layer.pre_trained_weight.weight is tied.weight and same_bits(tied.weight, bits)


@every_dtype
@pytest.mark.parametrize("wrap", [lambda layer: layer, nn.Sequential], ids=["alone", "nested"])
def test_a_cast_while_merged_casts_W_too(dtype, wrap):
    layer, plain = random_layer(), random_layer().to(dtype)
    layer.merge()
    wrap(layer).to(dtype)
    assert layer.merged and layer.pre_trained_weight.weight.dtype == dtype
    layer.unmerge()
    assert same_bits(layer.pre_trained_weight.weight, plain.pre_trained_weight.weight)
    assert isinstance(layer.pre_trained_weight.weight, nn.Parameter)
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}


@every_device
def test_a_move_while_merged_moves_W_too(device):
    layer, W = random_layer(), random_layer().pre_trained_weight.weight
    layer.merge()
    layer.to(device)
    layer.unmerge()
    assert layer.pre_trained_weight.weight.device.type == device and same_bits(layer.pre_trained_weight.weight.cpu(), W)


def test_merged_is_a_state_of_its_own_that_train_and_eval_leave():
    layer = random_layer(dropout=0.5)
    layer.merge()
    W = layer.pre_trained_weight.weight
    x = torch.ones(2, 7)
    assert same_bits(layer.train()(x), layer.eval()(x)) and layer.pre_trained_weight.weight is W
    layer.unmerge()
    assert not layer.train().eval().merged
