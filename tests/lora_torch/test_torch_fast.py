"""The fast, the small and the plain path of LinearLoRA give the same bits. Also: when each is taken, and what it keeps."""

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch_layers import (
    Operations,
    assert_same,
    cases,
    every_device,
    every_dtype,
    examples,
    fill,
    integer_layer,
    integers,
    is_fast,
    plain,
    run,
)

from conformance.bench.measure import Trial, saved
from lora_torch import LinearLoRA, linear, paths

every_fast = pytest.mark.parametrize("fast", [True, None])

# The same bits.


@every_device
@every_dtype
@examples
@given(
    st.data(), st.sampled_from([True, None]), st.sampled_from([0.0, 0.5, 0.75]),
    st.sampled_from(["", "x", "A", "B", "xA", "xB", "AB"]), st.integers(0, 99),
)
def test_the_paths_agree_bit_for_bit_whatever_needs_a_gradient(dtype, device, data, fast, rate, frozen, seed):
    layer, x, dy = data.draw(cases(dtype, device))
    layer.fast, layer.lora_dropout.p = fast, rate if device == "cpu" else 0.0  # on CUDA nn.Dropout draws another mask
    x.requires_grad_("x" not in frozen)
    layer.lora_A.requires_grad_("A" not in frozen)
    layer.lora_B.requires_grad_("B" not in frozen)
    other = plain(layer)
    torch.manual_seed(seed)
    got = run(layer, x, dy)
    torch.manual_seed(seed)
    assert_same(got, run(other, x, dy))


@pytest.mark.parametrize("n_in, n_out", [(3, 5), (64, 96), (62, 96), (8, 8)])
@pytest.mark.parametrize("rank", [1, 15, 16, 17])
@pytest.mark.parametrize("n", [1, 127, 128, 512, 513])
def test_each_form_of_the_thin_products_gives_the_same_bits(n_in, n_out, rank, n):
    """The sums are of integers in float64, so they are exact."""
    layer, draws = LinearLoRA(n_in, n_out, rank, float(rank), dtype=torch.float64), torch.Generator().manual_seed(rank + n)
    fill(layer, draws)
    layer.fast = True
    x, dy = integers((n, n_in), 2, draws).requires_grad_(), integers((n, n_out), 2, draws)
    assert_same(run(layer, x, dy), run(plain(layer), x, dy))
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):  # which leaves float64 alone
        assert_same(run(layer, x, dy), run(plain(layer), x, dy))


@every_device
@every_fast
def test_real_numbers_give_the_same_bits_in_every_run(device, fast):
    torch.manual_seed(0)
    layer = LinearLoRA(96, 80, 12, 8, device=device)
    layer.fast = fast
    nn.init.normal_(layer.lora_B)
    x, dy = torch.randn(700, 96, device=device, requires_grad=True), torch.randn(700, 80, device=device)
    first = run(layer, x, dy)
    for _ in range(20):
        layer.zero_grad()
        assert_same(run(layer, x, dy), first)


@examples
@given(cases(torch.float64), st.sampled_from([True, None]), st.sampled_from([0.0, 0.5]), st.integers(0, 99))
def test_second_derivatives_agree_bit_for_bit(case, fast, rate, seed):
    layer, x, dy = case
    layer.fast, layer.lora_dropout.p = fast, rate
    second = []
    for each in (layer, plain(layer)):
        torch.manual_seed(seed)
        upstream, factors = dy.detach().requires_grad_(), (x, each.lora_A, each.lora_B)
        firsts = torch.autograd.grad(each(x), factors, upstream, create_graph=True)
        weighted = sum((g * torch.arange(g.numel()).reshape(g.shape)).sum() for g in firsts)
        second.append([*firsts, *torch.autograd.grad(weighted, (*factors, upstream), allow_unused=True)])
    for fast, plain_ in zip(*second, strict=True):
        zero = torch.zeros(())  # what does not depend on it is None or a matrix of zeros
        assert torch.equal(zero if fast is None else fast + zero, zero.expand_as(fast) if plain_ is None else plain_)


# Where it is taken.


def test_fast_true_takes_the_fast_path_and_fast_false_leaves_it():
    layer, x, _ = integer_layer()
    assert is_fast(layer(x)) and is_fast(layer(x[0])) and is_fast(layer(x[0, 0]))
    assert is_fast(integer_layer(dropout=0.5)[0](x)) and is_fast(layer.train(False)(x))
    layer.fast = False
    assert not is_fast(layer(x))


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_layer_that_is_not_small_takes_the_fast_path_by_itself(rate, monkeypatch):
    layer, x, _ = integer_layer(fast=None, dropout=rate)
    assert LinearLoRA(4, 3, 2, 4.0).fast is None and not is_fast(layer(x))
    monkeypatch.setattr(linear, "SMALL", x.numel() * 3 + 1)
    assert not is_fast(layer(x))
    monkeypatch.setattr(linear, "SMALL", x.numel() * 3)
    assert is_fast(layer(x)) and not is_fast(layer(x[0]))
    layer.fast = False
    assert not is_fast(layer(x))


