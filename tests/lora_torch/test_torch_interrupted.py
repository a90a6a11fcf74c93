"""Whatever fails, and wherever it is interrupted, LinearLoRA is as it was before or as it is after, bit for bit."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from interrupts import FailingOperation, at_instruction
from torch import Tensor, nn
from torch_layers import fill, same_bits
from torch_models import LLAMA, TOKENS, model_of

from lora_torch import LinearLoRA, Transformer, lora, prefix, ptuning

IN, OUT, RANK, SCALE = 4, 3, 2, 2.0


def make(merged: bool, seed: int = 1, **options: Any) -> LinearLoRA:
    torch.manual_seed(seed)
    layer = LinearLoRA(IN, OUT, RANK, SCALE * RANK, **options)
    fill(layer, torch.Generator().manual_seed(seed))
    if merged:
        layer.merge()
    return layer


def bits(tensor: Tensor | None) -> Any:
    return None if tensor is None else (tensor.dtype, tensor.requires_grad, tensor.shape, tensor.detach().numpy().tobytes())


def seen(layer: LinearLoRA) -> Any:
    """All that a user sees of a layer."""
    x, y = torch.arange(2.0 * IN, dtype=layer.lora_A.dtype).reshape(2, IN), []
    for layer.fast in (True, None):
        y.append(bits(layer(x)))
    parameters, buffers, state = layer.named_parameters(), layer.named_buffers(), layer.state_dict().items()
    return layer.merged, y, *([(name, bits(tensor)) for name, tensor in found] for found in (parameters, buffers, state))


def turned(layer: LinearLoRA) -> Any:
    """What is seen of the layer after it is turned into the other state, and after it is turned back."""
    states = []
    for _ in range(2):
        layer.unmerge() if layer.merged else layer.merge()
        states.append(seen(layer))
    return states


OTHER = make(merged=False, seed=2).state_dict()
IN_PARENT = {f"0.{name}": tensor for name, tensor in OTHER.items()}
DOUBLE = {name: tensor.double() for name, tensor in OTHER.items()}
Start = Callable[[], LinearLoRA]
Step = Callable[[LinearLoRA], object]
STEPS: dict[str, tuple[Start, Step]] = {
    "merge": (lambda: make(False), LinearLoRA.merge),
    "unmerge": (lambda: make(True), LinearLoRA.unmerge),
    "unmerge after a cast": (lambda: make(True).double().float(), LinearLoRA.unmerge),
    "load a part": (lambda: make(True), lambda layer: layer.load_state_dict({"lora_B": OTHER["lora_B"]}, strict=False)),
    "load another dtype": (lambda: make(True), lambda layer: layer.load_state_dict(DOUBLE)),
    "load unmerged": (lambda: make(False), lambda layer: layer.load_state_dict(OTHER)),
    "load merged": (lambda: make(True), lambda layer: layer.load_state_dict(OTHER)),
    "load unmerged in a parent": (lambda: make(False), lambda layer: nn.Sequential(layer).load_state_dict(IN_PARENT)),
    "load merged in a parent": (lambda: make(True), lambda layer: nn.Sequential(layer).load_state_dict(IN_PARENT)),
    "assign unmerged": (lambda: make(False), lambda layer: layer.load_state_dict(dict(OTHER), assign=True)),
    "assign merged": (lambda: make(True), lambda layer: layer.load_state_dict(dict(OTHER), assign=True)),
    "reset": (lambda: make(False), lambda layer: (torch.manual_seed(5), layer.reset_parameters())),
}


def sweep(start: Any, step: Any, interrupted: Callable[[int], Any], seen: Any = seen, turned: Any = turned) -> int:
    """Interrupts the step at its n-th place for every n, and gives their number."""
    layer = start()
    ends = {"before": (seen(layer), turned(copy.deepcopy(layer)))}
    step(layer)
    ends["after"] = (seen(layer), turned(layer))
    n, found = 0, set()
    while True:
        layer, raised, context = start(), None, interrupted(n)
        try:
            with context as at:
                step(layer)
        except (KeyboardInterrupt, MemoryError, RuntimeError) as error:
            raised = error
            torch.set_grad_enabled(True)  # where torch's own no_grad was interrupted as it ended, it is left on
        where = at if isinstance(at, list) else at.where
        if not where:
            assert raised is None and seen(layer) == ends["after"][0]
            break
        now, again = seen(layer), turned(layer)
        assert (now, again) in ends.values(), f"between before and after at {n}: {where}"
        found.add("before" if (now, again) == ends["before"] else "after")
        n += 1
    assert "before" in found
    return n


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_is_interrupted_between_two_instructions(name):
    assert sweep(*STEPS[name], lambda n: at_instruction(n, interrupt)) > 50


@pytest.mark.parametrize("name", [name for name in STEPS if not name.startswith("unmerge")])  # it computes nothing
def test_a_step_in_which_an_operation_of_torch_fails(name):
    assert sweep(*STEPS[name], FailingOperation) > 0


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("bad", [
    "not a tensor", None, [[1.0]], torch.ones(1), torch.ones(OUT, IN)[:1], torch.ones(9, 9), torch.zeros(0),
], ids=lambda bad: str(bad)[:12])
def test_a_state_with_something_else_in_it_changes_nothing(name, bad, nested, assign, merged):
    layer = make(merged)
    before = seen(layer), turned(copy.deepcopy(layer))
    state = {**OTHER, name: bad}
    with pytest.raises(RuntimeError, match="nothing of it was loaded"):
        if nested:
            nn.Sequential(layer).load_state_dict({f"0.{key}": value for key, value in state.items()}, assign=assign)
        else:
            layer.load_state_dict(state, assign=assign)
    assert (seen(layer), turned(layer)) == before


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", OTHER)
def test_a_state_that_lacks_a_tensor_or_has_one_too_many_changes_nothing(name, assign, merged):
    layer = make(merged)
    before = seen(layer), turned(copy.deepcopy(layer))
    less = {key: tensor for key, tensor in OTHER.items() if key != name}
    for state, word in ((less, "Missing"), ({**OTHER, "C": OTHER[name]}, "Unexpected")):
        with pytest.raises(RuntimeError, match=f"Error.s. in loading state_dict for LinearLoRA:\\n\\t{word} key"):
            layer.load_state_dict(state, assign=assign)
        assert seen(layer) == before[0]
    assert turned(layer) == before[1]


@pytest.mark.parametrize("merged", [False, True])
def test_a_state_without_numbers_changes_nothing(merged):
    layer = make(merged)
    before = seen(layer), turned(copy.deepcopy(layer))
    for name in OTHER:
        for nothing in (torch.empty_like(OTHER[name], device="meta"), torch.ones(OTHER[name].shape).to_sparse().to("meta")):
            with pytest.raises(RuntimeError):
                layer.load_state_dict({**OTHER, name: nothing})
            assert seen(layer) == before[0]
    assert turned(layer) == before[1]


@pytest.mark.parametrize("merged", [False, True])
def test_numbers_that_are_not_finite_and_other_dtypes_are_loaded_as_torch_loads_them(merged):
    layer, state = make(merged), {name: tensor.clone() for name, tensor in OTHER.items()}
    state["lora_A"][0, 0], state["pre_trained_weight.weight"][0, 0] = float("nan"), float("inf")
    for dtype in (torch.float64, torch.float16, torch.int8):
        whole = not dtype.is_floating_point
        came = {name: (tensor.nan_to_num(7, 9) if whole else tensor).to(dtype) for name, tensor in state.items()}
        layer.load_state_dict(came)
        assert layer.merged == merged
        for name, tensor in layer.state_dict().items():
            assert same_bits(tensor, came[name].float()), name
        assert not merged or same_bits(layer.pre_trained_weight.weight, remerged(layer))


def remerged(layer: LinearLoRA) -> Tensor:
    other = copy.deepcopy(layer)
    other.unmerge()
    other.merge()
    return other.pre_trained_weight.weight


def test_a_hook_that_gives_the_tensors_their_names_comes_before_the_load():
    """Also where it was registered later, on a layer that is merged."""
    layer, other = make(True), make(False, seed=2)

    def rename(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
        for name in list(state):
            state[name.replace("old_", "")] = state.pop(name)

    layer.register_load_state_dict_pre_hook(rename)
    layer.load_state_dict({f"old_{name}": tensor for name, tensor in OTHER.items()})
    other.merge()
    assert seen(layer)[:2] == seen(other)[:2] and turned(layer) == turned(other)


def test_a_layer_around_a_linear_that_cannot_be_made_leaves_it_as_it_was():
    linear = nn.Linear(3, 2)
    with FailingOperation(1), pytest.raises(MemoryError):
        LinearLoRA.around(linear, 2, 1.0)
    assert all(parameter.requires_grad for parameter in linear.parameters())


def test_a_weight_that_is_computed_is_not_merged():
    layer = make(False)
    nn.utils.parametrize.register_parametrization(layer.pre_trained_weight, "weight", nn.Identity())
    before = layer(torch.ones(IN))
    with pytest.raises(RuntimeError, match="pre_trained_weight.weight is computed from other tensors, expected a Parameter"):
        layer.merge()
    assert not layer.merged and torch.equal(layer(torch.ones(IN)), before)


def seen_of_model(model: Transformer) -> Any:
    arrays = [(name, bits(array)) for name, array in model.arrays().items()]
    return model.merged, arrays, list(model.state_dict()), str(model), bits(model(TOKENS))


def turned_model(model: Transformer) -> Any:
    if "LoRA" not in str(model):
        return None
    model.unmerge() if model.merged else model.merge()
    return seen_of_model(model)


ONE = LLAMA._replace(layers=1)
METHODS = {
    "lora": {"layers.0.k_proj": lora.Config(2, 0.5), "layers.0.down_proj": lora.Config(3, 0.3)},
    "virtual": {"prefix": prefix.Config(2, 3), "prompt": ptuning.Config((1, 6), "lstm", 2)},
}


def small_model(name: str, merged: bool = False) -> Transformer:
    model = model_of(ONE, METHODS[name])
    if merged:
        model.merge()
    return model


DOUBLED = {name: 2 * array.detach().double() for name, array in small_model("lora").arrays().items()}
MODEL_STEPS: dict[str, tuple[Callable[[], Transformer], Callable[[Transformer], object]]] = {
    "merge": (lambda: small_model("lora"), Transformer.merge),
    "unmerge": (lambda: small_model("lora", merged=True), Transformer.unmerge),
    "fold": (lambda: small_model("virtual"), Transformer.fold),
    "load": (lambda: small_model("lora"), lambda model: model.load_arrays(DOUBLED)),
}


@pytest.mark.parametrize("name", ["merge", "unmerge", "fold"])
def test_a_step_of_a_model_that_is_interrupted_between_two_instructions(name):
    assert sweep(*MODEL_STEPS[name], lambda n: at_instruction(n, interrupt), seen_of_model, turned_model) > 50


@pytest.mark.parametrize("name", [name for name in MODEL_STEPS if name != "unmerge"])
def test_a_step_of_a_model_in_which_an_operation_of_torch_fails(name):
    assert sweep(*MODEL_STEPS[name], FailingOperation, seen_of_model, turned_model) > 0
