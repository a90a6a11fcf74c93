"""save_adapter and load_adapter without PEFT: what is in the files, what is refused, and that a refusal or a failing write
changes nothing."""

import errno
import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_nets import ALPHA, RANK, TOKENS, Snapshot, attached, fill, net
from torch import Tensor, nn
from torch_layers import same_bits

from lora_torch import attach, load_adapter, merge, report, save_adapter
from lora_torch.adapter_files import CONFIG, PICKLE, TENSORS

PREFIX = "base_model.model."
TARGETS = ["q_proj", "c_fc", "embed"]


def saved(directory: Path, **options: Any) -> Any:
    """A model whose adapter was saved into the directory."""
    model = attached(**{"targets": TARGETS, **options})
    save_adapter(model, directory)
    return model


def config_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / CONFIG).read_text())


def change_config(directory: Path, **changes: Any) -> None:
    (directory / CONFIG).write_text(json.dumps(config_of(directory) | changes))


def change_tensors(directory: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(directory / TENSORS)
    change(tensors)
    save_file(tensors, directory / TENSORS)


def refused(directory: Path, message: str, model: Any = None, **options: Any) -> None:
    model = net() if model is None else model
    before = Snapshot(model)
    with pytest.raises(ValueError, match=rf"(?s)^load_adapter: {message}.*") as error:
        load_adapter(model, directory, **options)
    assert ", expected " in str(error.value) and ", because" in str(error.value) and before.holds(model)


# What is written


def test_the_files_are_those_of_peft(tmp_path):
    model = saved(tmp_path, bias="lora_only", modules_to_save=["classifier"], rank_pattern={"1.q_proj": 3}, scaling="rslora")
    assert sorted(os.listdir(tmp_path)) == [CONFIG, TENSORS]
    tensors, place = load_file(tmp_path / TENSORS), "layers.1.q_proj"
    shapes = {key.removeprefix(PREFIX): tuple(tensor.shape) for key, tensor in tensors.items()}
    want = {"embed.lora_embedding_A": (2, 9), "embed.lora_embedding_B": (6, 2)}
    for i, rank in enumerate((2, 3)):
        want |= {f"layers.{i}.q_proj.lora_A.weight": (rank, 6), f"layers.{i}.q_proj.lora_B.weight": (6, rank)}
        want |= {f"layers.{i}.q_proj.base_layer.bias": (6,), f"layers.{i}.c_fc.base_layer.bias": (6,)}
        want |= {f"layers.{i}.c_fc.lora_A.weight": (2, 4), f"layers.{i}.c_fc.lora_B.weight": (6, 2)}
    want |= {f"classifier.{key}": tuple(tensor.shape) for key, tensor in net().classifier.state_dict().items()}
    assert shapes == want
    adapter = model.get_submodule(place).adapters["default"]
    assert same_bits(tensors[f"{PREFIX}{place}.lora_A.weight"], adapter.lora_A.detach().t().contiguous())
    assert same_bits(tensors[f"{PREFIX}{place}.lora_B.weight"], adapter.lora_B.detach().t().contiguous())
    assert config_of(tmp_path) == {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": None, "revision": None, "inference_mode": True,
        "r": 2, "lora_alpha": 4, "lora_dropout": 0.0, "target_modules": TARGETS, "exclude_modules": None,
        "layers_to_transform": None, "layers_pattern": None, "rank_pattern": {"1.q_proj": 3}, "alpha_pattern": {},
        "use_rslora": True, "use_dora": False, "lora_bias": False, "init_lora_weights": True, "fan_in_fan_out": False,
        "bias": "lora_only", "modules_to_save": ["classifier"],
    }


def test_fan_in_fan_out_is_true_where_every_target_has_W_turned(tmp_path):
    saved(tmp_path, targets=["c_fc"])
    assert config_of(tmp_path)["fan_in_fan_out"] is True


@pytest.mark.parametrize("options", [
    {}, {"bias": "all", "modules_to_save": ["classifier"]}, {"scaling": "rslora", "alpha_pattern": {"q_proj": 7}},
    {"targets": r"layers\.\d\.q_proj", "dropout": 0.25}, {"targets": "all-linear", "exclude": ["classifier.0"]},
    {"targets": ["q_proj"], "layers": [1], "layers_pattern": "layers"},
], ids=str)
@pytest.mark.parametrize("merged", [False, True])
def test_what_was_saved_comes_back_bit_for_bit(options, merged, tmp_path):
    model, other = attached(**{"targets": TARGETS, **options}), net()
    y = model(TOKENS)
    if merged:
        merge(model)
    save_adapter(model, tmp_path / "a" / "b")
    found = load_adapter(other, tmp_path / "a" / "b")
    assert same_bits(other(TOKENS), y) and found.layers == report(model).layers and found.trained == 0
    assert other.lora_attached.settings == model.lora_attached.settings
    save_adapter(other, tmp_path / "again")
    for name in (CONFIG, TENSORS):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "a" / "b" / name).read_bytes()


