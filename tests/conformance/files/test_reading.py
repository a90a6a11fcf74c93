"""Files as other programs write them, hostile ones, and the comparison with a base model."""

import json
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
from thorough import THOROUGH

from conformance.commands import file
from conformance.files import container, corpus, peft, reading
from conformance.files.binary import safetensors
from conformance.files.corpus.made import OUT, RANK, Q, V, drawn
from conformance.files.meaning import Meaning

MUTATED = 10_000 if THOROUGH else 600


def codes(meaning: Meaning) -> list[str]:
    return [issue.code for issue in meaning.issues]


def written(folder: Path, case: corpus.Case) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in case.files.items():
        (folder / name).write_bytes(content)
    return folder


def named(name: str) -> corpus.Case:
    return next(case for case in corpus.cases() if case.folder == name)


@pytest.mark.peers("transformers", "peft")
@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize("settings", [
    {}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}, {"alpha_pattern": {"v_proj": 3, "q_proj": 5}},
    {"rank_pattern": {r"layers\.0.*v_proj": 8}, "alpha_pattern": {"layers.1.self_attn.q_proj": 2}, "use_rslora": True},
    {"rank_pattern": {"^model.layers.0.self_attn.q_proj": 2}, "alpha_pattern": {"proj": 9}},
    {"target_modules": r".*layers\.1\..*_proj"}, {"target_modules": ["embed_tokens", "lm_head", "down_proj"]},
    {"modules_to_save": ["lm_head"]}, {"lora_bias": True, "target_modules": ["up_proj"]},
    {"target_modules": ["q_proj"], "layers_to_transform": [1]},
    {"exclude_modules": r".*\.1\..*", "target_modules": "all-linear"},
], ids=str)
def test_a_folder_that_peft_wrote_means_what_peft_computes(tmp_path, settings):
    import peft as library
    import torch
    import transformers

    config = transformers.LlamaConfig(vocab_size=24, hidden_size=16, intermediate_size=20, num_hidden_layers=2,
                                      num_attention_heads=2, num_key_value_heads=1)
    chosen = library.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]} | settings)
    model = library.get_peft_model(transformers.LlamaForCausalLM(config), chosen).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.from_numpy(drawn(name, *parameter.shape)))
    model.save_pretrained(str(tmp_path))
    found = reading.read(str(tmp_path))
    assert found.right and found.format == "PEFT", found.issues
    layers = {name.removeprefix(peft.PREFIX): layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    assert {part.module for part in found.parts} == layers.keys()
    for part in found.parts:
        want = layers[part.module].get_delta_weight("default").detach().double().numpy()
        assert np.array_equal(part.delta(), want), part.module
    base = {name.removeprefix(peft.PREFIX).replace(".base_layer", ""): list(value.shape)
            for name, value in model.named_parameters() if "lora_" not in name}
    (tmp_path / "shapes.json").write_text(json.dumps(base))
    reading.compare(found, reading.shapes(str(tmp_path / "shapes.json")))
    assert found.right, found.issues


def test_a_base_model_that_has_no_such_module_or_another_shape(tmp_path):
    place = written(tmp_path, named("peft/P-3-pass-plain"))
    (tmp_path / "base").mkdir()
    for shapes, expected in (
            ({Q: (OUT, 12), V: (OUT, 12)}, []), ({Q: (OUT, 12)}, ["FILE-040"]), ({Q: (OUT, 12), V: (12, OUT)}, ["FILE-043"]),
                ({Q: (OUT, 12), V: (OUT, 11)}, ["FILE-041"]),
            ({f"language_model.{name}": (OUT, 12) for name in (Q, V)}, ["FILE-040", "FILE-040"])):
        arrays = {f"{name}.weight": np.zeros(shape, np.float32) for name, shape in shapes.items()}
        (tmp_path / "base" / "model.safetensors").write_bytes(safetensors(arrays))
        found = reading.read(str(place))
        reading.compare(found, reading.shapes(str(tmp_path / "base")))
        assert codes(found) == expected


def test_kohyas_names_are_found_in_a_base_model_unless_they_are_ambiguous(tmp_path):
    place = str(written(tmp_path, named("kohya/K-2-pass-alpha")) / "adapter.safetensors")
    one = "down_blocks.0.attn.to_q"
    for names, expected in ((one,), []), ((one, "down_blocks.0.attn.to.q"), ["FILE-040"]):
        found = reading.read(place)
        reading.compare(found, {f"{name}.weight": (OUT, 12) for name in names})
        assert codes(found) == expected


def test_a_base_model_that_cannot_be_read_is_an_error_of_the_caller(tmp_path):
    for name, content in (("a.json", "[]"), ("b.json", "{"), ("c.json", '{"x": 3}')):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=name):
            reading.shapes(str(tmp_path / name))
    with pytest.raises(ValueError, match="no .safetensors file"):
        reading.shapes(str(tmp_path))


