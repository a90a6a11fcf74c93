"""LinearLoRA: what it computes, how it starts, what it trains."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch_layers import cases, every_device, every_dtype, examples, integers, same_bits

from lora_torch import LinearLoRA

sizes = st.integers(1, 40)


def test_the_readme_example():
    layer = LinearLoRA(in_features=64, out_features=64, rank=4, alpha=8)
    assert layer(torch.randn(2, 8, 64)).shape == torch.Size([2, 8, 64])
    assert layer.scale == 2.0 and not layer.merged


# The three properties: a new layer is its base; rank · (in + out) numbers train; and in test_torch_merge.py, merged is
# unmerged.


@every_device
@every_dtype
@examples
@given(
    sizes, sizes, st.integers(1, 9), st.booleans(), st.sampled_from([(), (0,), (1,), (3, 7)]),
    st.sampled_from([True, None, False]), st.booleans(), st.integers(0, 99),
)
def test_a_new_layer_gives_the_outputs_of_its_base_bit_for_bit(
    dtype, device, n_in, n_out, rank, bias, leading, fast, whole, seed
):
    """On the CPU for all numbers, on CUDA where every sum is exact. The bounds elsewhere: test_torch_against_ref.py."""
    layer = LinearLoRA(n_in, n_out, rank, 3.0, bias, dropout=0.5, device=device, dtype=dtype)
    layer.fast = fast
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(*leading, n_in, generator=draws).to(device, dtype)
    if whole or device == "cuda":  # sums of at most 40 products of at most 2 · 1, and a bias: below 2⁸
        x = integers((*leading, n_in), 1, draws).to(device, dtype)
        for parameter in layer.pre_trained_weight.parameters():
            parameter.copy_(integers(parameter.shape, 2, draws))
        assert torch.equal(layer(x), layer.pre_trained_weight(x))
        return
    assert same_bits(layer(x), layer.pre_trained_weight(x))
    assert same_bits(layer.eval()(x), layer.pre_trained_weight(x))


@examples
@given(sizes, sizes, st.integers(1, 9), st.booleans())
def test_only_A_and_B_train_rank_times_in_plus_out(n_in, n_out, rank, bias):
    layer = LinearLoRA(n_in, n_out, rank, 1.0, bias)
    trainable = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    assert {name: tuple(p.shape) for name, p in trainable.items()} == {"lora_A": (n_in, rank), "lora_B": (rank, n_out)}
    assert sum(p.numel() for p in trainable.values()) == rank * (n_in + n_out)
    layer.double().to("cpu", torch.bfloat16)
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}


def test_a_square_layer_trains_2dr_and_d_1000_r_2_trains_250_times_fewer():
    d, r = 1000, 2
    layer = LinearLoRA(d, d, r, 1.0, device="meta")
    trainable = sum(p.numel() for p in layer.parameters() if p.requires_grad)
    assert (layer.pre_trained_weight.weight.numel(), trainable) == (1_000_000, 4_000) == (250 * trainable, 2 * d * r)


# Start: the same generator draws the same numbers, and powers of two scale them exactly.


@pytest.mark.parametrize("n_in", [1, 4, 64])
@pytest.mark.parametrize("rank", [1, 3, 16])
def test_A_starts_from_the_named_distribution_and_B_from_zero(n_in, rank):
    def drawn(draw) -> torch.Tensor:
        torch.manual_seed(5)
        return draw(torch.empty(n_in, rank))

    bound = 1 / math.sqrt(n_in)
    want = {
        "gaussian": drawn(nn.init.normal_) * bound,
        "kaiming_uniform": drawn(lambda A: A.uniform_(-1, 1)) * bound,
        "kaiming_rank": drawn(lambda A: nn.init.kaiming_normal_(A, a=0.01)),
    }
    for init, A in want.items():
        layer = LinearLoRA(n_in, 5, rank, 1.0, init=init)
        before = layer.pre_trained_weight.weight.clone()
        nn.init.ones_(layer.lora_B)
        drawn(lambda _, layer=layer: layer.reset_parameters())
        assert same_bits(layer.lora_A, A) and same_bits(layer.lora_B, torch.zeros(rank, 5)), init
        assert same_bits(layer.pre_trained_weight.weight, before)
    assert same_bits(LinearLoRA(n_in, 5, rank, 1.0).lora_B, torch.zeros(rank, 5))


@pytest.mark.parametrize("init", ["gaussian", "kaiming_uniform", "kaiming_rank"])
def test_A_is_nowhere_zero_or_constant_in_a_new_layer(init):
    A = LinearLoRA(64, 3, 8, 1.0, init=init).lora_A
    assert A.count_nonzero() == A.numel() and A.std() > 0


# What it computes.


@pytest.mark.parametrize("scaling, rank, scale", [("standard", 4, 2.0), ("rslora", 4, 4.0), ("rslora", 9, 8 / 3)])
def test_scale_is_alpha_over_rank_or_over_its_root(scaling, rank, scale):
    assert LinearLoRA(3, 5, rank, 8, scaling=scaling).scale == scale


@every_device
@every_dtype
@examples
@given(st.data())
def test_leading_dimensions_are_only_a_list_of_samples(dtype, device, data):
    layer, x, _ = data.draw(cases(dtype, device))
    y = layer(x)
    assert y.dtype == dtype and y.shape == (*x.shape[:-1], layer.out_features)
    for row, got in zip(x.reshape(-1, layer.in_features), y.reshape(-1, layer.out_features), strict=True):
        assert torch.equal(layer(row), got)


@examples
@given(cases())
def test_alpha_zero_is_the_base_and_the_update_is_linear_in_alpha(case):
    layer, x, _ = case
    base, full = layer.pre_trained_weight(x), layer(x)
    layer.scale /= 2
    assert torch.equal(2 * (layer(x) - base), full - base)
    still = LinearLoRA(layer.in_features, layer.out_features, layer.rank, alpha=0)
    still.load_state_dict(layer.state_dict(), strict=False)  # a layer without bias keeps the one of `still`
    assert torch.equal(still(x), still.pre_trained_weight(x))


@examples
@given(cases())
def test_a_call_changes_nothing_and_takes_any_strides(case):
    layer, x, dy = case
    before, state = x.detach().clone(), {k: v.clone() for k, v in layer.state_dict().items()}
    want = torch.autograd.grad(layer(x), [x, layer.lora_A, layer.lora_B], dy)
    strided_x = x.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_()
    strided_dy = dy.repeat_interleave(3, -1)[..., ::3]
    got = torch.autograd.grad(layer(strided_x), [strided_x, layer.lora_A, layer.lora_B], strided_dy)
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
    assert torch.equal(x, before) and all(same_bits(v, state[k]) for k, v in layer.state_dict().items())


def test_a_step_moves_B_then_A_and_leaves_the_frozen_layer():
    layer = LinearLoRA(6, 5, 2, 4)
    start = {k: v.clone() for k, v in layer.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in layer.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        layer(torch.ones(3, 6)).square().sum().backward()
        optimizer.step()
    moved = {k for k, v in layer.state_dict().items() if not same_bits(v, start[k])}
    assert moved == {"lora_A", "lora_B"}
    assert layer.pre_trained_weight.weight.grad is None and layer.pre_trained_weight.bias.grad is None


def test_a_layer_on_meta_has_shapes_and_no_numbers():
    layer = LinearLoRA(10**6, 10**6, 8, 16, device="meta", dtype=torch.bfloat16)
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    assert layer(torch.empty(2, 10**6, device="meta", dtype=torch.bfloat16)).shape == (2, 10**6)
    layer.merge()
    layer.unmerge()


def test_the_representation_says_what_the_layer_is():
    text = repr(LinearLoRA(64, 32, 4, 8, dropout=0.25, scaling="rslora"))
    parts = ["in_features=64", "out_features=32", "rank=4", "alpha=8", "scale=4", "rslora", "p=0.25", "merged=False"]
    assert [part for part in parts if part not in text] == []
