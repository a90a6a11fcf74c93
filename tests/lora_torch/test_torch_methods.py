"""What each method adds to the transformer, what trains, and what merge and fold do. All comparisons of outputs are exact."""


import sys
import types
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_layers import same_bits
from torch_models import (
    CONFIGS,
    GPT,
    LLAMA,
    MASK,
    TARGETS,
    TOKENS,
    bits,
    every_config,
    every_method,
    every_name,
    inputs_and_outputs,
    model_of,
    step,
    tanh_gelu,
    trained,
)

from lora_torch import Transformer, adapter, lora, loss, prefix, ptuning
from lora_torch.adapter import PLACES

HOULSBY = [f"layers.{i}.{part}.output" for i in range(2) for part in ("attention", "mlp")]

# What each method adds.


@every_config
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_adapters_that_start_at_zero_and_lora_give_the_base_bit_for_bit(config, activation):
    base = model_of(config, {})
    methods = {f"layers.{i}.{place}": adapter.Config(3, activation, 2.0, "zero") for i in range(2) for place in PLACES}
    model = Transformer(config, methods | {"layers.1.o_proj": lora.Config(2, 3.0)})
    model.load_arrays(bits(model) | bits(base))
    assert torch.equal(model(TOKENS, MASK), base(TOKENS, MASK)) and torch.equal(model(TOKENS), base(TOKENS))


def test_adapters_start_from_the_named_distribution():
    torch.manual_seed(0)
    config = GPT._replace(width=64)
    near = Transformer(config, {"layers.0.output": adapter.Config(50)}).arrays()
    zero = Transformer(config, {"layers.0.output": adapter.Config(50, init="zero")}).arrays()
    for name in ("down", "up"):
        array = near[f"layers.0.output.{name}"]
        assert array.abs().max() <= torch.tensor(0.02) and 0.0085 < array.std() < 0.0091  # 0.88 σ, for it is cut off at 2 σ
    assert not zero["layers.0.output.up"].any() and 0.99 / 8 < zero["layers.0.output.down"].abs().max() <= 1 / 8
    assert not any(array.any() for arrays in (near, zero) for name, array in arrays.items() if name.endswith("_bias"))


@pytest.mark.parametrize("activation, f", [("relu", F.relu), ("gelu", tanh_gelu), ("silu", F.silu)])
def test_an_adapter_of_ones_and_zeros_is_its_activation(activation, f):
    model = model_of(GPT, {"layers.1.output": adapter.Config(3, activation, 4.0)})
    eye = {"layers.1.output.down": torch.eye(8)[:, :3], "layers.1.output.up": torch.eye(8)[:3]}
    biases = {"layers.1.output.down_bias": torch.zeros(3), "layers.1.output.up_bias": torch.zeros(8)}
    model.load_arrays(bits(model) | eye | biases)
    z, y = inputs_and_outputs(model, ["layers.1.adapters.output"])["layers.1.adapters.output"]
    assert torch.equal(y[..., :3], 4 * f(z[..., :3].contiguous())) and not y[..., 3:].any()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_an_adapter_of_a_constant_moves_its_place_by_scale_times_the_bias(place, activation):
    """With down = up = 0, Ad is scale · up_bias anywhere: what the bias of o_proj or down_proj would give."""
    base = model_of(GPT, {})
    model = Transformer(GPT, {f"layers.1.{place}": adapter.Config(3, activation, 4.0, "zero")})
    bias = torch.arange(8.0)
    model.load_arrays(bits(model) | bits(base) | {f"layers.1.{place}.up_bias": bias})
    linear = "o_proj" if place.startswith("attention") else "down_proj"
    moved = bits(base)
    moved[f"layers.1.{linear}.bias"] += 4 * bias
    other = Transformer(GPT)
    other.load_arrays(moved)
    assert torch.equal(model(TOKENS).argsort(-1), other(TOKENS).argsort(-1))
    assert not torch.equal(base(TOKENS).argsort(-1), other(TOKENS).argsort(-1))


@pytest.mark.parametrize("config", CONFIGS[2:], ids=["gpt", "llama"])
def test_each_adapter_is_given_what_its_place_says(config):
    model = model_of(config, every_method(config)["adapters"])
    block = "layers.1."
    parts = ["attention_norm", "o_proj", "mlp_norm", "down_proj", *(f"adapters.{place.replace('.', '/')}" for place in PLACES)]
    seen = inputs_and_outputs(model, [block + part for part in parts] + ["layers.1", "norm"])
    h, (x, x_norm) = seen["layers.1"][0], seen[block + "attention_norm"]
    assert same_bits(x, h) and same_bits(seen[block + "adapters.attention"][0], x_norm)
    for sub, linear in (("attention", "o_proj"), ("mlp", "down_proj")):
        beside, behind = seen[f"{block}adapters.{sub}"], seen[f"{block}adapters.{sub}/output"]
        assert same_bits(beside[0], seen[f"{block}{sub}_norm"][1])
        assert same_bits(behind[0], seen[block + linear][1] + beside[1])
        h = h + (behind[0] + behind[1])
        following = seen[block + ("mlp_norm" if sub == "attention" else "adapters.output")][0]
        assert same_bits(following, h)
    assert same_bits(seen["norm"][0], h + seen[block + "adapters.output"][1])


