"""attach, detach, merge, unmerge and activate on plain modules: exact on integers, whole or not at all, and bit-identical."""

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from small_nets import ALL, ALPHA, RANK, TOKENS, Conv1D, Snapshot, attached, fill, net
from torch import Tensor, nn
from torch_layers import Allocations, assert_same, every_dtype, integers, is_fast, same_bits

from lora_torch import LinearLoRA, activate, adapted, attach, detach, merge, report, unmerge
from lora_torch.adapted import Adapted, Kept
from lora_torch.merging import COLUMNS, ROWS

# What is computed


LAYERS = {
    "linear": lambda: nn.Linear(4, 3), "conv1d": lambda: Conv1D(3, 4), "embedding": lambda: nn.Embedding(4, 3, padding_idx=1)
}
every_layer = pytest.mark.parametrize("kind", LAYERS)


def integer_layer(kind: str, dtype: torch.dtype, adapters: int = 1) -> tuple[Any, Tensor, Tensor]:
    """A model of one layer with adapters whose numbers are small integers, an input, and a gradient of the output."""
    draws = torch.Generator().manual_seed(3)
    model: Any = nn.ModuleDict({"it": LAYERS[kind]().to(dtype)})
    for i in range(adapters):
        attach(model, RANK, ALPHA, ["it"], name=f"number{i}")
    activate(model, [f"number{i}" for i in range(adapters)])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(integers(tuple(parameter.shape), 1, draws))
    x = torch.tensor([[0, 2], [3, 3]]) if kind == "embedding" else integers((5, 4), 2, draws).to(dtype)
    return model, x, integers((*x.shape, 3) if kind == "embedding" else (5, 3), 2, draws).to(dtype)


def formula(model: Any, x: Tensor) -> Tensor:
    """y in float64, of a merged weight for each adapter."""
    layer, W = model["it"], model["it"].weight.double()
    for adapter in layer.adapters.values():
        delta = 2.0 * adapter.lora_A.double() @ adapter.lora_B.double()
        W = W + (delta.t() if isinstance(layer.pre_trained_weight, nn.Linear) else delta)
    if x.dtype == torch.long:
        return W[x]
    b = layer.bias.double()
    return x.double() @ (W.t() if isinstance(layer.pre_trained_weight, nn.Linear) else W) + b


@every_dtype
@every_layer
@pytest.mark.parametrize("adapters", [1, 2])
def test_outputs_and_gradients_are_those_of_the_formula_bit_for_bit(kind, dtype, adapters):
    model, x, dy = integer_layer(kind, dtype, adapters)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    y = model["it"](x)
    assert y.dtype == dtype and len(trained) == 2 * adapters
    want = formula(model, x)
    assert torch.equal(y.double(), want)
    got = torch.autograd.grad(y, trained, dy)
    exact = torch.autograd.grad(want, trained, dy.double())
    assert all(torch.equal(g, e) for g, e in zip(got, exact, strict=True))
    assert {parameter.dtype for parameter in trained} == {torch.float64 if dtype == torch.float64 else torch.float32}


@every_dtype
@every_layer
@pytest.mark.parametrize("adapters", [1, 2])
def test_merging_keeps_the_output_and_unmerging_gives_W_back(kind, dtype, adapters):
    model, x, _ = integer_layer(kind, dtype, adapters)
    y, W = model["it"](x), model["it"].weight
    before = Snapshot(model)
    merge(model)
    assert torch.equal(model["it"](x), y) and model["it"].weight.dtype == dtype and model["it"].weight.is_contiguous()
    assert not torch.equal(model["it"].weight, W) and not model["it"].weight.requires_grad
    unmerge(model)
    assert model["it"].weight is W and before.holds(model)


def test_the_row_of_padding_gets_no_gradient():
    model, x, dy = integer_layer("embedding", torch.float64)
    model["it"](torch.ones_like(x)).backward(dy)
    assert not model["it"].adapters["number0"].lora_A.grad.any()


