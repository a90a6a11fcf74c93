"""LinearLoRA.around: a layer around an existing nn.Linear."""

import copy

import pytest
import torch
from torch import nn
from torch_layers import Allocations, every_device, every_dtype, integers, same_bits

from lora_torch import LinearLoRA


@every_device
@every_dtype
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_linear_layer_stays_as_it_is_and_is_frozen(device, dtype, bias, training):
    linear = nn.Linear(5, 3, bias, device, dtype).train(training)
    W, before = linear.weight, copy.deepcopy(linear)
    layer = LinearLoRA.around(linear, 2, 4.0, dropout=0.5)
    assert layer.pre_trained_weight is linear and linear.weight is W and same_bits(W, before.weight)
    assert {(p.dtype, p.device) for p in layer.parameters()} == {(dtype, W.device)}
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    assert layer.training == layer.lora_dropout.training == training
    x = integers((7, 5), 2, torch.Generator().manual_seed(0)).to(W)
    assert torch.equal(layer(x), before(x))


@pytest.mark.parametrize("scaling", ["standard", "rslora"])
@pytest.mark.parametrize("init", ["gaussian", "kaiming_uniform", "kaiming_rank"])
def test_after_the_same_draws_it_is_the_layer_that_makes_its_own_base(scaling, init):
    torch.manual_seed(3)
    own = LinearLoRA(5, 3, 2, 4.0, scaling=scaling, init=init)
    torch.manual_seed(3)
    around = LinearLoRA.around(nn.Linear(5, 3), 2, 4.0, scaling=scaling, init=init)
    assert repr(around) == repr(own) and around.scale == own.scale
    assert all(same_bits(a, b) for a, b in zip(around.parameters(), own.parameters(), strict=True))


def test_no_second_weight_is_allocated_and_none_is_drawn():
    linear, rank = nn.Linear(300, 200), 2
    torch.manual_seed(0)
    with Allocations() as allocated:
        layer = LinearLoRA.around(linear, rank, 4.0)
    after = torch.get_rng_state()
    assert allocated.peak == 2 * 4 * rank * (300 + 200)  # A and B, and the numbers that are put into both at once
    torch.manual_seed(0)
    A = nn.init.normal_(torch.empty(300, rank), std=300**-0.5)
    assert same_bits(layer.lora_A, A) and torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("bad", [nn.Bilinear(2, 2, 2), nn.Linear(2, 2).weight, None, nn.Linear(2, 2, dtype=torch.complex64)])
def test_what_is_no_linear_layer_is_refused(bad):
    with pytest.raises(ValueError, match=r"(?s)LinearLoRA: linear is .*, expected an nn.Linear of floating-point .*, because"):
        LinearLoRA.around(bad, 2, 4.0)


@pytest.mark.parametrize("name, bad", [("rank", 0), ("alpha", float("nan")), ("dropout", 1.0), ("scaling", ""), ("init", "")])
def test_a_bad_choice_is_named_and_the_linear_layer_still_trains(name, bad):
    linear, good = nn.Linear(2, 2), {"rank": 1, "alpha": 1.0}
    with pytest.raises(ValueError, match=rf"LinearLoRA: {name} is .*, expected .*, because"):
        LinearLoRA.around(linear, **{**good, name: bad})
    assert all(p.requires_grad for p in linear.parameters())
