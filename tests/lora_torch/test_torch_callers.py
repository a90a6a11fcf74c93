"""LinearLoRA works with inputs of all strides, and under checkpointing, autocast, torch.compile, torch.func and tracing."""

import copy

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint
from torch_layers import (
    assert_same,
    every_device,
    every_device_and_rate,
    every_dtype,
    integer_layer,
    is_fast,
    plain,
    run,
    same_bits,
)

STRIDES = {
    "as made": lambda t: t,
    "none": lambda t: t[:0],
    "a vector": lambda t: t[0, 0],
    "five dimensions": lambda t: t.reshape(1, 1, 1, *t.shape),
    "transposed": lambda t: t.transpose(0, 1),
    "columns first": lambda t: t[0].t().contiguous().t(),
    "one column for all": lambda t: t[..., :1].expand(t.shape),
    "one row for all": lambda t: t[:, :1].expand(t.shape),
    "one number for all": lambda t: t.sum().expand(t.shape),
    "each second row": lambda t: t[:, ::2],
    "a part of wider rows": lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
}


@every_device
@every_dtype
@pytest.mark.parametrize("strides", STRIDES)
def test_strides_of_every_kind_go_in(device, dtype, strides):
    layer, x, dy = integer_layer(device=device, dtype=dtype)
    x, dy = STRIDES[strides](x.detach() % 2).requires_grad_(), STRIDES[strides](dy % 2)
    want, got = (torch.autograd.grad(each(x), (x, each.lora_A, each.lora_B), dy) for each in (plain(layer), layer))
    assert_same(list(got), list(want))


@every_device
@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(device, rate, reentrant):
    layer, x, dy = integer_layer(device=device, dropout=rate)
    other = copy.deepcopy(layer)
    torch.manual_seed(0)
    want = run(layer, x, dy)
    torch.manual_seed(0)
    y = checkpoint(other, again := x.detach().requires_grad_(), use_reentrant=reentrant)
    assert isinstance(y, Tensor)
    torch.manual_seed(99)  # what happens in between moves the generator
    y.backward(dy)
    assert_same([y.detach(), again.grad, *(p.grad for p in other.parameters())], want)


@every_device_and_rate
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("inside", [False, True])
def test_autocast_gives_the_same_as_on_the_plain_path(device, dtype, inside, rate):
    layer, x, dy = integer_layer(device=device, dropout=rate)
    results = []
    for each in (layer, plain(layer)):
        torch.manual_seed(0)
        leaf = x.detach().requires_grad_()
        with torch.autocast(device, dtype):
            y = each(leaf)
            if inside:
                y.backward(dy.to(dtype))
        if not inside:
            y.backward(dy.to(dtype))
        results.append([y.detach(), leaf.grad, *(p.grad for p in each.parameters())])
        assert y.dtype == dtype and leaf.grad is not None and leaf.grad.dtype == torch.float32
        assert is_fast(y) == each.fast
    assert_same(*results)


@every_device
def test_a_backward_pass_inside_autocast_of_a_forward_pass_outside_stays_in_its_dtype(device):
    layer, x, dy = integer_layer(device=device)
    want = run(copy.deepcopy(layer), x, dy)
    y = layer(x)
    with torch.autocast(device, torch.bfloat16):
        y.backward(dy)
    assert_same([y.detach(), x.grad, *(p.grad for p in layer.parameters())], want)


@every_device
def test_autocast_leaves_a_double_layer_alone(device):
    layer, x, dy = integer_layer(device=device, dtype=torch.float64)
    with torch.autocast(device, torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.float64 and is_fast(y)


@every_device_and_rate
def test_torch_compile_takes_the_layer_as_one_graph(device, rate):
    layer, x, dy = integer_layer(device=device, dropout=rate)
    compiled = torch.compile(copy.deepcopy(layer), backend="aot_eager", fullgraph=True)
    torch.manual_seed(0)
    want = run(layer, x, dy)
    torch.manual_seed(0)
    assert_same(run(compiled, x, dy), want)  # pyright: ignore[reportArgumentType]


@every_device
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # forward mode uses it, in torch itself
def test_torch_func_takes_gradients_of_a_batch_of_each_sample_and_forward_ones(device):
    layer, x, dy = integer_layer(device=device, dtype=torch.float64)
    x = x.detach().reshape(10, 4)
    dy = dy.reshape(10, 3)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, dy: Tensor) -> Tensor:
        return (torch.func.functional_call(layer, parameters, (x,)) * dy).sum()

    whole = torch.func.grad(loss)(parameters, x, dy)
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, dy)
    _, dx, *_ = run(layer, x.requires_grad_(), dy)
    for name, p in layer.named_parameters():
        assert p.grad is None or torch.equal(whole[name], p.grad)
        assert torch.equal(each[name].sum(0), whole[name])
    tangent = torch.ones_like(x)
    _, forward = torch.func.jvp(layer, (x.detach(),), (tangent,))
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(layer(forward_ad.make_dual(x.detach(), tangent))).tangent
    assert dx is not None and torch.equal((forward * dy).sum(), (dx * tangent).sum()) and torch.equal(dual, forward)


@every_device
def test_a_batch_of_gradients_goes_through_the_backward_pass(device):
    layer, x, dy = integer_layer(device=device, dtype=torch.float64)
    factors, rows = (x, layer.lora_A, layer.lora_B), torch.stack([dy, -dy, 2 * dy])
    batched = torch.autograd.grad(layer(x), factors, rows, is_grads_batched=True)
    one_by_one = [torch.autograd.grad(layer(x), factors, row) for row in rows]
    assert_same(list(batched), [torch.stack(gradients) for gradients in zip(*one_by_one, strict=True)])
    y = layer(x)
    mapped = torch.func.vmap(lambda row: torch.autograd.grad(y, factors, row, retain_graph=True))(rows)
    assert is_fast(y)
    assert_same(list(mapped), list(batched))


def test_what_comes_after_may_write_into_the_output():
    layer, x, dy = integer_layer()
    for form in (x, x.detach().reshape(10, 4).requires_grad_()):
        y = layer(form).mul_(2)
        (dx,) = torch.autograd.grad(y, form, dy.reshape(y.shape))
        (want,) = torch.autograd.grad(2 * plain(layer)(form), form, dy.reshape(y.shape))
        assert torch.equal(dx, want)


def test_where_no_gradient_is_asked_for_the_output_is_the_same():
    layer, x, _ = integer_layer(dropout=0.5)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            y = layer.eval()(x)
        assert not y.requires_grad and torch.equal(y, plain(layer)(x))


@pytest.mark.filterwarnings("ignore")  # torch.jit.trace is deprecated, and says of each branch that it is one
def test_a_trace_holds_the_operations_of_torch():
    layer, x, _ = integer_layer()
    assert same_bits(torch.jit.trace(layer, x.detach())(x.detach()), layer(x).detach())
    assert same_bits(torch.export.export(layer, (x.detach(),)).module()(x.detach()).detach(), layer(x).detach())