def test_what_is_not_there_or_no_adapter(tmp_path):
    assert codes(reading.read(str(tmp_path / "nothing"))) == ["FILE-001"]
    assert codes(reading.read(str(tmp_path))) == ["FILE-001"]
    (tmp_path / "x.safetensors").write_bytes(safetensors({"weight": drawn("x", 2, 2)}))
    assert codes(reading.read(str(tmp_path))) == ["FILE-015"]
    (tmp_path / "y.safetensors").write_bytes(safetensors({"weight": drawn("x", 2, 2)}))
    assert codes(reading.read(str(tmp_path))) == ["FILE-001"]  # which of the two?


def test_a_name_that_looks_like_a_path_is_a_name(tmp_path):
    case = named("peft/P-3-pass-plain")
    weights = case.files["adapter_model.safetensors"].replace(b"model.layers.0", b"model/../../.0")
    found = reading.read(str(written(tmp_path, case._replace(files=case.files | {"adapter_model.safetensors": weights}))))
    assert "FILE-006" in codes(found) and any("../../" in part.module for part in found.parts)


def test_a_large_factor_is_read_in_parts(tmp_path):
    """The norm of a product of 2²⁰ inputs, by blocks, and a file that is longer than the memory that it takes."""
    import tracemalloc

    width = 1 << 20
    A, B = np.ones((RANK, width), np.float32), drawn("large", OUT, RANK)
    path = tmp_path / "lora.safetensors"
    path.write_bytes(safetensors({"lora_unet_x.lora_down.weight": A, "lora_unet_x.lora_up.weight": B}))
    tracemalloc.start()
    found = reading.read(str(path))
    norm = found.parts[0].norm()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    want = np.sqrt(width) * np.linalg.norm(B.astype(np.float64).sum(1))
    assert norm is not None and np.float32(norm) == np.float32(want)
    assert peak < A.nbytes * 2  # a block in float64, and not the whole three times


def mutated(content: bytes, rng: random.Random) -> bytes:
    """The content after one to four changes: bytes flipped, cut out, repeated or cut off, or another value of JSON."""
    found = bytearray(content)
    values = list(re.finditer(rb'(?<=: )[^,\n]+|(?<=":)[^,{}]+', content[:2000]))
    if values and rng.random() < 0.5:
        at = rng.choice(values)
        found[at.start() : at.end()] = rng.choice(
            [b"[]", b"{}", b"null", b"true", b"9" * 400, b"-1", b"0", b'"\\ud800"', b'"x"', b"1e308", b"[[1]]", b"1.5"])
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(found) + 1) if rng.random() < 0.3 else rng.randrange(min(len(found), 700) + 1)
        kind = rng.randrange(5)
        if kind == 0 and at < len(found):
            found[at] = rng.randrange(256)
        elif kind == 1:
            del found[at : at + rng.randint(1, 40)]
        elif kind == 2:
            found[at:at] = found[at : at + rng.randint(1, 40)]
        elif kind == 3:
            del found[at:]
        else:
            found[at:at] = rng.choice([b"null", b"-1", b"1e999", b"{", b"]", b'"', b"NaN", b"9" * 20, b"\0" * 8, b"\xff" * 8])
    return bytes(found)


def test_mutated_files_are_issues_and_never_crashes(tmp_path):
    rng = random.Random(0)
    valid = [case for case in corpus.cases() if case.valid]
    refused = 0
    for number in range(MUTATED):
        case = valid[number % len(valid)]
        name = rng.choice(list(case.files))
        folder = written(tmp_path / "now", case._replace(files=case.files | {name: mutated(case.files[name], rng)}))
        place = folder if case.format in ("peft", "mlx-lm") else folder / next(iter(case.files))
        with np.errstate(all="ignore"):
            found = reading.read(str(place))
            norms = [part.norm() for part in found.parts]
        refused += not found.right
        assert all(norm is None or norm >= 0 for norm in norms), number
        json.dumps(file.as_dict(found), allow_nan=False).encode()  # what the command writes
        for path in folder.iterdir():
            path.unlink()
    assert refused > MUTATED // 2


def test_json_is_read_strictly():
    for text in ('{"a": 1, "a": 2}', "NaN", '{"a": Infinity}', "{", '{"a":' * 100_000):
        with pytest.raises(ValueError):
            container.loads(text)


def test_a_pipe_in_the_place_of_a_file_is_no_file(tmp_path):
    written(tmp_path, named("peft/P-3-pass-plain"))
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
        assert {"FILE-001", "FILE-010"} & set(codes(reading.read(str(tmp_path))))


def test_many_equal_names_are_found_at_once():
    names = ", ".join(f'"{i}": 0' for i in range(200_000))
    with pytest.raises(container.Twice, match="199999"):
        container.loads(f'{{{names}, "199999": 1}}')