def test_two_adapters_are_merged_with_one_rounding():
    model: Any = nn.ModuleDict({"it": nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)})
    u = 2.0**-8
    for name, value in (("a", u), ("b", u * u)):  # 1 + u + u² lies above the middle of 1 and 1 + 2u; 1 + u is rounded to 1
        attach(model, 1, 1, ["it"], name=name)
        nn.init.ones_(model["it"].adapters[name].lora_A)
        nn.init.constant_(model["it"].adapters[name].lora_B, value)
    nn.init.ones_(model["it"].weight)
    activate(model, ["a", "b"])
    merge(model)
    assert model["it"].weight.item() == 1 + 2 * u


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_large_layer_takes_the_fast_path_and_gives_what_LinearLoRA_gives(rate, monkeypatch):
    monkeypatch.setattr(adapted, "SMALL", 0)
    model, x, dy = integer_layer("linear", torch.float32)
    adapter = model["it"].adapters["number0"]
    layer = LinearLoRA.around(copy.deepcopy(model["it"].pre_trained_weight), RANK, ALPHA, rate)
    adapter.lora_dropout.p = rate
    own = adapter.lora_A, adapter.lora_B
    with torch.no_grad():
        layer.lora_A.copy_(own[0])
        layer.lora_B.copy_(own[1])
    found = []
    for module, factors in ((model["it"], own), (layer, (layer.lora_A, layer.lora_B))):
        torch.manual_seed(4)
        layer.fast = True
        y = module(x)
        assert is_fast(y)
        found.append([y, *torch.autograd.grad(y, factors, dy)])
    assert_same(*found)


def test_dropout_acts_on_the_input_of_A_alone_and_only_in_training():
    model: Any = nn.ModuleDict({"it": nn.Linear(4, 4, bias=False)})
    attach(model, 4, 4, ["it"], dropout=0.5)
    adapter = model["it"].adapters["default"]
    with torch.no_grad():
        model["it"].weight.zero_()
        adapter.lora_A.copy_(torch.eye(4))
        adapter.lora_B.copy_(torch.eye(4))
    torch.manual_seed(0)
    y = model["it"](torch.ones(64, 4))
    assert set(y.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(model.eval()["it"](torch.ones(3, 4)), torch.ones(3, 4))


# What is attached


@pytest.mark.parametrize("init", ["gaussian", "kaiming_uniform", "kaiming_rank"])
def test_a_new_adapter_changes_no_bit_of_the_output(init):
    model, tokens = net(torch.float32), TOKENS
    y = model(tokens)
    attach(model, 3, 8, ALL, init=init)
    assert same_bits(model(tokens), y)
    A = model.layers[0].q_proj.adapters["default"].lora_A
    assert A.abs().min() > 0 and model.embed.adapters["default"].lora_B.abs().min() > 0


def test_only_the_adapters_train_and_the_report_says_how_much():
    model = net()
    before = sum(p.numel() for p in model.parameters())
    found = attach(model, RANK, ALPHA, ["q_proj", "head"], rank_pattern={"1.q_proj": 3}, modules_to_save=["classifier.0"])
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert set(trained) == {
        *(f"{path}.adapters.default.lora_{x}" for path in ("layers.0.q_proj", "layers.1.q_proj", "head") for x in "AB"),
        "classifier.0.copies.default.weight", "classifier.0.copies.default.bias",
    }
    assert found.layers == {"layers.0.q_proj": (6, 6, 2, 2.0), "layers.1.q_proj": (6, 6, 3, 4 / 3), "head": (6, 9, 2, 2.0)}
    assert found.trained == sum(trained.values()) == 24 + 36 + 30 + 42 and found.total == before + found.trained
    assert found == report(model) and found.kept == ("classifier.0",) and found.biases == ()
    assert str(found).splitlines() == [
        "layers of adapter 'default'              number       in      out rank    scale",
        "layers.0.q_proj                               1        6        6    2        2",
        "layers.1.q_proj                               1        6        6    3    1.333",
        "head                                          1        6        9    2        2",
        "classifier.0                                  1  trained whole",
        f"trained: 132 of {found.total} parameters, {132 / found.total:.3%}",
    ]


def test_a_report_has_one_line_for_layers_that_are_alike_and_80_columns():
    model = nn.ModuleDict({"a" * 60: nn.ModuleList(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)) for _ in range(4))})
    lines = str(attach(model, 1, 1, r".*\.\d\.0", bias="lora_only", modules_to_save=["3.1", "2.1"])).splitlines()
    name = f"…{'a' * 35}.*.*"
    assert [line.split() for line in lines[1:3]] == [[name, "4", "3", "2", "1", "1"], [name, "2", "trained", "whole"]]
    assert lines[3].split() == ["biases", "4", "trained"] and max(map(len, lines)) <= 80