def test_the_small_path_is_two_products_and_one_sum():
    layer, x, _ = integer_layer(fast=None)
    with Operations() as of_three_dimensions:
        layer(x)
    with Operations() as of_two:
        layer(x[0])
    assert of_two.products == of_three_dimensions.products == ["addmm", "mm", "addmm_"]
    layer.fast = False
    with Operations() as plain_:
        layer(x)
    assert plain_.products == ["addmm", "mm", "mm"]


def hooked(part: str, kind: str):
    def change(layer: LinearLoRA) -> None:
        getattr(layer.get_submodule(part), f"register_{kind}")(lambda *_: None)

    return change


def unfrozen(name: str):
    return lambda layer: layer.get_parameter(name).requires_grad_()


class Doubling(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def with_another_base(layer: LinearLoRA) -> None:
    base = Doubling(4, 3)
    base.load_state_dict(layer.pre_trained_weight.state_dict())
    layer.pre_trained_weight = base.requires_grad_(False)


def with_another_forward(part: str):
    """Replaces the forward of a part, as libraries do that move weights before each call."""

    def change(layer: LinearLoRA) -> None:
        module = layer.get_submodule(part)
        forward = module.forward
        module.forward = lambda x: 2 * forward(x)

    return change


def with_a_tensor_as(name: str):
    """Replaces a parameter by a plain tensor, as libraries do that compute a weight before each call."""

    def change(layer: LinearLoRA) -> None:
        value = layer.pre_trained_weight.get_parameter(name).detach()
        delattr(layer.pre_trained_weight, name)
        setattr(layer.pre_trained_weight, name, 2 * value)

    return change


def with_another_dropout(layer: LinearLoRA) -> None:
    layer.lora_dropout = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("change", [
    with_another_forward("pre_trained_weight"), with_another_forward("lora_dropout"), unfrozen("pre_trained_weight.weight"),
    unfrozen("pre_trained_weight.bias"), with_another_base, with_another_dropout,
    *(hooked(part, kind) for part in ("pre_trained_weight", "lora_dropout")
      for kind in ("forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook")),
    lambda layer: layer.merge(),
])
def test_a_layer_that_was_changed_takes_the_plain_path(change):
    layer, x, _ = integer_layer()
    assert paths.small(layer, x, layer.scale) is not None
    change(layer)
    assert not is_fast(layer(x))
    layer.fast = None
    assert torch.equal(layer(x), layer.plain(x))


@pytest.mark.parametrize("change", [
    with_another_forward("pre_trained_weight"), with_another_forward("lora_dropout"), with_another_base, with_another_dropout,
    hooked("pre_trained_weight", "forward_hook"), hooked("lora_dropout", "full_backward_hook"), lambda layer: layer.merge(),
    lambda layer: layer.double(), lambda layer: setattr(layer, "lora_A", nn.Parameter(layer.lora_A.double())),
    lambda layer: setattr(layer.lora_dropout, "p", 0.5), with_a_tensor_as("weight"), with_a_tensor_as("bias"),
])
def test_the_small_path_is_not_for_a_layer_that_was_changed(change):
    layer, x, _ = integer_layer()
    change(layer)
    assert paths.small(layer, x, layer.scale) is None


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_tensor_in_the_place_of_a_parameter_counts(name):
    results = []
    for fast in (True, None, False):
        layer, x, _ = integer_layer(fast)
        with_a_tensor_as(name)(layer)
        results.append(layer(x))
    assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[2])


@every_fast
def test_hooks_on_all_modules_see_the_parts(fast):
    layer, x, _ = integer_layer(fast)
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    try:
        layer(x)
    finally:
        handle.remove()
    assert seen == ["Linear", "Dropout", "LinearLoRA"]


@every_fast
@pytest.mark.parametrize("wide", [("lora_A", "lora_B"), ("lora_A",)])
def test_a_wider_adapter_is_computed_in_its_own_dtype(wide, fast):
    layer, x, dy = integer_layer(fast, dtype=torch.float16)
    for name in wide:
        setattr(layer, name, nn.Parameter(layer.get_parameter(name).float() * 1e4))  # u = dy Bᵀ overflows float16
    if len(wide) == 2:
        _, _, dA, *_ = (*run(layer, x, dy)[:2], layer.lora_A.grad)
        assert not is_fast(layer(x)) and dA is not None and dA.isfinite().all() and dA.dtype == torch.float32
    else:
        with pytest.raises(RuntimeError, match="same dtype"):
            layer(x)