def test_one_of_several_adapters_is_saved_and_another_name_is_given(tmp_path):
    model = attached(["q_proj"], name="a")
    attach(model, 3, 1, ["v_proj"], name="b")
    fill(model, 4)
    y = model(TOKENS)
    save_adapter(model, tmp_path, "b")
    with pytest.raises(ValueError, match="name is 'default', expected one of a, b"):
        save_adapter(model, tmp_path)
    other = attached(["q_proj"], name="a")
    load_adapter(other, tmp_path, "c", trained=True)
    assert same_bits(other(TOKENS), y) and other.layers[0].v_proj.active == ("c",)
    assert {name for name, p in other.named_parameters() if p.requires_grad} == {
        f"layers.{i}.v_proj.adapters.c.lora_{x}" for i in range(2) for x in "AB"
    }


def test_an_adapter_that_is_there_takes_the_numbers_and_trains_on(tmp_path):
    model = saved(tmp_path, bias="lora_only", modules_to_save=["classifier"])
    other = attached(TARGETS, bias="lora_only", modules_to_save=["classifier"])
    fill(other, 9)
    own = dict(other.named_parameters())
    load_adapter(other, tmp_path)
    assert same_bits(other(TOKENS), model(TOKENS)) and all(own[name] is p for name, p in other.named_parameters())
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert [name for name, p in other.named_parameters() if p.requires_grad] == trained


@pytest.mark.parametrize("options, message", [
    ({"alpha": 5}, r"rank, scale of embed is \(2, 2.0\), expected \(2, 2.5\)"),
    ({"rank": 3}, r"rank, scale of embed is \(2, 2.0\)"),
    ({"scaling": "rslora"}, "rank, scale of embed"),
    ({"bias": "lora_only"}, "bias is 'none', expected 'lora_only'"),
    ({"targets": ["q_proj", "c_fc"]}, "target_modules is"),
    ({"modules_to_save": ["classifier"]}, "modules_to_save is 'none', expected 'classifier'"),
], ids=str)
def test_an_adapter_that_is_there_takes_no_other_file(options, message, tmp_path):
    saved(tmp_path)
    model = net()
    attach(model, **{"rank": RANK, "alpha": ALPHA, "targets": TARGETS, **options})
    refused(tmp_path, message, model)
    if not {"targets", "modules_to_save"} & options.keys():
        refused(tmp_path, "dtype is torch.float32, expected None", attached(TARGETS), dtype=torch.float32)


def test_a_merged_model_and_one_without_memory_are_refused(tmp_path):
    model = saved(tmp_path)
    merge(model)
    before = Snapshot(model)
    with pytest.raises(RuntimeError, match="load_adapter: the model is merged, expected an unmerged one, because"):
        load_adapter(model, tmp_path, "b")
    assert before.holds(model)
    with torch.device("meta"):
        empty = net()
    with pytest.raises(ValueError, match=r"model is 'on the meta device in embed, layers.0.q_proj, .*', expected one with"):
        load_adapter(empty, tmp_path)
    attach(empty, targets=["q_proj"])
    with pytest.raises(ValueError, match=r"^save_adapter: .*lora_A.weight.* is 'without a finite number"):
        save_adapter(empty, tmp_path)


