"""The transformer with each method: what it computes, what trains, what folds and merges, what it refuses. No tolerance."""

import copy
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch_layers import same_bits

from lora_torch import Adapter, Config, LoRA, Prefix, Prompt, Transformer, loss
from lora_torch.adapter import PLACES

GPT = Config(11, 8, 2, 2, 2, 12, 16, "gelu", "layer", fused=True, tied=True)
LLAMA = Config(11, 8, 2, 4, 2, 12, 16, "silu", "rms", bias=False)
CONFIGS = [GPT, LLAMA, GPT._replace(fused=False, tied=False, kv_heads=1), LLAMA._replace(bias=True, fused=True)]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=["gpt", "llama", "unfused", "fused_llama"])

TOKENS = torch.tensor([[1, 5, 2, 10, 0], [3, 3, 7, 4, 9]])
MASK = torch.tensor([[False, False, True, True, True], [True, True, False, True, False]])
TARGETS = torch.tensor([[5, 2, 10, 0, -100], [3, 7, -100, 9, 1]])


def every_method(config: Config) -> dict[str, dict[str, Any]]:
    linear = "qkv_proj" if config.fused else "k_proj"
    adapters = {f"layers.{i}.{place}": Adapter(3, "gelu", 0.5) for i in range(2) for place in PLACES}
    return {
        "lora": {f"layers.0.{linear}": LoRA(2, 0.5), "layers.1.down_proj": LoRA(3, 0.3)},
        "adapters": adapters,
        "prefix": {"prefix": Prefix(3)},
        "prefix_mlp": {"prefix": Prefix(3, hidden=5)},
        "embedding": {"prompt": Prompt((0, 1, 4))},
        "mlp": {"prompt": Prompt((0, 3, 6), "mlp", hidden=5)},
        "lstm": {"prompt": Prompt((2, 3, 7), "lstm", hidden=5)},
        "all": {f"layers.1.{linear}": LoRA(2, 0.5), "prefix": Prefix(2, 3), "prompt": Prompt((1, 6), "lstm", 2)} | adapters,
    }


NAMES = list(every_method(GPT))
every_name = pytest.mark.parametrize("name", NAMES)


def model_of(config: Config, methods: dict[str, Any], **options: Any) -> Transformer:
    """Of weights ten times as large as at the start, and biases that are not zero; B of LoRA neither."""
    torch.manual_seed(3)
    model = Transformer(config, methods, **options)
    with torch.no_grad():
        for array in model.arrays().values():
            array.add_(torch.randn_like(array) / 5)
    return model


def bits(model: Transformer) -> dict[str, Tensor]:
    return {name: array.detach().clone() for name, array in model.arrays().items()}


def trained(model: Transformer) -> set[str]:
    return {name for name, array in model.arrays().items() if array.requires_grad}


def step(model: Transformer, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(TOKENS, MASK), TARGETS).backward()
        optimizer.step()


def tanh_gelu(z: Tensor) -> Tensor:
    return F.gelu(z, approximate="tanh")


