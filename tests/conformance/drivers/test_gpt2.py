"""lora_ref.transformer agrees with Hugging Face's GPT2LMHeadModel with the same weights, up to the rounding of float64.

This compares the model with an implementation by other people. Padded positions have no target and their logits are not
compared: there a query sees itself in lora_ref, and not in Hugging Face's model.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from conformance.truth.compare import Mismatch, expect_within_spread
from lora_ref import ops, prefix, transformer
from lora_ref.error import noise
from lora_ref.places import Config

transformers = pytest.importorskip("transformers", reason="transformers is not installed (pip install -e '.[peers]')")
pytestmark = pytest.mark.peers

UNIT = 2.0**-53
BATCH, T, LENGTH = 3, 6, 3  # LENGTH: of the prefix
CONFIG = Config(
    vocabulary=11, width=16, layers=2, heads=4, kv_heads=4, mlp_width=64, context=12, fused=True, tied=True)
NAMES = {"transformer.wte": "embed_tokens", "transformer.wpe": "embed_positions", "transformer.ln_f": "norm"} | {
    f"transformer.h.{i}.{theirs}": f"layers.{i}.{ours}"
    for i in range(CONFIG.layers)
    for theirs, ours in {
        "ln_1": "attention_norm", "attn.c_attn": "qkv_proj", "attn.c_proj": "o_proj", "ln_2": "mlp_norm",
        "mlp.c_fc": "up_proj", "mlp.c_proj": "down_proj",
    }.items()
}
RIGHT = np.arange(T) < np.array([[6], [4], [5]])  # padding behind the tokens
MASKS = {"": None, "right": RIGHT, "left": RIGHT[:, ::-1].copy()}
every_mask = pytest.mark.parametrize("padding", MASKS)


@pytest.fixture(params=["eager", "sdpa"])
def model(request):
    """Hugging Face's, random, no parameter at its initial value. Both of its ways to compute attention on the CPU."""
    config = transformers.GPT2Config(
        vocab_size=CONFIG.vocabulary, n_embd=CONFIG.width, n_layer=CONFIG.layers, n_head=CONFIG.heads,
        n_positions=CONFIG.context, activation_function="gelu_new", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=0, attn_implementation=request.param,
    )
    torch.manual_seed(5)
    model = transformers.GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def arrays(model: Any, of=lambda parameter: parameter) -> dict[str, np.ndarray]:
    """Its parameters, or what belongs to each, by the names of lora_ref: a Conv1D has its weight transposed."""
    found = {}
    for name, parameter in model.named_parameters():  # lm_head, which is tied, is not among them a second time
        place, _, field = name.rpartition(".")
        array = of(parameter).detach().numpy()
        transposed = isinstance(model.get_submodule(place), transformers.pytorch_utils.Conv1D) and field == "weight"
        found[f"{NAMES[place]}.{field}"] = (array.T if transposed else array).copy()
    return found


def inputs(padding: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Tokens, targets and mask; where there is padding there are no targets."""
    tokens, targets = np.random.default_rng(7).integers(0, CONFIG.vocabulary, (2, BATCH, T))
    mask = MASKS[padding]
    return tokens, targets if mask is None else np.where(mask, targets, ops.IGNORED), mask


def theirs(model: Any, padding: str, past: tuple[Tensor, Tensor] | None = None) -> dict[str, np.ndarray]:
    """Logits where there is a token, loss, and every gradient: the positions count padding, and begin after the prefix."""
    tokens, targets, mask = inputs(padding)
    given: dict[str, Any] = {}
    length = 0 if past is None else LENGTH
    if past is not None:
        given["past_key_values"] = transformers.DynamicCache()
        for i, (keys, values) in enumerate(zip(*past, strict=True)):  # (length, width) each
            heads = [a.view(1, length, CONFIG.heads, -1).transpose(1, 2).expand(BATCH, -1, -1, -1) for a in (keys, values)]
            given["past_key_values"].update(*heads, i)
    if mask is not None:
        seen = np.concatenate([np.ones((BATCH, length), bool), mask], axis=1)
        given["attention_mask"] = torch.from_numpy(seen.astype(int))
    if padding == "left":
        given["position_ids"] = torch.arange(length, length + T).expand(BATCH, -1)
    logits = model(torch.from_numpy(tokens), **given).logits
    loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
    loss.backward()
    found = {"logits": logits.detach().numpy(), "loss": loss.detach().numpy()}
    if mask is not None:
        found["logits"] = found["logits"][mask]
    if past is not None:
        found |= {f"prefix.{name}": a.grad.numpy() for name, a in zip(("keys", "values"), past, strict=True)}
    return found | arrays(model, lambda parameter: parameter.grad)


def ours(given: dict[str, np.ndarray], padding: str, methods: dict[str, Any] | None = None) -> dict[str, np.ndarray]:
    tokens, targets, mask = inputs(padding)
    logits, cache = transformer.forward(tokens, given, CONFIG, methods, mask)
    loss, kept = ops.loss(logits, targets)
    gradients = transformer.backward(ops.loss_backward(kept), cache, list(given))
    return {"logits": logits if mask is None else logits[mask], "loss": np.asanyarray(loss)} | gradients


def judge(got: dict[str, np.ndarray], truth: dict[str, np.ndarray], deviation: dict[str, np.ndarray]) -> None:
    assert set(got) == set(truth)
    for name in truth:
        expect_within_spread(got[name], truth[name], deviation[name], name)


@every_mask
def test_logits_loss_and_every_gradient_agree(model, padding):
    """The gradient of the tied embedding has its two parts."""
    truth, deviation = noise.spread(lambda given: ours(given, padding), arrays(model), UNIT)
    assert set(truth) == {"logits", "loss", *transformer.base_names(CONFIG)}
    judge(theirs(model, padding), truth, deviation)


@every_mask
def test_past_keys_and_values_are_a_prefix(model, padding):
    """Past keys and values that all samples share are a prefix. Their gradients sum over the samples."""
    rng = np.random.default_rng(11)
    past = tuple(torch.from_numpy(rng.standard_normal((CONFIG.layers, LENGTH, CONFIG.width))).requires_grad_() for _ in "kv")
    given = arrays(model) | {f"prefix.{name}": a.detach().numpy() for name, a in zip(("keys", "values"), past, strict=True)}
    truth, deviation = noise.spread(lambda a: ours(a, padding, {"prefix": prefix.Config(LENGTH)}), given, UNIT)
    judge(theirs(model, padding, past), truth, deviation)


@pytest.mark.parametrize("name,moved", [
    ("transformer.h.0.attn.c_attn.weight", 1e-9), ("transformer.wpe.weight", 1e-9), ("transformer.ln_f.bias", 1e-9),
])
def test_another_weight_is_refused(model, name, moved):
    """With one weight changed the comparison fails, so the bounds are narrow enough."""
    truth, deviation = noise.spread(lambda given: ours(given, ""), arrays(model), UNIT)
    with torch.no_grad():
        model.get_parameter(name).mul_(1 + moved)
    with pytest.raises(Mismatch, match="^logits"):
        judge(theirs(model, ""), truth, deviation)