@every_config
@pytest.mark.parametrize("positions", [(0, 1, 2), (0, 3, 6), (5, 6, 7)])
@pytest.mark.parametrize("masked", [False, True])
def test_prompts_that_are_embedded_words_are_those_words_in_the_sequence(config, positions, masked):
    base, words = model_of(config, {}), torch.tensor([6, 8, 6])
    model = Transformer(config, {"prompt": ptuning.Config(positions)})
    arrays = bits(base)
    model.load_arrays(arrays | {"prompt.embedding": arrays["embed_tokens.weight"][words]})
    real = [t for t in range(8) if t not in positions]
    tokens, mask = torch.empty(2, 8, dtype=torch.long), torch.ones(2, 8, dtype=torch.bool)
    tokens[:, positions], tokens[:, real], mask[:, real] = words, TOKENS, MASK
    got, want = (model(TOKENS, MASK), base(tokens, mask)) if masked else (model(TOKENS), base(tokens))
    assert same_bits(got.argsort(-1), want[:, real].argsort(-1))


@pytest.mark.parametrize("config", [LLAMA, CONFIGS[2]], ids=["llama", "unfused"])
def test_a_prefix_of_the_keys_and_values_of_words_is_those_words_before_the_others(config):
    base = model_of(config, {})
    want = base(torch.cat([TOKENS[:1, :3].expand(2, -1), TOKENS], dim=1))[:, 3:]
    model = Transformer(config, {"prefix": prefix.Config(3)})
    seen = inputs_and_outputs(base, [f"layers.{i}.{name}_proj" for i in range(2) for name in "kv"])
    keys, values = (torch.stack([seen[f"layers.{i}.{name}_proj"][1][0, :3] for i in range(2)]) for name in "kv")
    model.load_arrays(bits(base) | {"prefix.keys": keys, "prefix.values": values})
    assert torch.equal(model(TOKENS).argsort(-1), want.argsort(-1))
    model.load_arrays(bits(base) | {"prefix.keys": keys, "prefix.values": keys})
    assert not torch.equal(model(TOKENS).argsort(-1), want.argsort(-1))


def test_the_columns_of_a_prefix_are_the_keys_then_the_values_of_each_layer():
    model = Transformer(LLAMA, {"prefix": prefix.Config(3, hidden_size=5)})
    W2, b2 = torch.zeros(16, 5), torch.arange(16.0)
    model.load_arrays(bits(model) | {"prefix.W2": W2, "prefix.b2": b2})
    model.fold()
    rows = b2.view(2, 2, 1, 4).expand(2, 2, 3, 4)
    assert same_bits(model.arrays()["prefix.keys"], rows[:, 0]) and same_bits(model.arrays()["prefix.values"], rows[:, 1])


def test_the_two_layers_of_a_prefix_have_a_tanh_between_them_and_those_of_a_prompt_a_relu():
    with_prefix = Transformer(LLAMA, {"prefix": prefix.Config(3, hidden_size=5)})
    with_prompt = Transformer(LLAMA, {"prompt": ptuning.Config((0, 1, 2), "mlp", hidden_size=8)})
    E = torch.tensor([1e4, -1e4, 0.0]).expand(8, 3).T    # (3, 8)
    zeros = {name: torch.zeros_like(array) for name, array in with_prefix.arrays().items()}
    ones = {"prefix.embedding": E, "prefix.W1": torch.eye(5, 8), "prefix.W2": torch.eye(16, 5)}
    with_prefix.load_arrays(zeros | ones)
    zeros = {name: torch.zeros_like(array) for name, array in with_prompt.arrays().items()}
    ones = {"prompt.embedding": E, "prompt.W1": torch.eye(8), "prompt.W2": torch.eye(8)}
    with_prompt.load_arrays(zeros | ones)
    with_prefix.fold()
    with_prompt.fold()
    assert torch.equal(with_prefix.arrays()["prefix.keys"][0], E[:, :4].sign())
    assert torch.equal(with_prompt.arrays()["prompt.embedding"], E.relu())


