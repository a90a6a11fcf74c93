"""Small random models of transformers, and how an adapter of lora_torch and one of PEFT are compared on them."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from conformance.truth.compare import expect_within_spread

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install -e '.[peers]')")
peft = pytest.importorskip("peft", reason="peft is not installed (pip install -e '.[peers]')")

TOKENS = torch.tensor([[5, 17, 3, 60, 2, 41, 9], [0, 5, 5, 33, 62, 8, 1]])
FINER = 2.0**-29  # the unit roundoff of float64 over that of float32


def llama(tied: bool = False, **options: Any) -> nn.Module:
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(**sizes, num_hidden_layers=2, tie_word_embeddings=tied, **options)
    return drawn(transformers.LlamaForCausalLM, config)


def tied_llama() -> nn.Module:
    return llama(tied=True)


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(vocab_size=64, n_positions=16, n_embd=16, n_layer=2, n_head=4, bos_token_id=0,
                                     eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return drawn(transformers.GPT2LMHeadModel, config)


def bert() -> nn.Module:
    config = transformers.BertConfig(vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                                     num_attention_heads=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return drawn(transformers.BertForSequenceClassification, config)


def drawn(kind: Callable[[Any], nn.Module], config: Any) -> nn.Module:
    """The same model each time, in float64, with weights so large that every part of it matters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return fill(kind(config).double(), 0, lambda name: True, 0.2)


@torch.no_grad()
def fill(model: nn.Module, seed: int, select: Callable[[str], bool], deviation: float = 0.3) -> nn.Module:
    """Moves the selected parameters by normal draws."""
    draws = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if select(name):
            parameter += deviation * torch.randn(parameter.shape, generator=draws, dtype=torch.float64).to(parameter)
    return model


def fill_trained(model: nn.Module, seed: int = 1) -> nn.Module:
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return fill(model, seed, trained.__contains__)


class Feature(NamedTuple):
    """One thing that an adapter can be asked for, in PEFT's words and in ours."""

    model: Callable[[], nn.Module]
    peft: dict[str, Any]
    ours: dict[str, Any]
    dtype: torch.dtype = torch.float64


def _alike(model: Callable[[], nn.Module], targets: Any, dtype: torch.dtype = torch.float64, **options: Any) -> Feature:
    names = {"layers": "layers_to_transform", "exclude": "exclude_modules"}
    theirs = {names.get(name, name): value for name, value in options.items() if name != "scaling"}
    theirs |= {"use_rslora": options.get("scaling") == "rslora", "fan_in_fan_out": model is gpt2}
    theirs |= {"r": 3, "lora_alpha": 5, "target_modules": targets}
    return Feature(model, theirs, {"rank": 3, "alpha": 5, "targets": targets, **options}, dtype)


FEATURES = {
    "plain": _alike(llama, ["q_proj", "v_proj"]),
    "regex": _alike(llama, r".*\.layers\.1\..*(q|up)_proj"),
    "all-linear": _alike(llama, "all-linear"),
    "rslora": _alike(llama, ["k_proj", "down_proj"], scaling="rslora"),
    "layers": _alike(llama, ["q_proj", "o_proj"], layers=[1]),
    "exclude": _alike(llama, ["q_proj", "v_proj"], exclude=["layers.0.self_attn.q_proj"]),
    "rank_pattern": _alike(llama, ["q_proj", "v_proj"], rank_pattern={r"layers\.1\..*\.q_proj": 2, "v_proj": 1}),
    "alpha_pattern": _alike(llama, ["q_proj", "v_proj"], alpha_pattern={"layers.0.self_attn.v_proj": 7, "q_proj": 1}),
    "both patterns": _alike(llama, ["q_proj"], scaling="rslora", rank_pattern={"q_proj": 6}, alpha_pattern={"1.*q_proj": 11}),
    "bias lora_only": _alike(bert, ["query", "value"], bias="lora_only"),
    "bias all": _alike(bert, ["query", "dense"], bias="all", exclude=["pooler.dense"]),
    "bias all, kept": _alike(bert, ["query", "value"], bias="all", modules_to_save=["classifier", "pooler"]),
    "modules_to_save": _alike(bert, ["query", "key"], modules_to_save=["classifier"]),
    "conv1d": _alike(gpt2, ["c_attn", "mlp.c_proj"]),
    "conv1d, bias": _alike(gpt2, "all-linear", bias="lora_only"),
    "embedding": _alike(llama, ["embed_tokens", "lm_head", "v_proj"]),
    "tied": _alike(tied_llama, ["embed_tokens", "lm_head", "up_proj"]),
    "float32": _alike(llama, ["q_proj", "down_proj"], torch.float32),
    "bfloat16": _alike(llama, ["q_proj", "down_proj"], torch.bfloat16),
    "bfloat16, kept": _alike(llama, ["q_proj", "embed_tokens"], torch.bfloat16, modules_to_save=["lm_head"]),
}
every_feature = pytest.mark.parametrize("feature", FEATURES)


def run(model: nn.Module) -> dict[str, Tensor]:
    """The logits, and the gradients of all that trains by the keys that a file has for them."""
    model.zero_grad()
    logits = model(TOKENS[:, :7]).logits
    logits.double().square().mean().backward()
    found = {"logits": logits.detach()}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            key, turned = _key(name)
            found[key] = parameter.grad.t() if turned else parameter.grad
    return found


def _key(name: str) -> tuple[str, bool]:
    """The key of a parameter of a model that lora_torch or PEFT has attached to, and whether the file has it transposed."""
    embeds, turned = "embed_tokens" in name, ".adapters.default.lora_" in name
    names = ("lora_embedding_A", "lora_embedding_B") if embeds else ("lora_A.weight", "lora_B.weight")
    for old, new in (
        ("adapters.default.lora_A", names[0]), ("adapters.default.lora_B", names[1]), (".copies.default.", "."),
        (".pre_trained_weight.bias", ".base_layer.bias"),
        ("lora_A.default.weight", names[0]), ("lora_B.default.weight", names[1]), (".modules_to_save.default.", "."),
        ("lora_embedding_A.default", names[0]), ("lora_embedding_B.default", names[1]),
    ):
        name = name.replace(old, new)
    return "base_model.model." + name.removeprefix("base_model.model."), turned


def expect_the_same(got: nn.Module, want: nn.Module) -> None:
    """Demands equal logits and gradients of two models with adapters: as far as rounding in their dtype moves those of `want`.
    That is measured: in float64 it is 2⁻²⁹ of what it is in float32, and in bfloat16 it is the distance from float64."""
    dtype = next(got.parameters()).dtype
    other = copy.deepcopy(want).to(torch.float32 if dtype == torch.float64 else torch.float64)
    ours, theirs, moved = run(got), run(want), run(other)
    assert sorted(ours) == sorted(theirs) and len(ours) > 2
    for key, tensor in theirs.items():
        assert ours[key].dtype == tensor.dtype
        distance = (moved[key].double() - tensor.double()).abs().max() * (FINER if dtype == torch.float64 else 1)
        expect_within_spread(numbers(ours[key]), numbers(tensor), float(distance), key)


def numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()