def test_all_linear_takes_every_linear_layer_but_the_output():
    model = net()
    found = attach(model, targets="ALL-linear")
    want = [f"layers.{i}.{name}" for i in range(2) for name in ("q_proj", "v_proj", "c_fc")]
    assert list(found.layers) == [*want, "classifier.0"]


def test_all_linear_is_a_regular_expression_where_a_name_is_the_end_of_another():
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj, self.lm = nn.Linear(2, 2), nn.ModuleDict({"proj": nn.Linear(2, 2)})

        def get_output_embeddings(self) -> nn.Module:
            return self.lm["proj"]

    model: Any = Heads()
    assert list(attach(model).layers) == ["proj"] and model.lora_attached.settings["default"].targets == "proj"


@pytest.mark.parametrize("options, want", [
    ({"targets": ["q_proj"]}, ["layers.0.q_proj", "layers.1.q_proj"]),
    ({"targets": ["layers.1.q_proj", "v_proj"]}, ["layers.0.v_proj", "layers.1.q_proj", "layers.1.v_proj"]),
    ({"targets": r"layers\.0\.(q|v)_proj"}, ["layers.0.q_proj", "layers.0.v_proj"]),
    ({"targets": ["q_proj", "v_proj"], "exclude": ["1.q_proj"]}, ["layers.0.q_proj", "layers.0.v_proj", "layers.1.v_proj"]),
    ({"targets": ["q_proj", "v_proj"], "exclude": r".*0.*|classifier"}, ["layers.1.q_proj", "layers.1.v_proj"]),
    ({"targets": ["q_proj", "head"], "layers": 1, "layers_pattern": "layers"}, ["layers.1.q_proj", "head"]),
    ({"targets": ["layers.0.q_proj", "v_proj"], "layers": [1], "layers_pattern": ["layers"]},
     ["layers.0.q_proj", "layers.1.v_proj"]),
])
def test_targets_by_name_by_pattern_and_by_layer(options, want):
    assert list(attach(net(), **options).layers) == want


def test_the_first_pattern_that_matches_the_end_of_a_name_counts():
    model = net()
    patterns = {"proj": 7, r"layers\.0\.\w_proj": 3, "1.q_proj": 4, "q_proj": 5}
    options: Any = {"rank_pattern": patterns, "alpha_pattern": {"v_proj": 6.0}, "scaling": "rslora"}
    layers = attach(model, 1, 1, ["q_proj", "v_proj"], **options).layers
    assert {path: rank for path, (_, _, rank, _) in layers.items()} == {
        "layers.0.q_proj": 3, "layers.0.v_proj": 3, "layers.1.q_proj": 4, "layers.1.v_proj": 1,
    }
    assert layers["layers.0.v_proj"][3] == 6 / math.sqrt(3) and layers["layers.1.q_proj"][3] == 1 / math.sqrt(4)


@pytest.mark.parametrize("bias, want", [
    ("none", set()),
    ("lora_only", {"layers.0.q_proj.pre_trained_weight.bias", "layers.1.q_proj.pre_trained_weight.bias"}),
    ("all", {"layers.0.q_proj.pre_trained_weight.bias", "layers.1.q_proj.pre_trained_weight.bias", "layers.0.c_fc.bias",
             "layers.1.c_fc.bias", "layers.0.norm.bias", "layers.1.norm.bias", "classifier.2.bias"}),
])
def test_which_biases_train(bias, want):
    model = attached(["q_proj", "v_proj"], bias=bias, modules_to_save=["classifier.0"])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in trained if "default" not in name} == want
    assert len(report(model).biases) == len(want)
    model(TOKENS).square().sum().backward()
    assert all(model.get_parameter(name).grad is not None for name in trained)