class OnlyLinear(Tensor):
    """A weight that supports F.linear and no other operation, like a quantised one."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is nn.functional.linear:
            x, W, b = args
            return nn.functional.linear(x, W.as_subclass(Tensor), b)
        if getattr(function, "__name__", "") in ("t", "addmm_", "mm"):
            raise NotImplementedError(function)
        return super().__torch_function__(function, types, args, kwargs or {})


@every_fast
def test_a_weight_of_another_class_goes_through_its_own_linear(fast):
    layer, x, _ = integer_layer(fast)
    want = layer(x)
    W = layer.pre_trained_weight.weight.detach().as_subclass(OnlyLinear)
    del layer.pre_trained_weight.weight
    layer.pre_trained_weight.weight = W  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(layer(x).as_subclass(Tensor), want)


@every_fast
def test_a_rate_of_one_that_was_set_later_leaves_the_base(fast):
    layer, x, _ = integer_layer(fast, dropout=0.5)
    layer.lora_dropout.p = 1.0
    assert torch.equal(layer(x), layer.pre_trained_weight(x))


@every_fast
def test_a_hook_on_a_part_sees_each_call(fast):
    layer, x, _ = integer_layer(fast)
    seen = []
    layer.pre_trained_weight.register_forward_hook(lambda _, args, y: seen.append(y.shape))
    layer(x)
    assert seen == [(2, 5, 3)]


@every_fast
def test_an_input_of_another_dtype_gets_the_message_of_the_frozen_layer(fast):
    layer, x, _ = integer_layer(fast)
    with pytest.raises(RuntimeError, match="same dtype") as error:
        layer(x.double())
    with pytest.raises(RuntimeError) as of_the_base:
        layer.pre_trained_weight(x.double())
    assert str(error.value) == str(of_the_base.value)


# What it keeps.


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_x_h_and_the_parameters_are_all_that_is_kept(rate):
    n, n_in, n_out, rank = 32, 40, 24, 3
    layer, x = LinearLoRA(n_in, n_out, rank, 1.0, dropout=rate), torch.randn(4, 8, n_in, requires_grad=True)
    layer.fast = True
    state = torch.get_rng_state().numel() if rate else 0  # of the mask; the mask itself would be n · in elements
    assert is_fast(layer(x)) and saved(Trial(layer, x, torch.empty(4, 8, n_out))) == n * rank * 4 + state


@pytest.mark.parametrize("frozen, kept", [("", "xWABh"), ("A", "WABh"), ("x", "xABh"), ("xA", "h"), ("AB", "WAB"), ("xAB", "")])
def test_what_no_gradient_needs_is_not_kept(frozen, kept):
    layer, x, _ = integer_layer()
    x.requires_grad_("x" not in frozen)
    layer.lora_A.requires_grad_("A" not in frozen)
    layer.lora_B.requires_grad_("B" not in frozen)
    names = {t.untyped_storage().data_ptr(): name for name, t in (
        ("x", x), ("W", layer.pre_trained_weight.weight), ("A", layer.lora_A), ("B", layer.lora_B))}
    found = []

    def pack(tensor: Tensor) -> Tensor:
        found.append(names.get(tensor.untyped_storage().data_ptr(), "h"))
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    assert "".join(sorted(set(found), key="xWABh".index)) == kept


def test_a_second_derivative_that_needs_what_was_not_kept_says_so():
    layer, x, dy = integer_layer()
    layer.lora_A.requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"lora_A is frozen, expected one that trains, because (.|\n)*keeps it"):
        torch.autograd.grad(layer(x), x, dy, create_graph=True)
    layer.fast = False
    torch.autograd.grad(layer(x), x, dy, create_graph=True)


def test_another_thread_that_draws_does_not_change_the_mask():
    layer, x, dy = integer_layer(dropout=0.5)
    nn.init.zeros_(layer.pre_trained_weight.weight)
    nn.init.zeros_(layer.pre_trained_weight.bias)
    stop = threading.Event()

    def draw() -> None:
        while not stop.is_set():
            torch.rand(3)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        for _ in range(300):
            y = layer(x)
            (dx,) = torch.autograd.grad(y, x, dy)
            assert (dx * x).sum() == (dy * y).sum()  # y is linear in x
    finally:
        stop.set()
        thread.join()


def test_what_was_kept_must_not_have_changed():
    layer, x, dy = integer_layer()
    y = layer(x)
    with torch.no_grad():
        layer.lora_A.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(dy)


@every_device
def test_backward_twice_gives_the_same_and_draws_nothing(device):
    layer, x, dy = integer_layer(dropout=0.5, device=device)
    y = layer(x)
    get_state = torch.get_rng_state if device == "cpu" else torch.cuda.get_rng_state
    state = get_state()
    first = torch.autograd.grad(y, (x, layer.lora_A, layer.lora_B), dy, retain_graph=True)
    assert_same(list(torch.autograd.grad(y, (x, layer.lora_A, layer.lora_B), dy)), list(first))
    assert torch.equal(get_state(), state)