def inputs_and_outputs(model: Transformer, modules: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """What each of these modules was given and gave, in one call of a copy of the model."""
    model, seen = copy.deepcopy(model), {}
    for name in modules:
        model.get_submodule(name).register_forward_hook(lambda _, x, y, name=name: seen.__setitem__(name, (x[0], y)))
    model(TOKENS)
    return seen


# The base.


def test_a_transformer_of_gpt_2s_layout_has_the_arrays_of_its_definition():
    got = {name: tuple(array.shape) for name, array in Transformer(GPT).arrays().items()}
    block = {
        "attention_norm.weight": (8,), "attention_norm.bias": (8,), "mlp_norm.weight": (8,), "mlp_norm.bias": (8,),
        "qkv_proj.weight": (24, 8), "qkv_proj.bias": (24,), "o_proj.weight": (8, 8), "o_proj.bias": (8,),
        "up_proj.weight": (12, 8), "up_proj.bias": (12,), "down_proj.weight": (8, 12), "down_proj.bias": (8,),
    }
    want = {"embed_tokens.weight": (11, 8), "embed_positions.weight": (16, 8), "norm.weight": (8,), "norm.bias": (8,)}
    assert got == want | {f"layers.{i}.{name}": shape for i in range(2) for name, shape in block.items()}


def test_a_transformer_of_llamas_layout_has_the_arrays_of_its_definition():
    got = {name: tuple(array.shape) for name, array in Transformer(LLAMA).arrays().items()}
    block = {
        "attention_norm.weight": (8,), "mlp_norm.weight": (8,), "q_proj.weight": (8, 8), "k_proj.weight": (4, 8),
        "v_proj.weight": (4, 8), "o_proj.weight": (8, 8), "gate_proj.weight": (12, 8), "up_proj.weight": (12, 8),
        "down_proj.weight": (8, 12),
    }
    want = {"embed_tokens.weight": (11, 8), "embed_positions.weight": (16, 8), "norm.weight": (8,), "lm_head.weight": (11, 8)}
    assert got == want | {f"layers.{i}.{name}": shape for i in range(2) for name, shape in block.items()}


@pytest.mark.parametrize("name", ["embed_tokens", "embed_positions", "layers.1.up_proj", "lm_head", "layers.0.o_proj"])
def test_weights_start_from_a_normal_distribution_scaled_where_they_go_into_h(name):
    config = Config(300, 128, 2, 2, 2, 200, 300, "gelu", "layer")
    torch.manual_seed(0)
    arrays = Transformer(config).arrays()
    W = arrays[f"{name}.weight"] / (0.02 / (2 if name.endswith("o_proj") else 1))
    assert 0.97 < W.std() < 1.03 and abs(W.mean()) < 0.05
    assert all(not array.any() for key, array in arrays.items() if key.endswith("bias"))
    assert all(bool((array == 1).all()) for key, array in arrays.items() if key.endswith("norm.weight"))


@every_config
@every_name
def test_after_the_same_seed_the_base_is_the_same_under_every_method(config, name):
    torch.manual_seed(1)
    base = Transformer(config).arrays()
    torch.manual_seed(1)
    arrays = Transformer(config, every_method(config)[name]).arrays()
    assert arrays.keys() > base.keys() and all(same_bits(arrays[key], array) for key, array in base.items())


@every_config
def test_later_tokens_and_masked_ones_change_nothing_and_earlier_ones_do(config):
    model = model_of(config, {})
    other = TOKENS.clone()
    other[:, 3] = torch.tensor([6, 8])
    got, want = model(other), model(TOKENS)
    assert same_bits(got[:, :3], want[:, :3]) and not (got[:, 4] == want[:, 4]).any()
    mask = torch.ones_like(MASK)
    mask[:, 3] = False
    got, want = model(other, mask), model(TOKENS, mask)
    assert same_bits(got[:, 4], want[:, 4]) and not (got[:, 3] == want[:, 3]).any()


@every_name
def test_a_mask_hides_tokens_under_every_method_and_a_wholly_hidden_row_is_finite(name):
    model = model_of(LLAMA, every_method(LLAMA)[name])
    other = torch.where(MASK, TOKENS, (TOKENS + 1) % 11)
    assert same_bits(model(other, MASK)[MASK], model(TOKENS, MASK)[MASK])
    assert model(TOKENS, torch.zeros_like(MASK)).isfinite().all()


@every_config
def test_a_hidden_token_sees_itself(config):
    model, mask = model_of(config, {}), torch.ones_like(MASK)
    want = model(TOKENS, mask)
    mask[:, 0] = False
    got = model(TOKENS, mask)
    assert same_bits(got[:, 0], want[:, 0]) and not (got[:, 1:] == want[:, 1:]).any()


def test_query_heads_in_a_row_share_one_key_head():
    few, many = model_of(LLAMA, {}), Transformer(LLAMA._replace(kv_heads=4))
    arrays = bits(few)
    for i in range(2):
        for name in (f"layers.{i}.k_proj.weight", f"layers.{i}.v_proj.weight"):
            arrays[name] = arrays[name].view(2, 1, 2, 8).expand(2, 2, 2, 8).reshape(8, 8)    # heads 0, 0, 1, 1
    many.load_arrays(arrays)
    assert torch.equal(many(TOKENS).argsort(-1), few(TOKENS).argsort(-1))
    wrong = arrays | {"layers.0.k_proj.weight": arrays["layers.0.k_proj.weight"].view(4, 2, 8)[[0, 2, 0, 2]].reshape(8, 8)}
    many.load_arrays(wrong)
    assert not torch.equal(many(TOKENS).argsort(-1), few(TOKENS).argsort(-1))


def test_a_fused_model_holds_the_rows_of_q_then_k_then_v():
    fused, apart = model_of(LLAMA._replace(fused=True), {}), Transformer(LLAMA)
    arrays = bits(fused)
    for i in range(2):
        rows = arrays.pop(f"layers.{i}.qkv_proj.weight").split((8, 4, 4))
        arrays |= {f"layers.{i}.{name}_proj.weight": W for name, W in zip("qkv", rows, strict=True)}
    apart.load_arrays(arrays)
    assert torch.equal(apart(TOKENS).argsort(-1), fused(TOKENS).argsort(-1))


def test_a_tied_model_is_the_untied_one_whose_lm_head_is_the_embedding():
    tied, untied = model_of(GPT, {}), Transformer(GPT._replace(tied=False))
    untied.load_arrays(bits(tied) | {"lm_head.weight": tied.arrays()["embed_tokens.weight"]})
    assert same_bits(untied(TOKENS), tied(TOKENS))


def test_gelu_is_the_tanh_form_and_norms_add_1e_5():
    seen = inputs_and_outputs(model_of(GPT, {}), ["layers.1.up_proj", "layers.1.down_proj"])
    up, given = seen["layers.1.up_proj"][1], seen["layers.1.down_proj"][0]
    assert same_bits(given, tanh_gelu(up)) and not torch.equal(given, F.gelu(up))
    for config in (GPT, LLAMA):
        norms = [module for name, module in Transformer(config).named_modules() if name.endswith("norm")]
        assert [module.eps for module in norms] == [1e-5] * 5


def test_silu_is_of_the_gate():
    model = Transformer(CONFIGS[3])
    arrays = {name: torch.zeros_like(array) for name, array in model.arrays().items()}
    arrays |= {"layers.0.gate_proj.bias": torch.full((12,), 1024.0), "layers.0.up_proj.bias": torch.full((12,), -1024.0)}
    model.load_arrays(arrays)
    seen = inputs_and_outputs(model, ["layers.0.down_proj"])
    assert (seen["layers.0.down_proj"][0] == -(2.0**20)).all()  # silu(1024) = 1024, silu(−1024) = 0


def test_the_loss_is_the_mean_over_targets_that_count():
    logits = torch.zeros(2, 3, 4, dtype=torch.float64)
    logits[0, 0, 1] = 1e4  # certain of the right answer: a loss of 0
    targets = torch.tensor([[1, -100, -100], [-100, 3, -100]])
    assert loss(logits, targets) == torch.tensor(4.0, dtype=torch.float64).log() / 2
    assert loss(logits[1:], targets[1:]) == torch.tensor(4.0, dtype=torch.float64).log()


# What each method adds.


@every_config
@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_adapters_that_start_at_zero_and_lora_give_the_base_bit_for_bit(config, activation):
    base = model_of(config, {})
    methods = {f"layers.{i}.{place}": Adapter(3, activation, 2.0, "zero") for i in range(2) for place in PLACES}
    model = Transformer(config, methods | {"layers.1.o_proj": LoRA(2, 3.0)})
    model.load_arrays(bits(model) | bits(base))
    assert torch.equal(model(TOKENS, MASK), base(TOKENS, MASK)) and torch.equal(model(TOKENS), base(TOKENS))


def test_adapters_start_from_the_named_distribution():
    torch.manual_seed(0)
    config = GPT._replace(width=64)
    near = Transformer(config, {"layers.0.output": Adapter(50)}).arrays()
    zero = Transformer(config, {"layers.0.output": Adapter(50, init="zero")}).arrays()
    for name in ("down", "up"):
        array = near[f"layers.0.output.{name}"]
        assert array.abs().max() <= torch.tensor(0.02) and 0.0085 < array.std() < 0.0091  # 0.88 σ, for it is cut off at 2 σ
    assert not zero["layers.0.output.up"].any() and 0.99 / 8 < zero["layers.0.output.down"].abs().max() <= 1 / 8
    assert not any(array.any() for arrays in (near, zero) for name, array in arrays.items() if name.endswith("_bias"))


@pytest.mark.parametrize("activation, f", [("relu", F.relu), ("gelu", tanh_gelu), ("silu", F.silu)])
def test_an_adapter_of_ones_and_zeros_is_its_activation(activation, f):
    model = model_of(GPT, {"layers.1.output": Adapter(3, activation, 4.0)})
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
    model = Transformer(GPT, {f"layers.1.{place}": Adapter(3, activation, 4.0, "zero")})
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
    model = Transformer(config, {"prompt": Prompt(positions)})
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
    model = Transformer(config, {"prefix": Prefix(3)})
    seen = inputs_and_outputs(base, [f"layers.{i}.{name}_proj" for i in range(2) for name in "kv"])
    keys, values = (torch.stack([seen[f"layers.{i}.{name}_proj"][1][0, :3] for i in range(2)]) for name in "kv")
    model.load_arrays(bits(base) | {"prefix.keys": keys, "prefix.values": values})
    assert torch.equal(model(TOKENS).argsort(-1), want.argsort(-1))
    model.load_arrays(bits(base) | {"prefix.keys": keys, "prefix.values": keys})
    assert not torch.equal(model(TOKENS).argsort(-1), want.argsort(-1))


def test_the_columns_of_a_prefix_are_the_keys_then_the_values_of_each_layer():
    model = Transformer(LLAMA, {"prefix": Prefix(3, hidden=5)})
    W2, b2 = torch.zeros(16, 5), torch.arange(16.0)
    model.load_arrays(bits(model) | {"prefix.W2": W2, "prefix.b2": b2})
    model.fold()
    rows = b2.view(2, 2, 1, 4).expand(2, 2, 3, 4)
    assert same_bits(model.arrays()["prefix.keys"], rows[:, 0]) and same_bits(model.arrays()["prefix.values"], rows[:, 1])


def test_the_two_layers_of_a_prefix_have_a_tanh_between_them_and_those_of_a_prompt_a_relu():
    prefix = Transformer(LLAMA, {"prefix": Prefix(3, hidden=5)})
    prompt = Transformer(LLAMA, {"prompt": Prompt((0, 1, 2), "mlp", hidden=8)})
    E = torch.tensor([1e4, -1e4, 0.0]).expand(8, 3).T    # (3, 8)
    zeros = {name: torch.zeros_like(array) for name, array in prefix.arrays().items()}
    ones = {"prefix.embedding": E, "prefix.W1": torch.eye(5, 8), "prefix.W2": torch.eye(16, 5)}
    prefix.load_arrays(zeros | ones)
    zeros = {name: torch.zeros_like(array) for name, array in prompt.arrays().items()}
    ones = {"prompt.embedding": E, "prompt.W1": torch.eye(8), "prompt.W2": torch.eye(8)}
    prompt.load_arrays(zeros | ones)
    prefix.fold()
    prompt.fold()
    assert torch.equal(prefix.arrays()["prefix.keys"][0], E[:, :4].sign())
    assert torch.equal(prompt.arrays()["prompt.embedding"], E.relu())


def test_the_lstms_arrays_are_those_of_torch_with_gates_i_f_g_o_each_way():
    """Gates of 0 and ±∞ give exact states: with i = o = 1 and g = ±1 the cell counts, with f = 1, or forgets, with f = 0."""
    methods = {"prompt": Prompt((0, 1, 2), "lstm", hidden=1)}
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
        ({f"layers.{i}.{p}_proj": LoRA(3, 1.0) for i in range(2) for p in "qv"}, 2 * 3 * ((8 + 8) + (8 + 4))),
        ({f"layers.{i}.{p}.output": Adapter(3) for i in range(2) for p in ("attention", "mlp")}, 4 * (2 * 8 * 3 + 3 + 8)),
        ({"prefix": Prefix(5)}, 2 * 2 * 5 * 4),
        ({"prefix": Prefix(5, 7)}, 5 * 8 + 7 * (8 + 1) + 16 * (7 + 1)),
        ({"prompt": Prompt(range(5))}, 5 * 8),
        ({"prompt": Prompt(range(5), "mlp", 7)}, 5 * 8 + 7 * (8 + 1) + 8 * (7 + 1)),
        ({"prompt": Prompt(range(5), "lstm", 7)}, 5 * 8 + 2 * 28 * (8 + 7 + 1) + 14 * (14 + 1) + 8 * (14 + 1)),
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
    plain = {place: method._replace(hidden=None) for place, method in methods.items() if place in ("prefix", "prompt")}
    plain = {place: m._replace(encoder="embedding") if place == "prompt" else m for place, m in plain.items()}
    other = Transformer(LLAMA, methods | plain)
    other.load_arrays(model.arrays())
    assert same_bits(other(TOKENS), want) and trained(other) == trained(model)
    model.fold()
    step(model)
    assert not torch.equal(model(TOKENS), want)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_merged_model_is_one_without_lora_and_unmerge_gives_every_bit_back(config):
    methods = every_method(config)["lora"] | ({} if config.tied else {"lm_head": LoRA(2, 2.0)})
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


# Arrays.


@every_config
@every_name
def test_arrays_go_into_another_model_and_a_state_dict_too(config, name):
    model, methods = model_of(config, every_method(config)[name]), every_method(config)[name]
    others = [Transformer(config, methods), Transformer(config, methods), copy.deepcopy(model)]
    others[0].load_arrays(model.arrays())
    others[1].load_state_dict(model.state_dict())
    for other in others:
        assert list(other.arrays()) == list(model.arrays())
        assert same_bits(other(TOKENS, MASK), model(TOKENS, MASK))


@pytest.mark.parametrize("bad", [None, torch.zeros(3, 8), 1.0])
def test_arrays_that_lack_or_do_not_fit_change_nothing(bad):
    model = model_of(LLAMA, {"prompt": Prompt((0, 2), "lstm", 3)})
    before = bits(model)
    zeros: dict[str, Any] = {name: torch.zeros_like(array) for name, array in before.items()}
    zeros["prompt.embedding"] = bad
    if bad is None:
        del zeros["prompt.embedding"]
    with pytest.raises(ValueError, match=r"Transformer.load_arrays: .*prompt\.embedding.*, expected .*, because"):
        model.load_arrays(zeros)
    with pytest.raises(ValueError, match=r"unknown prompt\.positions"):
        model.load_arrays(before | {"prompt.positions": torch.zeros(2)})
    assert all(same_bits(array, before[name]) for name, array in bits(model).items())


@every_name
def test_a_model_in_half_precision_and_one_on_meta(name):
    methods = every_method(LLAMA)[name]
    model = Transformer(LLAMA, methods, dtype=torch.bfloat16)
    assert {array.dtype for array in model.arrays().values()} == {torch.bfloat16}
    assert model(TOKENS, MASK).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        logits = Transformer(LLAMA, methods)(TOKENS, MASK)
        loss(logits, TARGETS).backward()
    meta = Transformer(LLAMA, methods, device="meta")
    assert {array.device.type for array in meta.arrays().values()} == {"meta"}


# Refusals.


@pytest.mark.parametrize(
    "field, bad",
    [(field, bad) for field in Config._fields[:7] for bad in (0, 2.0, True)]
    + [("heads", 3), ("kv_heads", 4), ("activation", "relu"), ("norm", "batch"), ("bias", 1), ("fused", None), ("tied", "no")],
)
def test_a_bad_field_of_the_config_is_named(field, bad):
    with pytest.raises(ValueError, match=rf"Config: {field} is {re.escape(repr(bad))}, expected .*, because "):
        Transformer(GPT._replace(**{field: bad}))


@pytest.mark.parametrize(
    "place",
    ["q_proj", "layers.0.q_proj", "layers.2.o_proj", "layers.-1.o_proj", "layers.0.norm", "lm_head", "embed_tokens", "", 0],
)
def test_an_unknown_place_is_refused_with_a_list_of_the_known_ones(place):
    """GPT is fused and tied: neither q_proj nor lm_head is a linear layer of it."""
    known = r"layers\.i\.qkv_proj, .*layers\.i\.output, .*prefix, prompt, with i from 0 to 1, because"
    with pytest.raises(ValueError, match=rf"is {re.escape(repr(place))}, expected one of {known}"):
        Transformer(GPT, {place: LoRA(2, 1.0)})


@pytest.mark.parametrize("place", ["layers.0.o_proj", "layers.1.attention.output", "prefix", "prompt"])
@pytest.mark.parametrize("method", [LoRA(2, 1.0), Adapter(2), Prefix(2), Prompt((0,)), None, "lora"])
def test_a_method_goes_to_no_other_place_than_its_own(place, method):
    own = {"layers.0.o_proj": LoRA, "layers.1.attention.output": Adapter, "prefix": Prefix, "prompt": Prompt}[place]
    if isinstance(method, own):
        Transformer(GPT, {place: method})
        return
    with pytest.raises(ValueError, match=rf"methods\['{place}'\] is .*, expected a method of the kind {own.__name__}, because"):
        Transformer(GPT, {place: method})


@pytest.mark.parametrize(
    "method, name",
    [(LoRA(rank, 1.0), "rank") for rank in (0, 2.0, True)] + [(LoRA(2, scale), "scale") for scale in (math.nan, math.inf, "1")]
    + [(Adapter(0), "bottleneck"), (Adapter(2, "tanh"), "activation"), (Adapter(2, scale=math.nan), "scale")]
    + [(Adapter(2, init="none"), "init"), (Prefix(0), "length"), (Prefix(2, 0), "hidden")]
    + [(Prompt(bad), "positions") for bad in ((), (1, 0), (0, 0), (-1, 0), (0.0, 1.0), "01", 3, None)]
    + [(Prompt((0,), "gru"), "encoder"), (Prompt((0,), "mlp"), "hidden"), (Prompt((0,), "embedding", 3), "hidden")],
)
def test_a_bad_value_of_a_method_is_named(method, name):
    place = {LoRA: "layers.0.o_proj", Adapter: "layers.0.output", Prefix: "prefix", Prompt: "prompt"}[type(method)]
    with pytest.raises(ValueError, match=rf"{type(method).__name__}: {name} is .*, expected .*, because "):
        Transformer(GPT, {place: method})


def test_methods_train_on_a_frozen_base():
    with pytest.raises(ValueError, match=r"Transformer: full is True, expected False beside the methods .*, because"):
        Transformer(GPT, {"prefix": Prefix(2)}, full=True)


def test_more_places_than_the_context_has_are_refused():
    tokens = torch.zeros(1, 13, dtype=torch.long)
    for methods in ({"prefix": Prefix(4)}, {"prompt": Prompt(range(4))}, {"prefix": Prefix(2), "prompt": Prompt((1, 3))}):
        model = Transformer(GPT, methods)
        assert model(tokens[:, :12]).shape == (1, 12, 11)
        with pytest.raises(ValueError, match=r"tokens is \(1, 13\), expected T \+ 4 virtual tokens ≤ context = 16, because"):
            model(tokens)
    with pytest.raises(ValueError, match=r"expected T \+ 0 virtual tokens"):
        Transformer(GPT)(torch.zeros(1, 17, dtype=torch.long))


def test_inputs_of_another_shape_or_kind_are_refused():
    model = Transformer(GPT, {"prompt": Prompt((0, 7))})
    with pytest.raises(ValueError, match=r"tokens is \(5,\), expected \(batch, T\), because"):
        model(TOKENS[0])
    for mask in (MASK[:, :4], MASK.long(), MASK[None]):
        with pytest.raises(ValueError, match=r"mask is .*, expected torch.bool and \(2, 5\), because"):
            model(TOKENS, mask)
    with pytest.raises(ValueError, match=r"positions is \(0, 7\), expected positions < 6, because 4 tokens and 2 prompts"):
        model(TOKENS[:, :4])
    with pytest.raises(IndexError):
        model(TOKENS + 5)