def test_a_module_to_save_trains_as_a_copy_and_answers_for_the_original():
    model = net().train()
    y = model(TOKENS)
    attach(model, RANK, ALPHA, ["q_proj"], modules_to_save=["classifier.0"])
    wrapper: Any = model.classifier[0]
    own, original = wrapper.copies["default"], wrapper.original
    assert isinstance(wrapper, Kept) and wrapper.weight is own.weight and wrapper.in_features == 6
    assert same_bits(model(TOKENS), y)
    model(TOKENS).square().sum().backward()
    assert original.weight.grad is None and own.weight.grad is not None
    assert not any(p.requires_grad for p in original.parameters())
    fill(model)
    assert not same_bits(model(TOKENS), y)
    with pytest.raises(AttributeError):
        _ = wrapper.nobody_has_this


# Several adapters


def test_each_adapter_is_as_if_it_was_alone():
    model, alone = net(), {}
    base = model(TOKENS)
    for i, name in enumerate("ab"):
        attach(model, RANK + i, ALPHA, ["q_proj", "head"], name=name)
        assert {n.split(".")[-2] for n, p in model.named_parameters() if p.requires_grad} == {name}
        fill(model, i)
        alone[name] = model(TOKENS)
    activate(model, [])
    assert same_bits(model(TOKENS), base) and not any(p.requires_grad for p in model.parameters())
    for name, y in alone.items():
        activate(model, name)
        assert same_bits(model(TOKENS), y)
    activate(model, ["a", "a"])
    assert same_bits(model(TOKENS), alone["a"])
    activate(model, ["a", "b"], trained=False)
    assert not any(same_bits(model(TOKENS), y) for y in alone.values())
    assert not any(p.requires_grad for p in model.parameters())
    detach(model, "a")
    assert model.head.active == model.layers[0].q_proj.active == ("b",)
    activate(model, "b")
    assert same_bits(model(TOKENS), alone["b"]) and list(model.head.adapters) == ["b"] and model.head.active == ("b",)
    detach(model, "b")
    assert same_bits(model(TOKENS), base) and not hasattr(model, "lora_attached") and type(model.head) is nn.Linear


def test_taking_out_the_active_adapter_leaves_the_others_inactive():
    model = net()
    base = model(TOKENS)
    attach(model, 1, 1, ["q_proj"], name="a")
    attach(model, 1, 1, ["v_proj"], name="b")
    fill(model)
    detach(model, "b")
    assert same_bits(model(TOKENS), base) and type(model.layers[0].v_proj) is nn.Linear
    assert isinstance(model.layers[0].q_proj, Adapted)


# Back again


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("options", [
    {}, {"bias": "all"}, {"bias": "lora_only", "modules_to_save": ["classifier", "norm"]},
    {"modules_to_save": ["classifier.0"]},
], ids=str)
def test_detach_gives_back_the_modules_their_bits_and_what_trained(options, merged):
    model = net()
    model.layers[0].q_proj.weight.requires_grad_(False)
    before = Snapshot(model)
    attach(model, RANK, ALPHA, ["q_proj", "v_proj", "head", "embed"], **options)
    torch.set_rng_state(before.draws)
    fill(model)
    if merged:
        merge(model)
    detach(model)
    assert before.holds(model) and model.head.weight is model.embed.weight and not hasattr(model, "lora_attached")


@pytest.mark.parametrize("merged", [False, True])
def test_detach_with_merge_leaves_a_plain_model_that_has_learned(merged):
    model = attached(["q_proj", "c_fc", "head"], bias="all", modules_to_save=["classifier.0"])
    plain, names = net(), [name for name, _ in net().named_parameters(remove_duplicate=False)]
    merge(model)
    y = model(TOKENS)
    if not merged:
        unmerge(model)
    detach(model, merge=True)
    assert same_bits(model(TOKENS), y) and [n for n, _ in model.named_parameters(remove_duplicate=False)] == names
    assert all(p.requires_grad for p in model.parameters()) and not any(isinstance(m, Adapted | Kept) for m in model.modules())
    assert torch.equal(model.embed.weight, plain.embed.weight) and not torch.equal(model.head.weight, plain.head.weight)


