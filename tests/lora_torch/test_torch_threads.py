"""Threads that call a layer and merge and unmerge it at once. On integers both states give the same bits, nothing else does."""

import sys
from collections.abc import Callable
from threading import Thread

import pytest
import torch
from interrupts import at_instruction
from torch import Tensor, nn
from torch_layers import integer_layer, merged_weight, same_bits

from lora_torch import LinearLoRA

WAYS = [None, True, False]


def turn(layer: LinearLoRA) -> None:
    layer.unmerge() if layer.merged else layer.merge()


def turn_twice(layer: LinearLoRA) -> None:
    turn(layer)
    turn(layer)


def in_another_thread(action: Callable[..., object], *arguments: object) -> Callable[[], None]:
    def run() -> None:
        thread = Thread(target=action, args=arguments)
        thread.start()
        thread.join()

    return run


def with_hook(layer: LinearLoRA) -> None:
    layer.pre_trained_weight.register_forward_hook(lambda module, x, y: y + 0)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def with_another_class(layer: LinearLoRA) -> None:
    layer.pre_trained_weight.__class__ = Doubled


def trained(layer: LinearLoRA, x: Tensor, dy: Tensor) -> list[Tensor | None]:
    x = x.detach().requires_grad_()
    y = layer(x)
    layer.zero_grad()
    y.backward(dy)
    return [y.detach(), x.grad, layer.lora_A.grad, layer.lora_B.grad]


@pytest.mark.parametrize("change", [lambda layer: None, with_hook, with_another_class], ids=["bare", "hook", "class"])
@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("action", [turn, turn_twice])
@pytest.mark.parametrize("fast", WAYS)
def test_a_call_that_another_thread_disturbs_at_any_instruction(fast, action, merged, change):
    layer, x, dy = integer_layer(fast)
    change(layer)
    states = [trained(layer, x, dy)]
    layer.merge()
    states.append(trained(layer, x, dy))
    assert torch.equal(states[0][0], states[1][0])  # pyright: ignore[reportArgumentType]
    n = 0
    for call in (trained, lambda layer, x, dy: [layer(x)]):
        for n in range(10**6):
            if layer.merged != merged:
                turn(layer)
            with torch.set_grad_enabled(call is trained), at_instruction(n, in_another_thread(action, layer)) as at:
                found = call(layer, x, dy)
            if not at:
                break
            assert any(same(found, state) for state in states), (n, at)
        assert n > 10


def same(found: list[Tensor | None], state: list[Tensor | None]) -> bool:
    pairs = zip(found, state, strict=False)
    return all(a is b is None or a is not None and b is not None and torch.equal(a, b) for a, b in pairs)


def tried(step: Callable[[LinearLoRA], object], layer: LinearLoRA, errors: list[str]) -> None:
    try:
        step(layer)
    except RuntimeError as error:
        errors.append(str(error))


@pytest.mark.parametrize("one", [LinearLoRA.merge, LinearLoRA.unmerge])
@pytest.mark.parametrize("other", [LinearLoRA.merge, LinearLoRA.unmerge, turn_twice])
def test_two_threads_that_turn_the_layer_at_any_instruction(one, other):
    layer, x, _ = integer_layer()
    W, y = layer.pre_trained_weight.weight, layer(x)
    merged, bits, n, refused = merged_weight(layer), W.detach().clone(), 0, 0
    for n in range(10**6):
        if layer.merged != (one is LinearLoRA.unmerge):
            turn(layer)
        errors: list[str] = []
        with at_instruction(n, in_another_thread(tried, other, layer, errors)) as at:
            tried(one, layer, errors)
        if not at:
            break
        refused += bool(errors)
        assert all("is merged" in error or "is not merged" in error or "meanwhile" in error for error in errors)
        assert same_bits(layer.pre_trained_weight.weight, merged if layer.merged else bits), (n, at)
        assert (layer.unmerged_weight is W) == layer.merged and torch.equal(layer(x), y)
        if not layer.merged:
            assert layer.pre_trained_weight.weight is W
    assert n > 50 and refused > 10


@pytest.mark.parametrize("change", [lambda layer: None, with_hook], ids=["bare", "hook"])
def test_threads_that_call_while_one_merges(change):
    layer, x, dy = integer_layer(None)
    change(layer)
    want, failed, done = layer(x).detach(), [], []

    def calls(train: bool) -> None:
        while not done:
            with torch.set_grad_enabled(train):
                for way in (layer.forward, layer.plain, layer._fast):
                    y = way(x)
                    if y is not None and not torch.equal(y, want):
                        failed.append(y)
                    if y is not None and train:
                        y.backward(dy)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [Thread(target=calls, args=(train,)) for train in (False, True)]
    try:
        for thread in threads:
            thread.start()
        for _ in range(300):
            layer.merge()
            layer.unmerge()
    finally:
        done.append(True)
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert not failed


def test_a_layer_that_is_turned_during_every_call_of_its_frozen_part_is_refused():
    layer, x, _ = integer_layer()
    layer.pre_trained_weight.register_forward_hook(lambda *_: turn_twice(layer))
    with pytest.raises(RuntimeError, match="LinearLoRA.forward: the layer was merged or unmerged during each of 100 calls"):
        layer(x)
