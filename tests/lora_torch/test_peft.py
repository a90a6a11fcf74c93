"""Adapters go to PEFT and come from it with equal logits and gradients, on Llama, GPT-2 and BERT from small configurations."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hugging_face import (
    FEATURES,
    FINER,
    TOKENS,
    bert,
    every_feature,
    expect_the_same,
    fill_trained,
    gpt2,
    llama,
    numbers,
    peft,
    run,
    tied_llama,
    transformers,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists
from peft.utils.other import get_pattern_key
from torch import nn
from torch_layers import integers, same_bits

from conformance.truth.compare import expect_within_spread, reach
from lora_torch import activate, attach, detach, load_adapter, merge, save_adapter, unmerge
from lora_torch.settings import Settings
from lora_torch.targets import matches

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]  # what transformers and PEFT say about themselves


def with_peft(base: nn.Module, options: dict[str, Any], seed: int = 2) -> Any:
    return fill_trained(peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**options)), seed)


def with_ours(base: nn.Module, options: dict[str, Any]) -> Any:
    model = copy.deepcopy(base)
    attach(model, **options)
    return fill_trained(model)


@every_feature
def test_peft_reads_what_was_saved(feature, tmp_path):
    make, _, options, dtype = FEATURES[feature]
    base = make().to(dtype)
    ours = with_ours(base, options)
    save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, is_trainable=True)
    expect_the_same(ours, theirs)
    assert not torch.equal(run(ours)["logits"], base(TOKENS).logits)


@every_feature
def test_what_peft_saved_is_read(feature, tmp_path):
    make, options, _, dtype = FEATURES[feature]
    base = make().to(dtype)
    theirs = with_peft(base, options)
    theirs.save_pretrained(tmp_path)
    ours = copy.deepcopy(base)
    load_adapter(ours, tmp_path, trained=True)
    expect_the_same(ours, theirs)
    y = ours(TOKENS).logits
    merge(ours)
    assert not same_bits(ours(TOKENS).logits, base(TOKENS).logits)
    unmerge(ours)
    assert same_bits(ours(TOKENS).logits, y)
    detach(ours)
    assert list(ours.state_dict()) == list(base.state_dict())
    assert all(map(same_bits, ours.state_dict().values(), base.state_dict().values()))


@pytest.mark.parametrize("feature", ["plain", "both patterns", "bias all, kept", "conv1d", "tied"])
def test_a_file_that_goes_through_both_is_the_same_to_the_bit(feature, tmp_path):
    make, _, options, dtype = FEATURES[feature]
    base = make().to(dtype)
    ours = with_ours(base, options)
    save_adapter(ours, tmp_path / "ours")
    peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours").save_pretrained(tmp_path / "peft")
    again = copy.deepcopy(base)
    load_adapter(again, tmp_path / "peft")
    save_adapter(again, tmp_path / "again")
    first, last = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("ours", "again"))
    assert first == last


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "make, target", [(llama, "down_proj"), (gpt2, "c_attn"), (bert, "query"), (tied_llama, "embed_tokens")]
)
def test_a_layer_gives_the_bits_of_peft_where_every_sum_is_exact(make, target, dtype, tmp_path):
    base = make().to(dtype)
    options = {"r": 2, "lora_alpha": 4, "target_modules": [target], "fan_in_fan_out": make is gpt2}
    theirs, draws = with_peft(base, options), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(integers(tuple(parameter.shape), 1, draws))
    theirs.save_pretrained(tmp_path, save_embedding_layers=False)
    ours = make().to(dtype)
    ours.load_state_dict(theirs.unload().state_dict())
    load_adapter(ours, tmp_path, trained=True)
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, is_trainable=True)
    name = next(name for name, _ in base.named_modules() if name.endswith(target))
    theirs.base_model.model.get_submodule(name).base_layer.load_state_dict(
        ours.get_submodule(name).pre_trained_weight.state_dict())
    x = TOKENS if target == "embed_tokens" else integers((5, 24 if target == "down_proj" else 16), 2, draws).to(dtype)
    found = []
    for model in (ours, theirs.base_model.model):
        y = model.get_submodule(name)(x)
        y.backward(torch.ones_like(y))
        A, B = (p.grad for n, p in model.get_submodule(name).named_parameters() if "lora_" in n)
        found.append([y, A if A.shape[1] == 2 else A.t(), B if B.shape[0] == 2 else B.t()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)) and found[0][1].any()


def test_fifty_steps_of_training_follow_those_of_peft(tmp_path):
    """In float64, the losses agree as far as rounding moves them, which is 2⁻²⁹ of the distance of the same run in float32."""
    make, options, _, _ = FEATURES["both patterns"]
    base = make()
    theirs = with_peft(base, {**options, "target_modules": ["q_proj", "v_proj", "up_proj"], "lora_dropout": 0.25})
    theirs.save_pretrained(tmp_path)
    ours, coarse = copy.deepcopy(base), copy.deepcopy(theirs).float()
    load_adapter(ours, tmp_path, trained=True)
    ours.train()
    losses = [torch.tensor(steps(model)) for model in (ours, theirs.train(), coarse.train())]
    assert losses[1][-1] < losses[1][0]
    moved = float((losses[2] - losses[1]).abs().max()) * FINER
    assert reach() * moved < 1e-10  # so that the bound is no wider than that
    expect_within_spread(numbers(losses[0]), numbers(losses[1]), moved, "loss")


def steps(model: nn.Module) -> list[float]:
    torch.manual_seed(11)
    optimizer, found = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3), []
    for _ in range(50):
        optimizer.zero_grad()
        loss = model(TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def test_the_lines_about_peft_in_the_docs_run(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python peft\n(.*?)```", text, re.S)
    ours, base, another = with_ours(llama(), FEATURES["embedding"].ours), llama(), llama()
    names = {"base": base, "another": another, "directory": str(tmp_path), "ours": ours}
    exec(code, names)
    assert same_bits(another(TOKENS).logits, ours(TOKENS).logits)


@pytest.mark.parametrize("make", [llama, gpt2, bert])
def test_all_linear_selects_what_peft_selects(make):
    base = make()
    theirs = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(target_modules="all-linear"))
    assert set(attach(base, 2, 2).layers) == set(theirs.peft_config["default"].target_modules)


NAMES = st.lists(st.sampled_from(["q", "k", "0", "1", "12", "layers", "h", "q_x", "x"]), min_size=1, max_size=6).map(".".join)
LISTS = st.lists(NAMES | st.sampled_from(["q", "x", "k"]), max_size=3)
PATTERNS = st.sampled_from([r".*\.q", "q", r"(.*\.)?layers\.\d+\..*", r"layers\.1.*", ".*", "h.0.q|x", r"[qk](\.0)?"])


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_names_select_what_they_select_for_peft(data):
    name, layered = data.draw(NAMES), data.draw(st.booleans())
    targets = data.draw(LISTS) if layered else data.draw(LISTS | PATTERNS)
    exclude, whole = data.draw(st.just([]) | LISTS | PATTERNS), data.draw(st.just([]) | LISTS)
    layers = data.draw(st.integers(0, 12) | st.lists(st.sampled_from([0, 1, 12]), max_size=2)) if layered else None
    part = data.draw(st.sampled_from([None, "layers", ["h", "layers"], "[hk]"])) if layered else None
    patterns = data.draw(st.dictionaries(PATTERNS | NAMES, st.integers(1, 5), max_size=3))
    ours = Settings(3, 3, targets, exclude, layers, part or (), patterns, patterns, modules_to_save=whole)
    theirs = peft.LoraConfig(r=3, target_modules=targets, exclude_modules=exclude, modules_to_save=whole)
    theirs.layers_to_transform, theirs.layers_pattern = layers, part
    theirs.target_modules, theirs.exclude_modules = targets, exclude  # which PEFT makes sets of
    found = check_target_module_exists(theirs, name)
    assert matches(ours, name) == (bool(found) and not isinstance(found, _ExcludedModule))
    assert ours.of(name)[0] == ours.of(name)[1] == patterns.get(get_pattern_key(list(patterns), name), 3)


def test_several_adapters_are_those_of_peft(tmp_path):
    base = llama()
    theirs = with_peft(base, FEATURES["plain"].peft)
    theirs.add_adapter("other", peft.LoraConfig(**FEATURES["rslora"].peft))
    theirs.set_adapter("other")
    fill_trained(theirs, 5)
    theirs.save_pretrained(tmp_path)
    ours = copy.deepcopy(base)
    load_adapter(ours, tmp_path, trained=True)
    load_adapter(ours, tmp_path / "other", "other")
    exact = copy.deepcopy(theirs).float()
    for name, both in (("other", False), ("default", False), ("both", True)):
        for model in (theirs, exact):
            model.base_model.set_adapter(["default", "other"] if both else name)
        activate(ours, ["default", "other"] if both else name)
        with torch.no_grad():
            want, coarse = theirs(TOKENS).logits, exact(TOKENS).logits
            expect_within_spread(numbers(ours(TOKENS).logits), numbers(want), float((coarse - want).abs().max()) * FINER, name)


def test_peft_changes_the_order_of_patterns_and_the_file_is_read_as_it_stands(tmp_path):
    """Of two keys that match, the first counts. PEFT sorts them when it writes a file, so its own scales change; a file written
    here keeps the order, and PEFT reads it right."""
    options = {"alpha_pattern": {"q_proj": 8, "layers.0.self_attn.q_proj": 32}}
    base = llama()
    ours = with_ours(base, {"rank": 2, "alpha": 2, "targets": ["q_proj"], **options})
    save_adapter(ours, tmp_path / "ours")
    expect_the_same(ours, peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours", is_trainable=True))
    theirs = with_peft(base, {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], **options})
    theirs.save_pretrained(tmp_path / "peft")
    keys = list(json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["alpha_pattern"])
    again = copy.deepcopy(base)
    scales = [scale for *_, scale in load_adapter(again, tmp_path / "peft").layers.values()]
    assert scales == ([16.0, 4.0] if keys[0] != "q_proj" else [4.0, 4.0])


@pytest.mark.parametrize("options", [
    {"use_dora": True}, {"lora_bias": True}, {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"},
    {"trainable_token_indices": [1]}, {"alora_invocation_tokens": [1], "task_type": "CAUSAL_LM"},
], ids=str)
def test_what_peft_can_and_we_cannot_is_refused_by_name(options, tmp_path):
    base = llama().float()
    with_peft(base, {"r": 2, "target_modules": ["q_proj"], **options}).save_pretrained(tmp_path)
    before = copy.deepcopy(base.state_dict())
    with pytest.raises(ValueError, match=rf"load_adapter: {next(iter(options))} is .*, expected .*, because"):
        load_adapter(base, tmp_path)
    assert all(map(same_bits, base.state_dict().values(), before.values())) and not hasattr(base, "lora_attached")


def test_a_llama_of_real_widths_on_the_meta_device():
    config = transformers.LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=2, vocab_size=32000)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    found = attach(model, 16, 32, dtype=torch.float32)
    assert len(found.layers) == 14 and all(p.is_meta for p in model.parameters())
    merge(model)
    unmerge(model)
    detach(model)
    assert not any(".adapters." in name for name, _ in model.named_modules())