# Merging


def test_a_merge_that_fails_at_the_last_layer_merges_none():
    model = attached()
    model.head.adapters["default"].lora_B = nn.Parameter(torch.ones(RANK, 5, dtype=torch.float64))
    before = Snapshot(model)
    with pytest.raises(RuntimeError, match="expected"):
        merge(model)
    assert before.holds(model) and not model.layers[0].q_proj.merged


def test_a_module_that_shares_its_weight_never_sees_a_merge():
    model = attached(["head"])
    bits = model.embed.weight.clone()
    merge(model)
    assert same_bits(model.embed.weight, bits) and not torch.equal(model.head.weight, bits)
    unmerge(model)
    assert model.head.weight is model.embed.weight and same_bits(model.embed.weight, bits)


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_training_goes_on_after_a_merge_under_inference_mode(kind):
    model, x, dy = integer_layer(kind, torch.float64, adapters=2)
    x.requires_grad_()
    want = torch.autograd.grad(model["it"](x), x, dy)[0]
    with torch.inference_mode():
        merge(model)
    assert_same(torch.autograd.grad(model["it"](x), x, dy)[0], want)
    with torch.inference_mode():
        unmerge(model)
    assert_same(torch.autograd.grad(model["it"](x), x, dy)[0], want)


def test_a_merge_allocates_the_new_weights_and_one_tile():
    model = nn.Sequential(nn.Linear(COLUMNS, ROWS, bias=False), nn.Linear(COLUMNS, ROWS, bias=False))
    attach(model, 4, 4, ["0", "1"])
    with Allocations() as allocated:
        merge(model)
    assert allocated.peak == 4 * 2 * ROWS * COLUMNS + 8 * (ROWS * COLUMNS + 4 * (ROWS + COLUMNS))


def test_a_model_is_merged_once_and_left_alone_until_it_is_unmerged():
    model = attached()
    with pytest.raises(RuntimeError, match=r"unmerge: the model is not merged, expected .*, because"):
        unmerge(model)
    merge(model)
    before = Snapshot(model)
    for call in (merge, lambda m: attach(m, name="b"), lambda m: activate(m, [])):
        with pytest.raises(RuntimeError, match=r": the model is merged, expected an unmerged one, because"):
            call(model)
    assert before.holds(model)
    unmerge(model)
    activate(model, [])
    with pytest.raises(RuntimeError, match=r"merge: the model has no active adapter"):
        merge(model)


def test_a_weight_that_is_computed_is_not_merged():
    model = attached(["q_proj"])
    nn.utils.parametrizations.weight_norm(model.layers[1].q_proj.pre_trained_weight)
    with pytest.raises(RuntimeError, match=r"a W that is computed from other tensors, expected"):
        merge(model)
    assert not model.layers[0].q_proj.merged


def test_a_cast_while_merged_casts_W_too():
    model, plain = attached(["q_proj"]), net().float()
    merge(model)
    model.float()
    unmerge(model)
    detach(model)
    assert all(map(same_bits, model.parameters(), plain.parameters()))


# State


def pickled(model: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(model))


def saved(model: nn.Module) -> Any:
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
@pytest.mark.parametrize("merged", [False, True])
def test_copies_work_and_share_nothing(copied, merged):
    model = attached(bias="all", modules_to_save=["classifier"])
    y = model(TOKENS)
    if merged:
        merge(model)
    twin = copied(model)
    before, merged_y = Snapshot(model), model(TOKENS)
    assert same_bits(twin(TOKENS), merged_y) and twin.head.weight is not model.head.weight
    if merged:
        unmerge(twin)
    assert same_bits(twin(TOKENS), y) and twin.head.weight is twin.embed.weight
    fill(twin, 5)
    twin.load_state_dict(model.state_dict())
    assert same_bits(twin(TOKENS), y)
    detach(twin)
    assert list(twin.state_dict()) == list(net().state_dict())
    torch.set_rng_state(before.draws)
    assert before.holds(model)
    assert all(map(same_bits, twin.state_dict().values(), net().state_dict().values()))


