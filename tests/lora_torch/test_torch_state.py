"""Saving, loading and copying a LinearLoRA, merged or not. Random sequences of steps run on the layer and on a model of its
state."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn
from torch_layers import fill, integers, same_bits

from lora_torch import LinearLoRA

IN, OUT, RANK, SCALE = 4, 3, 2, 2.0
KEYS = ["lora_A", "lora_B", "pre_trained_weight.bias", "pre_trained_weight.weight"]


def integer_layer(seed: int) -> LinearLoRA:
    layer = LinearLoRA(IN, OUT, RANK, SCALE * RANK)
    fill(layer, torch.Generator().manual_seed(seed))
    return layer


def pickled(layer: nn.Module) -> LinearLoRA:
    return pickle.loads(pickle.dumps(layer))


def saved_whole(layer: nn.Module) -> LinearLoRA:
    torch.save(layer, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=False)


def snapshot(layer: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in layer.state_dict().items()}


class LayerBesideItsModel(RuleBasedStateMachine):
    """The model is the saved state, and the A and B that were merged, if any. All numbers are small integers."""

    seeds = st.integers(0, 2**32 - 1)

    @initialize(seed=seeds)
    def start(self, seed):
        self.layer = integer_layer(seed)
        self.state = snapshot(self.layer)
        self.folded = None  # (A, B) inside W while merged

    @rule()
    def merge(self):
        if self.folded is None:
            self.layer.merge()
            self.folded = self.state["lora_A"], self.state["lora_B"]
        else:
            with pytest.raises(RuntimeError):
                self.layer.merge()

    @rule()
    def unmerge(self):
        if self.folded is not None:
            self.layer.unmerge()
            self.folded = None
        else:
            with pytest.raises(RuntimeError):
                self.layer.unmerge()

    @rule(seed=seeds)
    def set_adapter(self, seed):
        draws = torch.Generator().manual_seed(seed)
        for name in ("lora_A", "lora_B"):
            self.state[name] = integers(self.state[name].shape, 1, draws).float()
            self.layer.get_parameter(name).data.copy_(self.state[name])

    @rule(seed=seeds, other_is_merged=st.booleans(), assign=st.booleans(), nested=st.booleans())
    def load(self, seed, other_is_merged, assign, nested):
        other = integer_layer(seed)
        self.state = snapshot(other)
        if other_is_merged:
            other.merge()
        if nested:
            nn.Sequential(self.layer).load_state_dict(nn.Sequential(other).state_dict(), assign=assign)
        else:
            self.layer.load_state_dict(other.state_dict(), assign=assign)
        self._merged_anew()

    @rule(seed=seeds)
    def load_adapter_alone(self, seed):
        adapter = {k: v for k, v in integer_layer(seed).state_dict().items() if k.startswith("lora")}
        self.state |= {k: v.clone() for k, v in adapter.items()}
        self.layer.load_state_dict(adapter, strict=False)
        self._merged_anew()

    @rule(name=st.sampled_from(KEYS))
    def load_another_shape(self, name):
        state = {key: tensor + 1 for key, tensor in snapshot(self.layer).items()}
        state[name] = torch.ones(*state[name].shape, 2)
        with pytest.raises(RuntimeError, match="nothing of it was loaded"):
            self.layer.load_state_dict(state)

    @rule(bad=st.sampled_from(["missing", "unexpected"]))
    def load_what_does_not_fit(self, bad):
        state = snapshot(self.layer)
        if bad == "missing":
            del state["pre_trained_weight.weight"]
        else:
            state["unmerged_weight"] = torch.ones(OUT, IN)
        with pytest.raises(RuntimeError, match="Error.s. in loading state_dict"):
            self.layer.load_state_dict(state)

    @rule(duplicate=st.sampled_from([copy.deepcopy, pickled, saved_whole]))
    def go_on_with_a_copy(self, duplicate):
        left, self.layer = self.layer, duplicate(self.layer)
        fill(left, torch.Generator().manual_seed(0))  # the copy shares nothing with it

    @rule(mode=st.booleans())
    def train(self, mode):
        self.layer.train(mode)

    @precondition(lambda self: self.folded is not None)
    @rule()
    def write_over_the_merged_weight(self):
        self.layer.pre_trained_weight.weight.zero_()
        self.layer.unmerge()
        self.folded = None

    @invariant()
    def saved_state_is_the_unmerged_one(self):
        state = self.layer.state_dict()
        assert sorted(state) == KEYS and all(same_bits(state[k], self.state[k]) for k in KEYS)
        nested = nn.Sequential(self.layer).state_dict()
        assert all(same_bits(nested["0." + k], self.state[k]) for k in KEYS)

    @invariant()
    def function_is_that_of_the_model(self):
        x = torch.arange(2.0 * IN).reshape(2, IN)
        A, B = self.folded or (self.state["lora_A"], self.state["lora_B"])
        W, b = self.state["pre_trained_weight.weight"], self.state["pre_trained_weight.bias"]
        assert self.layer.merged == (self.folded is not None)
        assert torch.equal(self.layer(x), x @ (W + SCALE * (A @ B).T).T + b)
        assert {name for name, p in self.layer.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}

    def _merged_anew(self):
        if self.folded is not None:
            self.folded = self.state["lora_A"], self.state["lora_B"]


LayerBesideItsModel.TestCase.settings = settings(max_examples=60, stateful_step_count=12, deadline=None)
TestLayerBesideItsModel = LayerBesideItsModel.TestCase


def test_a_layer_without_bias_saves_no_bias():
    layer = LinearLoRA(3, 4, 2, 1.0, bias=False)
    layer.merge()
    assert sorted(layer.state_dict()) == ["lora_A", "lora_B", "pre_trained_weight.weight"]


def test_the_saved_state_is_a_file_of_tensors_alone():
    layer = integer_layer(0)
    layer.merge()
    torch.save(layer.state_dict(), file := io.BytesIO())
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert sorted(state) == KEYS and all(same_bits(state[k], v) for k, v in layer.state_dict().items())


def test_a_layer_built_on_meta_takes_its_tensors_from_a_saved_state():
    layer, want = LinearLoRA(IN, OUT, RANK, SCALE * RANK, device="meta"), integer_layer(1)
    layer.merge()
    layer.load_state_dict(want.state_dict(), assign=True)
    x = torch.ones(IN)
    assert layer.merged and torch.equal(layer(x), want(x))


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("sizes", [(IN + 1, OUT, RANK), (IN, OUT + 1, RANK), (IN, OUT, RANK + 1)])
def test_a_state_of_another_shape_changes_nothing(sizes, merged):
    layer, other = integer_layer(0), LinearLoRA(*sizes, alpha=SCALE)
    if merged:
        layer.merge()
    before = snapshot(layer)
    with pytest.raises(RuntimeError, match=r"is \(.*\), expected \(.*\), because the layer has in, out, rank = 4, 3, 2"):
        layer.load_state_dict(other.state_dict())
    assert layer.merged == merged
    for name, tensor in layer.state_dict().items():
        assert same_bits(tensor, before[name]), name