def test_the_lstms_arrays_are_those_of_torch_with_gates_i_f_g_o_each_way():
    """Gates of 0 and ±∞ give exact states: with i = o = 1 and g = ±1 the cell counts, with f = 1, or forgets, with f = 0."""
    methods = {"prompt": ptuning.Config((0, 1, 2), "lstm", hidden_size=1)}
    model, inf = Transformer(LLAMA, methods, dtype=torch.float64), 1e4
    zeros = {name: torch.zeros_like(array) for name, array in bits(model).items()}
    counts, forgets = torch.tensor([inf, inf, inf, inf]), torch.tensor([inf, -inf, inf, inf])
    eye = {"prompt.W1": torch.eye(2), "prompt.W2": torch.eye(8)[:, :2]}
    model.load_arrays(zeros | eye | {"prompt.forward_b": counts, "prompt.backward_b": forgets})
    model.fold()
    got = model.arrays()["prompt.embedding"][:, :2]    # c = 1, 2, 3 one way; 1 the other way
    assert torch.equal(got, torch.tensor([[1.0, 1], [2, 1], [3, 1]], dtype=torch.float64).tanh())



# What trains.


@every_config
@every_name
def test_logits_are_one_row_for_each_token_and_only_the_methods_arrays_move(config, name):
    model = model_of(config, every_method(config)[name])
    base = set(Transformer(config).arrays())
    before = bits(model)
    assert model(TOKENS).shape == model(TOKENS, MASK).shape == (2, 5, 11)
    assert trained(model) == model.arrays().keys() - base == model.gradients().keys()
    assert all(grad is None for grad in model.gradients().values())
    step(model)
    after = bits(model)
    assert {key for key in after if not same_bits(after[key], before[key])} == trained(model)
    assert all(grad is not None and grad.shape == after[key].shape for key, grad in model.gradients().items())
    assert all(model.get_parameter(path).grad is None for path, p in model.named_parameters() if not p.requires_grad)


@every_config
def test_full_fine_tuning_moves_the_base_whole_and_without_it_nothing_trains(config):
    model = model_of(config, {}, full=True)
    before = bits(model)
    step(model)
    assert trained(model) == {key for key in before if not same_bits(model.arrays()[key], before[key])} == before.keys()
    assert not trained(Transformer(config))


@pytest.mark.parametrize(
    "methods, count",
    [
        ({f"layers.{i}.{p}_proj": lora.Config(3, 1.0) for i in range(2) for p in "qv"}, 2 * 3 * ((8 + 8) + (8 + 4))),
        (dict.fromkeys(HOULSBY, adapter.Config(3)), 4 * (2 * 8 * 3 + 3 + 8)),
        ({"prefix": prefix.Config(5)}, 2 * 2 * 5 * 4),
        ({"prefix": prefix.Config(5, 7)}, 5 * 8 + 7 * (8 + 1) + 16 * (7 + 1)),
        ({"prompt": ptuning.Config(range(5))}, 5 * 8),
        ({"prompt": ptuning.Config(range(5), "mlp", 7)}, 5 * 8 + 7 * (8 + 1) + 8 * (7 + 1)),
        ({"prompt": ptuning.Config(range(5), "lstm", 7)}, 5 * 8 + 2 * 28 * (8 + 7 + 1) + 14 * (14 + 1) + 8 * (14 + 1)),
    ],
)
def test_as_many_numbers_train_as_the_closed_form_says(methods, count):
    model = Transformer(LLAMA, methods)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count
    assert sum(array.numel() for array in model.arrays().values() if array.requires_grad) == count


@every_name
def test_gradients_of_the_arrays_agree_with_differences(name):
    config = LLAMA._replace(layers=2, bias=True)
    model = model_of(config, every_method(config)[name], dtype=torch.float64)
    arrays = [array for array in model.arrays().values() if array.requires_grad]

    def value(*_: Tensor) -> Tensor:
        return loss(model(TOKENS, MASK), TARGETS)

    assert torch.autograd.gradcheck(value, arrays, fast_mode=True)


def test_gradients_of_the_whole_base_agree_with_differences():
    for config in CONFIGS:
        model = model_of(config, {}, full=True, dtype=torch.float64)
        arrays = list(model.arrays().values())
        assert torch.autograd.gradcheck(lambda *_, model=model: loss(model(TOKENS), TARGETS), arrays, fast_mode=True)



# Fold and merge.


