"""The transformer: what its base computes, its arrays, what it refuses. No tolerance."""

import copy
import math
import re
from typing import Any

import pytest
import torch
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
    tanh_gelu,
)

from lora_torch import Transformer, adapter, lora, loss, prefix, ptuning
from lora_torch.transformer import Config

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
    model = model_of(LLAMA, {"prompt": ptuning.Config((0, 2), "lstm", 3)})
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
@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_a_model_in_half_precision_and_one_on_meta(name):
    methods = every_method(LLAMA)[name]
    model = Transformer(LLAMA, methods, dtype=torch.bfloat16)
    assert {array.dtype for array in model.arrays().values()} == {torch.bfloat16}
    with torch.backends.mkldnn.flags(enabled=False):  # its LSTM in half precision needs a processor with AVX-512
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
    known = r"layers\.i\.qkv_proj, layers\.i\.o_proj, layers\.i\.up_proj, layers\.i\.down_proj, with i from 0 to 1, because"
    with pytest.raises(ValueError, match=rf"the place of a lora.Config is {re.escape(repr(place))}, expected one of {known}"):
        Transformer(GPT, {place: lora.Config(2, 1.0)})


@pytest.mark.parametrize("place", ["layers.0.o_proj", "layers.1.attention.output", "prefix", "prompt"])
@pytest.mark.parametrize(
    "method", [lora.Config(2, 1.0), adapter.Config(2), prefix.Config(2), ptuning.Config((0,)), GPT, None, "lora"],
    ids=["lora", "adapter", "prefix", "ptuning", "a model's", "None", "text"],
)
def test_a_method_goes_to_no_other_place_than_its_own(place, method):
    own = {"layers.0.o_proj": lora, "layers.1.attention.output": adapter, "prefix": prefix, "prompt": ptuning}[place]
    if isinstance(method, own.Config):
        Transformer(GPT, {place: method})
        return
    if isinstance(method, tuple) and not isinstance(method, Config):
        what = rf"the place of a \w+.Config is '{place}', expected (one of layers\.i\.|prefix, |prompt, ).*because it can"
    else:
        what = rf"methods\['{place}'\] is {re.escape(repr(method))}, expected a Config of a method's file, .*, because"
    with pytest.raises(ValueError, match=what):
        Transformer(GPT, {place: method})


@pytest.mark.parametrize(
    "method, name",
    [(lora.Config(rank, 1.0), "rank") for rank in (0, 2.0, True)]
    + [(lora.Config(2, scale), "scale") for scale in (math.nan, math.inf, "1")]
    + [(adapter.Config(0), "bottleneck"), (adapter.Config(2, "tanh"), "activation")]
    + [(adapter.Config(2, scale=math.nan), "scale"), (adapter.Config(2, init="none"), "init")]
    + [(prefix.Config(0), "length"), (prefix.Config(2, 0), "hidden_size")]
    + [(ptuning.Config(bad), "positions") for bad in ((), (1, 0), (0, 0), (-1, 0), (0.0, 1.0), "01", 3, None)]
    + [(ptuning.Config((0,), "gru"), "encoder"), (ptuning.Config((0,), "mlp"), "hidden_size")]
    + [(ptuning.Config((0,), "embedding", 3), "hidden_size")],
)
def test_a_bad_value_of_a_method_is_named(method, name):
    file = type(method).__module__.removeprefix("lora_torch.")
    place = {"lora": "layers.0.o_proj", "adapter": "layers.0.output", "prefix": "prefix", "ptuning": "prompt"}[file]
    with pytest.raises(ValueError, match=rf"{file}.Config: {name} is .*, expected .*, because "):
        Transformer(GPT, {place: method})


def test_methods_train_on_a_frozen_base():
    with pytest.raises(ValueError, match=r"Transformer: full is True, expected False beside the methods .*, because"):
        Transformer(GPT, {"prefix": prefix.Config(2)}, full=True)


def test_more_places_than_the_context_has_are_refused():
    tokens = torch.zeros(1, 13, dtype=torch.long)
    both = {"prefix": prefix.Config(2), "prompt": ptuning.Config((1, 3))}
    for methods in ({"prefix": prefix.Config(4)}, {"prompt": ptuning.Config(range(4))}, both):
        model = Transformer(GPT, methods)
        assert model(tokens[:, :12]).shape == (1, 12, 11)
        with pytest.raises(ValueError, match=r"tokens is \(1, 13\), expected T \+ 4 virtual tokens ≤ context = 16, because"):
            model(tokens)
    with pytest.raises(ValueError, match=r"expected T \+ 0 virtual tokens"):
        Transformer(GPT)(torch.zeros(1, 17, dtype=torch.long))


def test_inputs_of_another_shape_or_kind_are_refused():
    model = Transformer(GPT, {"prompt": ptuning.Config((0, 7))})
    with pytest.raises(ValueError, match=r"tokens is \(5,\), expected \(batch, T\), because"):
        model(TOKENS[0])
    for mask in (MASK[:, :4], MASK.long(), MASK[None]):
        with pytest.raises(ValueError, match=r"mask is .*, expected torch.bool and \(2, 5\), because"):
            model(TOKENS, mask)
    with pytest.raises(ValueError, match=r"positions is \(0, 7\), expected positions < 6, because 4 tokens and 2 prompts"):
        model(TOKENS[:, :4])
    with pytest.raises(IndexError):
        model(TOKENS + 5)