def test_a_merged_model_saves_W_and_is_merged_with_what_it_loads():
    model, other = attached(), attached()
    fill(other, 7)
    with torch.no_grad():
        other.layers[0].q_proj.weight.add_(1)
    state, want = {key: tensor.clone() for key, tensor in other.state_dict().items()}, other(TOKENS)
    merge(model)
    assert all(map(same_bits, model.state_dict().values(), attached().state_dict().values()))
    model.load_state_dict(state)
    assert model.head.merged and all(same_bits(tensor, state[key]) for key, tensor in model.state_dict().items())
    merge(other)
    assert same_bits(model(TOKENS), other(TOKENS))
    unmerge(model)
    assert same_bits(model(TOKENS), want)


def test_train_and_eval_and_optimizers_reach_the_adapters():
    model = attached(["q_proj"], dropout=0.5)
    assert not any(module.training for module in model.modules())
    model.train()
    assert all(module.training for module in model.modules())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    before = copy.deepcopy(model.state_dict())
    model(TOKENS).square().sum().backward()
    optimizer.step()
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert {key for key in changed if ".lora_" in key} == {key for key in before if ".lora_" in key}
    others = {key for key in changed if ".lora_" not in key}
    assert others <= {key for key in before if "classifier.2" in key}  # the statistics of batches