# Dtypes


@pytest.mark.parametrize("wide", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("base", [torch.float16, torch.bfloat16], ids=str)
def test_factors_are_wider_than_a_half_precision_base(base, wide, tmp_path):
    model = net(base)
    attach(model, RANK, ALPHA, TARGETS, dtype=wide if wide == torch.float64 else None, modules_to_save=["classifier"])
    fill(model)
    save_adapter(model, tmp_path)
    dtypes = {key: tensor.dtype for key, tensor in load_file(tmp_path / TENSORS).items() if tensor.is_floating_point()}
    assert {dtype for key, dtype in dtypes.items() if ".lora_" in key} == {wide}
    assert {dtype for key, dtype in dtypes.items() if "classifier" in key} == {base}
    other = net(base)
    if wide == torch.float64:
        refused(tmp_path, r"base_model.model.\S+ is torch.float64, expected torch.float32 or narrower", other)
    load_adapter(other, tmp_path, dtype=wide)
    assert same_bits(other(TOKENS), model(TOKENS))
    narrow = net(base)
    load_adapter(narrow, tmp_path, dtype=base)
    assert {p.dtype for p in narrow.parameters()} == {base}


def test_a_narrower_file_is_widened_and_a_wider_module_is_refused(tmp_path):
    saved(tmp_path, modules_to_save=["classifier.0"])
    key = PREFIX + "classifier.0.weight"
    change_tensors(tmp_path, lambda t: t.update({k: v.bfloat16() for k, v in t.items()}))
    model = net()
    load_adapter(model, tmp_path)
    assert model.classifier[0].weight.dtype == torch.float64
    refused(tmp_path, rf"{key} is torch.bfloat16, expected torch.float16 or narrower", net(torch.float16), dtype=torch.float16)
    change_tensors(tmp_path, lambda t: t.update({key: t[key].to(torch.int32)}))
    refused(tmp_path, rf"{key} is torch.int32, expected torch.float64 or narrower")


# What is refused


def test_every_tensor_is_accounted_for(tmp_path):
    saved(tmp_path, bias="all", modules_to_save=["classifier"])
    good = (tmp_path / TENSORS).read_bytes()
    q = PREFIX + "layers.1.q_proj.lora_A.weight"
    for key in load_file(tmp_path / TENSORS):
        change_tensors(tmp_path, lambda t, key=key: t.pop(key))
        refused(tmp_path, rf"{TENSORS} is 'without {key}'")
        (tmp_path / TENSORS).write_bytes(good)
        change_tensors(tmp_path, lambda t, key=key: t.update({key: torch.cat([t[key].reshape(1, -1)] * 2)}))
        refused(tmp_path, rf"{key} is \(2, \d+\)")
        (tmp_path / TENSORS).write_bytes(good)
    for other in (
        "layers.2.q_proj.lora_A.weight", "layers.1.v_proj.lora_A.weight", "layers.1.q_proj.lora_A.default.weight",
        "layers.1.q_proj.lora_magnitude_vector", "layers.1.q_proj.lora_B.bias", "../../etc/passwd", "layers.0.norm.weight",
    ):
        change_tensors(tmp_path, lambda t, other=other: t.update({PREFIX + other: torch.ones(2, 6)}))
        refused(tmp_path, f"{TENSORS} is 'with {PREFIX}{other}'")
        (tmp_path / TENSORS).write_bytes(good)
    for change, message in (
        (lambda t: t.update({q.removeprefix("base_model."): t.pop(q)}), rf"{TENSORS} is 'without {q}'"),
        (lambda t: t.update({q: t[q].t().contiguous()}), rf"{q} is \(6, 2\), expected \(2, 6\)"),
        (lambda t: t[q].fill_(float("nan")), rf"{q} is 'without a finite number somewhere'"),
        (lambda t: t[PREFIX + "classifier.2.running_var"].fill_(float("inf")), r".*running_var is 'without a finite"),
    ):
        change_tensors(tmp_path, change)
        refused(tmp_path, message)
        (tmp_path / TENSORS).write_bytes(good)
    load_adapter(net(), tmp_path)


def test_what_was_never_trained_may_be_there_if_it_is_the_same(tmp_path):
    """PEFT writes the W of an embedding that is a target, and biases of a module to save three times."""
    saved(tmp_path, bias="all", modules_to_save=["classifier"])
    more = {
        "embed.base_layer.weight": net().embed.weight.detach(),
        "classifier.original_module.0.bias": net().classifier[0].bias.detach(),
        "classifier.modules_to_save.0.bias": load_file(tmp_path / TENSORS)[PREFIX + "classifier.0.bias"],
    }
    change_tensors(tmp_path, lambda t: t.update({PREFIX + key: tensor for key, tensor in more.items()}))
    load_adapter(net(), tmp_path)
    good = (tmp_path / TENSORS).read_bytes()
    for key in more:
        change_tensors(tmp_path, lambda t, key=key: t[PREFIX + key].reshape(-1)[:1].add_(1))
        refused(tmp_path, f"{PREFIX}{key} is 'of other numbers'")
        (tmp_path / TENSORS).write_bytes(good)


@pytest.mark.parametrize("key, value", [
    ("peft_type", "LOHA"), ("peft_type", None), ("use_dora", True), ("lora_bias", True), ("use_qalora", True),
    ("trainable_token_indices", [1, 2]), ("target_parameters", ["mlp.experts"]), ("layer_replication", [[0, 1], [0, 1]]),
    ("alora_invocation_tokens", [5]), ("megatron_config", {"tensor_parallel": 2}), ("arrow_config", {"top_k": 3}),
    ("corda_config", {"verbose": True}), ("kasa_config", {"beta": 1}), ("lora_ga_config", {"scale": "stable"}),
    ("loftq_config", {"loftq_bits": 4}), ("ensure_weight_tying", True), ("use_bdlora", {"nblocks": 2}),
    ("from_the_future", 1), ("from_the_future", "x"), ("from_the_future", 0),
    ("init_lora_weights", "pissa"), ("init_lora_weights", "pissa_niter_4"), ("init_lora_weights", "olora"),
    ("init_lora_weights", "loftq"), ("init_lora_weights", "corda"), ("init_lora_weights", "lora_ga"), ("init_lora_weights", []),
    ("use_rslora", "yes"), ("r", None), ("lora_alpha", None), ("target_modules", None),
])
def test_every_key_that_changes_the_function_is_followed_or_refused_by_name(key, value, tmp_path):
    saved(tmp_path)
    change_config(tmp_path, **{key: value})
    refused(tmp_path, f"{key} is ")


@pytest.mark.parametrize("key, value, message", [
    ("r", 0, "rank is 0"), ("r", 2.0, "rank is 2.0"), ("r", True, "rank is True"), ("r", 10**30, "rank is 1000"),
    ("lora_alpha", "4", "alpha is '4'"), ("target_modules", [["q_proj"]], "targets is"), ("target_modules", {}, "targets is"),
    ("target_modules", "(", r"targets is '\('"), ("rank_pattern", {"q_proj": "3"}, "rank_pattern is"),
    ("bias", "some", "bias is"), ("layers_to_transform", "1", "layers is '1'"), ("lora_dropout", 1, "dropout is 1"),
    ("modules_to_save", "norm", "modules_to_save"),
    ("alpha_pattern", [], None), ("exclude_modules", 3, "exclude is 3"),
], ids=str)
def test_values_that_are_none_are_refused(key, value, message, tmp_path):
    saved(tmp_path)
    change_config(tmp_path, **{key: value})
    refused(tmp_path, rf"{CONFIG} is refused: attach: {message or 'alpha_pattern'}")


@pytest.mark.parametrize("key, value", [
    ("task_type", "CAUSAL_LM"), ("base_model_name_or_path", "some/model"), ("revision", "main"), ("auto_mapping", {"a": 1}),
    ("peft_version", "9.9"), ("megatron_core", "megatron.core"), ("qalora_group_size", 32), ("inference_mode", False),
    ("fan_in_fan_out", True), ("init_lora_weights", False), ("init_lora_weights", "gaussian"), ("init_lora_weights", "eva"),
    ("eva_config", {"rho": 2.0}), ("from_the_future", None), ("from_the_future", False), ("from_the_future", {}),
    ("bias", None), ("rank_pattern", None), ("target_modules", ["q_proj", "c_fc", "embed", "not_in_this_model"]),
])
def test_keys_that_change_nothing_are_accepted(key, value, tmp_path):
    model, other = saved(tmp_path), net()
    change_config(tmp_path, **{key: value})
    load_adapter(other, tmp_path)
    assert same_bits(other(TOKENS), model(TOKENS))


def test_modules_that_the_tensors_do_not_have_and_ranks_that_they_do_not_have_are_refused(tmp_path):
    saved(tmp_path)
    for changes, message in (
        ({"target_modules": ["q_proj", "embed"]}, rf"{TENSORS} is 'with {PREFIX}layers.0.c_fc"),
        ({"target_modules": [*TARGETS, "head"]}, rf"{TENSORS} is 'without {PREFIX}head.lora_A.weight, {PREFIX}head.lora_B.w"),
        ({"modules_to_save": ["classifier.0"]}, rf"{TENSORS} is 'without {PREFIX}classifier.0.bias"),
        ({"bias": "lora_only"}, rf"{TENSORS} is 'without {PREFIX}layers.0.c_fc.base_layer.bias"),
        ({"r": 2**31 - 1}, r".* is \(2, 9\), expected \(2147483647, 9\)"),
        ({"rank_pattern": {"0.q_proj": 5}}, rf"{PREFIX}layers.0.q_proj.lora_A.weight is \(2, 6\), expected \(5, 6\)"),
    ):
        good = (tmp_path / CONFIG).read_text()
        change_config(tmp_path, **changes)
        refused(tmp_path, message)
        (tmp_path / CONFIG).write_text(good)


def test_the_scale_is_that_of_the_file(tmp_path):
    """A wrong one cannot be seen in any shape."""
    model = saved(tmp_path)
    root = ALPHA / 2**0.5
    for changes, scale in (({"lora_alpha": 3}, 1.5), ({"use_rslora": True}, root), ({"alpha_pattern": {".*": 7}}, 3.5)):
        good, other = (tmp_path / CONFIG).read_text(), net()
        change_config(tmp_path, **changes)
        assert {found for *_, found in load_adapter(other, tmp_path).layers.values()} == {scale}
        assert not same_bits(other(TOKENS), model(TOKENS))
        (tmp_path / CONFIG).write_text(good)


# Files that are broken or hostile


def test_a_pickle_is_never_read(tmp_path):
    saved(tmp_path)
    (tmp_path / TENSORS).rename(tmp_path / PICKLE)
    refused(tmp_path, rf"directory is '.*', expected one with {TENSORS}, because {PICKLE} is a pickle.*|directory")
    (tmp_path / TENSORS).write_bytes(b"PK\x03\x04" + b"pickled" * 9)
    refused(tmp_path, f"{TENSORS} is unreadable")
    (tmp_path / CONFIG).unlink()
    refused(tmp_path, rf"directory is '.*', expected one with {CONFIG} and {TENSORS}, because|directory")
    refused(tmp_path / "nowhere", "directory is")


@pytest.mark.parametrize("text", [
    "", "[]", "3", "{", '{"r": 2, "r": 3}', '{"rank_pattern": {"a": 1, "a": 2}}', "[" * 100_000, '{"r": ' + "9" * 5000 + "}",
    "\ud800".encode("utf-8", "surrogatepass"), b"\xff\xfe{\x00}\x00", '{"r": NaN, "peft_type": "LORA"}',
], ids=lambda text: repr(text[:24]))
def test_a_configuration_that_is_no_json_object_with_each_key_once_is_refused(text, tmp_path):
    saved(tmp_path)
    (tmp_path / CONFIG).write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(tmp_path, "(adapter_config.json is|lora_alpha is)")


def header(entries: dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


ENTRY = {"dtype": "F32", "shape": [2, 6], "data_offsets": [0, 48]}


@pytest.mark.parametrize("content", [
    b"", b"\x00" * 7, header({}), header({}, length=2**63), header({}, length=2**40), header({"a": ENTRY}),
    header({"a": {**ENTRY, "shape": [2**40, 2**40]}}, bytes(48)), header({"a": {**ENTRY, "shape": [2**32, 2**32]}}, bytes(48)),
    header({"a": {**ENTRY, "data_offsets": [48, 0]}}, bytes(48)), header({"a": ENTRY, "b": ENTRY}, bytes(48)),
    header({"a": {**ENTRY, "data_offsets": [-1, 47]}}, bytes(48)), header({"a": {**ENTRY, "dtype": "F8_E5M2"}}, bytes(12)),
    header({"a": {**ENTRY, "dtype": "X"}}, bytes(48)), header({"a": ENTRY}, bytes(50)), header({"a" * 10**6: ENTRY}, bytes(48)),
    header({"../" * 99: ENTRY}, bytes(48)), header({"\x00": ENTRY}, bytes(48)), struct.pack("<Q", 9) + b'{"a":{}}}',
], ids=range(18))
def test_a_hostile_header_is_refused(content, tmp_path):
    saved(tmp_path)
    (tmp_path / TENSORS).write_bytes(content)
    refused(tmp_path, TENSORS)


def test_mutated_files_are_read_or_refused_and_a_refusal_changes_nothing(tmp_path):
    saved(tmp_path, modules_to_save=["classifier.0"])
    good, model = {name: (tmp_path / name).read_bytes() for name in (CONFIG, TENSORS)}, net()
    draws, before, read = random.Random(0), Snapshot(model), 0
    end = 8 + struct.unpack("<Q", good[TENSORS][:8])[0]
    for i in range(600):
        name = CONFIG if i % 3 == 0 else TENSORS
        content = bytearray(good[name])
        for _ in range(draws.choice([1, 1, 2, 5])):
            last = min(len(content), end) - 1 if i % 3 == 1 else len(content) - 1
            start, size = draws.randint(0, last), draws.choice([0, 1, 1, 1, 9])
            content[start : start + size] = draws.randbytes(draws.choice([0, 1, 1, 4]))
        for file, text in good.items():
            (tmp_path / file).write_bytes(content if file == name else text)
        torch.set_rng_state(before.draws)
        try:
            load_adapter(model, tmp_path)
        except ValueError:
            assert before.holds(model)
        else:
            read += 1
            model = net()
            before = Snapshot(model)
    assert 0 < read < 300


# Writing


@pytest.mark.parametrize("fails", ["fsync", "replace", "save_file"])
def test_a_write_that_fails_leaves_what_was_there(fails, tmp_path, monkeypatch):
    saved(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = attached(TARGETS)
    fill(other, 8)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("lora_torch.checkpoint.save_file" if fails == "save_file" else f"os.{fails}", full)
    with pytest.raises(OSError, match="No space left"):
        save_adapter(other, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.undo()
    save_adapter(other, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == before.keys()
    assert (tmp_path / TENSORS).read_bytes() != before[TENSORS]


def test_numbers_that_are_not_finite_are_not_written(tmp_path):
    model = saved(tmp_path)
    before = (tmp_path / TENSORS).read_bytes()
    nn.init.constant_(model.layers[1].q_proj.adapters["default"].lora_B, float("inf"))
    with pytest.raises(ValueError, match=rf"^save_adapter: {PREFIX}layers.1.q_proj.lora_B.weight is .*, expected finite"):
        save_adapter(model, tmp_path)
    assert (tmp_path / TENSORS).read_bytes() == before