@pytest.mark.parametrize("name", ["prefix", "prefix_mlp", "embedding", "mlp", "lstm", "all"])
@pytest.mark.parametrize("grad", [True, False])
def test_what_was_folded_gives_the_same_bits_from_fewer_arrays(name, grad):
    methods = every_method(LLAMA)[name]
    model = model_of(LLAMA, methods).train(grad)
    step(model)
    with torch.set_grad_enabled(grad):
        want, want_masked = model(TOKENS), model(TOKENS, MASK)
        model.fold()
        assert same_bits(model(TOKENS), want) and same_bits(model(TOKENS, MASK), want_masked)
    plain = {place: method._replace(hidden_size=None) for place, method in methods.items() if place in ("prefix", "prompt")}
    plain = {place: m._replace(encoder="embedding") if place == "prompt" else m for place, m in plain.items()}
    other = Transformer(LLAMA, methods | plain)
    other.load_arrays(model.arrays())
    assert same_bits(other(TOKENS), want) and trained(other) == trained(model)
    model.fold()
    step(model)
    assert not torch.equal(model(TOKENS), want)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_merged_model_is_one_without_lora_and_unmerge_gives_every_bit_back(config):
    methods = every_method(config)["lora"] | ({} if config.tied else {"lm_head": lora.Config(2, 2.0)})
    model = model_of(config, methods)
    before, want = bits(model), model(TOKENS)
    model.merge()
    merged = bits(model)
    plain = Transformer(config)
    plain.load_arrays(merged)
    assert same_bits(model(TOKENS), plain(TOKENS)) and not model.gradients()
    assert torch.equal(plain(TOKENS).argsort(-1), want.argsort(-1))
    assert before.keys() - merged.keys() == {f"{place}.{array}" for place in methods for array in "AB"}
    for place, method in methods.items():
        W, A, B = (before[f"{place}.{array}"].double() for array in ("weight", "A", "B"))
        assert same_bits(merged[f"{place}.weight"], torch.addmm(W, B.T, A.T, alpha=method.scale).float())
    with pytest.raises(RuntimeError, match=r"Transformer.load_arrays: the model is merged"):
        model.load_arrays(before)
    with pytest.raises(RuntimeError, match=r"Transformer.merge: the model is merged"):
        model.merge()
    model.unmerge()
    assert all(same_bits(array, before[name]) for name, array in bits(model).items()) and same_bits(model(TOKENS), want)
    with pytest.raises(RuntimeError, match=r"Transformer.unmerge: the model is not merged"):
        model.unmerge()


def test_a_model_with_nothing_to_merge_or_fold_says_so():
    model = Transformer(GPT)
    for call in (model.merge, model.unmerge, model.fold):
        with pytest.raises(RuntimeError, match=rf"Transformer.{call.__name__}: the model has n"):
            call()


# A method of one's own.


def test_a_method_is_one_file_that_nobody_else_knows_of(monkeypatch):
    """A method in a new file works as places.py describes. It adds a trained vector to the output of o_proj."""
    file = types.ModuleType("a_method_of_one_s_own")

    class Config(NamedTuple):
        value: float

    class Shift(nn.Module):
        array_names = {"linear.weight": "weight", "linear.bias": "bias", "b": "shift", "unused": None}

        def __init__(self, linear: nn.Module, value: float, width: int) -> None:
            super().__init__()
            self.linear, self.folded = linear, False
            self.b, self.unused = (nn.Parameter(torch.full((width,), value), requires_grad=i == 0) for i in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) + self.b

        def fold(self) -> None:
            self.folded = True

    def put(model, config, place, method, device, dtype):
        parent, _, name = place.rpartition(".")
        setattr(model.get_submodule(parent), name, Shift(model.get_submodule(place), method.value, config.width))

    Config.__module__ = file.__name__
    vars(file).update(Config=Config, put=put, places=lambda config: [f"layers.{i}.o_proj" for i in range(config.layers)])
    monkeypatch.setitem(sys.modules, file.__name__, file)
    methods = {"layers.1.o_proj": Config(3.0), "layers.0.o_proj": lora.Config(2, 1.0)}
    model, base = Transformer(GPT, methods), model_of(GPT, {})
    added = {"layers.0.o_proj.A", "layers.0.o_proj.B", "layers.1.o_proj.shift"}
    assert model.arrays().keys() - base.arrays().keys() == trained(model) == added
    model.load_arrays(bits(model) | bits(base))
    moved = bits(base)
    moved["layers.1.o_proj.bias"] += 3
    base.load_arrays(moved)
    assert torch.equal(model(TOKENS).argsort(-1), base(TOKENS).argsort(-1))
    model.fold()
    assert model.get_submodule("layers.1.o_proj").folded
    with pytest.raises(ValueError, match=r"the place of a a_method_of_one_s_own.Config is 'prefix', expected one of layers.i"):
        Transformer(GPT, {"prefix": Config(1.0)})