def test_compiled_it_gives_the_same():
    model, x, dy = integer_layer("linear", torch.float32)
    compiled = torch.compile(model["it"], backend="aot_eager", fullgraph=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert_same(*([layer(x), *torch.autograd.grad(layer(x), trained, dy)] for layer in (compiled, model["it"])))


def test_on_the_meta_device_nothing_is_allocated():
    """The widths of a Llama of 7 billion parameters."""
    with torch.device("meta"):
        model = nn.ModuleDict({"embed": nn.Embedding(32000, 4096), **{
            f"layer{i}": nn.ModuleDict({
                **{name: nn.Linear(4096, 4096, bias=False) for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
                "up_proj": nn.Linear(4096, 11008, bias=False), "down_proj": nn.Linear(11008, 4096, bias=False),
            }) for i in range(32)
        }})
    found = attach(model, 16, 32)
    assert len(found.layers) == 6 * 32 and found.total > 5e9
    merge(model)
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    unmerge(model)
    detach(model)
    assert sum(p.numel() for p in model.parameters()) == found.total - found.trained


# Refusals


class WithAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.twin = nn.MultiheadAttention(4, 2), nn.Linear(4, 4)
        self.again, self.limited = self.twin, nn.Embedding(4, 4, max_norm=1.0)
        self.complex = nn.Linear(4, 4, dtype=torch.complex64)
        self.list = nn.ModuleList([nn.Linear(4, 4)])


@pytest.mark.parametrize("options, message", [
    ({"rank": 0}, "rank is 0, expected an integer ≥ 1"),
    ({"rank": 2**31}, "rank is 2147483648, expected"),
    ({"alpha": math.nan}, "alpha is nan, expected a finite number"),
    ({"targets": []}, r"targets is \(\), expected names of layers such as out_proj, twin, again"),
    ({"targets": ["q_proj"]}, r"targets is \('q_proj',\), expected names of layers such as"),
    ({"targets": ["win"]}, r"targets is \('win',\), expected names of layers such as"),
    ({"targets": ["0", "q_proj"]}, "targets is 'q_proj', expected the end of a name"),
    ({"targets": "("}, r"targets is '\(', expected names or a regular expression"),
    ({"targets": [1]}, r"targets is \(1,\), expected names or a regular expression"),
    ({"targets": ["out_proj"]}, "target 'attention.out_proj' is 'in nn.MultiheadAttention', expected"),
    ({"targets": ["twin", "again"]}, "target 'again' is \"the same module as 'twin'\", expected a module with one name"),
    ({"targets": ["limited"]}, "target 'limited' is 'Embedding', expected an nn.Linear"),
    ({"targets": ["complex"]}, "target 'complex' is 'Linear', expected an nn.Linear"),
    ({"targets": ["attention"]}, "target 'attention' is 'MultiheadAttention', expected"),
    ({"targets": ["0"], "modules_to_save": ["0"]}, r"targets is \('0',\), expected"),
    ({"targets": ["list.0"], "modules_to_save": ["st"]}, "module to save 'list' is 'ModuleList', expected a module that"),
    ({"targets": ["0"], "modules_to_save": ["nothing"]}, "modules_to_save is 'nothing', expected the end of a name"),
    ({"targets": ["0"], "modules_to_save": ["attention", "out_proj"]}, "module to save 'attention.out_proj' is"),
    ({"targets": ["0"], "exclude": 3}, "exclude is 3, expected"),
    ({"targets": ["0"], "layers": [-1]}, r"layers is \(-1,\), expected integers ≥ 0"),
    ({"targets": "list.0", "layers": [1]}, r"layers is \(1,\), expected none beside a regular expression"),
    ({"targets": ["0"], "rank_pattern": {"0": 0}}, "rank_pattern is {'0': 0}, expected"),
    ({"targets": ["0"], "alpha_pattern": {"(": 1}}, r"alpha_pattern is {'\(': 1}, expected"),
    ({"targets": ["0"], "scaling": "root"}, "scaling is 'root', expected one of standard, rslora"),
    ({"targets": ["0"], "dropout": 1.0}, r"dropout is 1.0, expected a number in \[0, 1\)"),
    ({"targets": ["0"], "bias": "some"}, "bias is 'some', expected one of none, all, lora_only"),
    ({"targets": ["0"], "init": "zero"}, "init is 'zero', expected one of gaussian"),
    ({"targets": ["0"], "dtype": torch.int8}, "dtype is torch.int8, expected"),
    ({"targets": ["0"], "name": "a.b"}, "name is 'a.b', expected a word without a dot"),
], ids=str)
def test_a_refusal_names_the_argument_and_leaves_the_model_as_it_was(options, message):
    model: Any = WithAttention()
    before = Snapshot(model)
    with pytest.raises(ValueError, match=rf"^attach: ({message}).*, because"):
        attach(model, **options)
    assert before.holds(model) and not hasattr(model, "lora_attached")


def test_what_a_model_with_adapters_refuses():
    model = attached(["q_proj"], modules_to_save=["classifier"])
    before = Snapshot(model)
    for call, message in (
        (lambda: attach(model, targets=["v_proj"]), "name is 'default', expected a new one"),
        (lambda: attach(model, targets=["classifier.0"], name="b"), r"targets is \('classifier.0',\), expected names"),
        (lambda: attach(model, targets=["v_proj"], name="b", bias="all"), "bias is 'all', expected none in all adapters"),
        (lambda: attach(model, targets=["v_proj"], name="b", modules_to_save=["0.q_proj"]), "module to save 'layers.0.q_proj'"),
        (lambda: attach(model, targets=["v_proj"], name="b", modules_to_save=["layers.0"]), "module to save 'layers.0' is"),
        (lambda: attach(nn.Sequential(model), name="b"), "model is 'Sequential', expected the module that was attached to"),
        (lambda: activate(model, "b"), "name is 'b', expected one of default"),
        (lambda: report(model, "b"), "name is 'b', expected one of default"),
        (lambda: detach(model, "b"), "name is 'b', expected one of default"),
        (lambda: detach(model, "default", merge=True), "name is 'default', expected none beside merge=True"),
        (lambda: detach(net()), "model is 'Net', expected one with adapters"),
    ):
        torch.set_rng_state(before.draws)
        with pytest.raises(ValueError, match=rf"^(attach|lora_torch): {message}.*, because"):
            call()
    torch.set_rng_state(before.draws)
    assert before.holds(model)
    attach(model, targets=["v_proj"], name="b", modules_to_save=["classifier"])
    assert all(type(module) is nn.Sequential for module in (model.classifier.original, *model.classifier.copies.values()))
    with pytest.raises(ValueError, match="at most one for each module that is kept whole"):
        activate(model, ["default", "b"])
    biased = attached(["q_proj"], bias="all")
    with pytest.raises(ValueError, match="expected 'default' among them, because it has changed biases"):
        activate(biased, [])
