"""Names and rows in other formats: attention with an adapter is the same in both orders, and what cannot be said is refused."""

import json

import numpy as np
import pytest

from conformance.__main__ import main
from conformance.files import reading, writing
from conformance.files.corpus import made
from conformance.files.names import KINDS, CannotName, Model, model_of
from conformance.files.writing import CannotSay

HEADS, KV_HEADS, HEAD, WIDTH, RANK = 4, 2, 6, 24, 2
MODEL = Model("llama", HEADS, KV_HEADS)
ROWS = {"self_attn.q_proj": HEADS * HEAD, "self_attn.k_proj": KV_HEADS * HEAD, "self_attn.v_proj": KV_HEADS * HEAD,
        "self_attn.o_proj": WIDTH, "mlp.gate_proj": 20, "mlp.up_proj": 20, "mlp.down_proj": WIDTH}


def adapter(folder, more: dict | None = None, names=ROWS, **settings):
    """An adapter of PEFT for a small Llama."""
    arrays = dict(more or {})
    for name in names:
        module = f"base_model.model.model.layers.3.{name}"
        n_in = 20 if name == "mlp.down_proj" else WIDTH
        arrays |= {f"{module}.lora_A.weight": made.drawn(f"A {name}", RANK, n_in),
                   f"{module}.lora_B.weight": made.drawn(f"B {name}", ROWS[name], RANK)}
    said = {"peft_type": "LORA", "r": RANK, "lora_alpha": 3, "target_modules": [n.split(".")[1] for n in names]} | settings
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(said))
    (folder / "adapter_model.safetensors").write_bytes(made.safetensors(arrays))
    return reading.read(str(folder))


def deltas(meaning) -> dict[str, np.ndarray]:
    return {part.module: part.delta() for part in meaning.parts}


def scores(q: np.ndarray, k: np.ndarray, pairs) -> np.ndarray:
    """Products of the queries and keys of each head at positions 0, 1, …, after their pairs of rows were rotated."""
    def rotated(rows: np.ndarray, heads: int) -> np.ndarray:
        by_head = rows.reshape(len(rows), heads, HEAD)
        first, second = (by_head[..., index] for index in pairs)
        angle = np.arange(len(rows))[:, None, None] / 10.0 ** np.arange(HEAD // 2)
        turned = np.empty_like(by_head)
        turned[..., pairs[0]] = first * np.cos(angle) - second * np.sin(angle)
        turned[..., pairs[1]] = first * np.sin(angle) + second * np.cos(angle)
        return turned

    queries, keys = rotated(q, HEADS), rotated(k, KV_HEADS).repeat(HEADS // KV_HEADS, 1)
    return np.einsum("shd,thd->hst", queries, keys)


HALVES = (np.arange(HEAD // 2), np.arange(HEAD // 2) + HEAD // 2)  # Hugging Face
NEIGHBOURS = (np.arange(0, HEAD, 2), np.arange(1, HEAD, 2))  # torchtune, GGUF


@pytest.mark.parametrize(("format", "q", "k"), [
    ("torchtune", "layers.3.attn.q_proj", "layers.3.attn.k_proj"), ("GGUF", "blk.3.attn_q.weight", "blk.3.attn_k.weight")])
def test_attention_is_the_same_in_the_other_order(tmp_path, format, q, k):
    meaning = adapter(tmp_path / "peft")
    writing.put(meaning, format, tmp_path / "out", MODEL)
    ours, theirs = deltas(meaning), deltas(reading.read(str(tmp_path / "out")))
    x = np.random.default_rng(0).standard_normal((5, WIDTH))
    first, second = (x @ ours[f"model.layers.3.self_attn.{name}_proj"].T for name in "qk")
    want, got = scores(first, second, HALVES), scores(x @ theirs[q].T, x @ theirs[k].T, NEIGHBOURS)
    rounding = 100 * np.finfo(float).eps * np.abs(want).max()
    assert np.abs(got - want).max() <= rounding
    assert np.abs(scores(first, second, NEIGHBOURS) - want).max() > 1e6 * rounding  # the order matters
    others = {name: delta for name, delta in ours.items() if not name.endswith(("q_proj", "k_proj"))}
    assert sorted(delta.tobytes() for delta in others.values()) == sorted(
        delta.tobytes() for name, delta in theirs.items() if name not in (q, k))


@pytest.mark.parametrize("way", [("GGUF", "PEFT"), ("torchtune", "GGUF", "mlx-lm", "PEFT"), ("GGUF", "torchtune", "PEFT")])
def test_back_again_it_is_the_same_file(tmp_path, way):
    meaning = now = adapter(tmp_path / "peft", lora_alpha=1.5, use_rslora=False)
    for number, format in enumerate(way):
        writing.put(now, format, tmp_path / str(number), MODEL)
        now = reading.read(str(tmp_path / str(number)))
        assert now.right, now.issues
    want, got = deltas(meaning), deltas(now)
    assert want.keys() == got.keys() and all(np.array_equal(got[name], want[name]) for name in want)


def test_names_are_reported(tmp_path):
    made_of = writing.put(adapter(tmp_path / "peft", names=("mlp.gate_proj",)), "torchtune", tmp_path / "out", MODEL)
    assert made_of.names == {"model.layers.3.mlp.gate_proj": "layers.3.mlp.w1"}


@pytest.mark.parametrize(("more", "settings", "says"), [
    ({"base_model.model.model.layers.3.mlp.extra.lora_A.weight": made.drawn("A", RANK, WIDTH),
      "base_model.model.model.layers.3.mlp.extra.lora_B.weight": made.drawn("B", 4, RANK)},
     {"target_modules": [*(n.split(".")[1] for n in ROWS), "extra"]}, "mlp.extra is no module of a llama model"),
    ({}, {"alpha_pattern": {"q_proj": 8}}, "alphas that differ"),
])
def test_what_cannot_be_said_is_named(tmp_path, more, settings, says):
    with pytest.raises(CannotSay, match=says):
        writing.put(adapter(tmp_path / "peft", more, **settings), "GGUF", tmp_path / "out", MODEL)
    assert not (tmp_path / "out").exists()


def test_rows_that_are_no_pairs_of_heads_are_refused(tmp_path):
    with pytest.raises(CannotSay, match="expected a multiple of twice its 5 heads"):
        writing.put(adapter(tmp_path / "peft"), "GGUF", tmp_path / "out", Model("llama", 5, 5))


@pytest.mark.parametrize(("said", "kind"), [("{", "cannot be read"), ('{"model_type": "qwen2"}', "qwen2"), ("[]", "None"),
                                            ('{"model_type": "llama", "num_attention_heads": "4"}', "'4' heads")])
def test_another_base_model_is_refused(tmp_path, said, kind):
    (tmp_path / "config.json").write_text(said)
    with pytest.raises(CannotName, match=kind):
        model_of(str(tmp_path))
    assert set(KINDS) == {"llama", "mistral"}


def test_the_command_translates(tmp_path, capsys):
    adapter(tmp_path / "peft")
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2}')
    call = ["file", str(tmp_path / "peft"), "--to", "GGUF", "--out", str(tmp_path / "out")]
    assert main(call) == 1 and "config.json" in capsys.readouterr().err
    assert main([*call, "--base", str(base)]) == 0
    assert "blk.3.attn_q.weight" in capsys.readouterr().out
