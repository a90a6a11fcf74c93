"""A probe of a small server: honest ones in every way of giving log-probabilities and in every dtype, and those that do wrong
what servers do wrong."""

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conformance.__main__ import main

sys.path.append(str(Path(__file__).parent))
from fake_server import Fake, Llama, Weights, deltas

pytest.importorskip("transformers", reason="transformers is not installed (pip install -e '.[peers]')")
pytestmark = pytest.mark.peers
KINDS = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
SIZES = {"self_attn.q_proj": (32, 32), "self_attn.v_proj": (16, 32), "self_attn.o_proj": (32, 32), "mlp.down_proj": (32, 48)}
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "tie_word_embeddings": False,
    "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
}


def write_base(folder: Path) -> None:
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (64, 32), "model.norm": (32,), "lm_head": (64, 32)}
    for layer in ("model.layers.0", "model.layers.1"):
        shapes |= {f"{layer}.{name}": shape for name, shape in SIZES.items()}
        shapes |= {f"{layer}.self_attn.k_proj": (16, 32), f"{layer}.mlp.gate_proj": (48, 32), f"{layer}.mlp.up_proj": (48, 32)}
        shapes |= {f"{layer}.input_layernorm": (32,), f"{layer}.post_attention_layernorm": (32,)}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file({f"{name}.weight": ((len(shape) == 1) + 0.25 * rng.standard_normal(shape)).astype(np.float32)
               for name, shape in shapes.items()}, folder / "model.safetensors", {"format": "pt"})


def write_adapter(folder: Path, seed: int, **settings: Any) -> None:
    rng = np.random.default_rng(seed)
    arrays = {}
    for layer in range(2):
        for name, (out, into) in SIZES.items():
            place = f"base_model.model.model.layers.{layer}.{name}"
            arrays |= {f"{place}.lora_{letter}.weight": rng.normal(0, 0.2, shape).astype(np.float32)
                       for letter, shape in (("A", (3, into)), ("B", (out, 3)))}
    folder.mkdir()
    said = {"peft_type": "LORA", "r": 3, "lora_alpha": 5, "target_modules": [name.rpartition(".")[2] for name in KINDS]}
    (folder / "adapter_config.json").write_text(json.dumps(said | settings))
    save_file(arrays, folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("probe")
    write_base(folder / "base")
    write_adapter(folder / "mine", 1)
    write_adapter(folder / "other", 2)
    write_adapter(folder / "rslora", 3, use_rslora=True)
    return SimpleNamespace(folder=folder, llama=Llama(folder / "base"),
                           adapters={name: deltas(folder / name) for name in ("mine", "other")})


@pytest.fixture
def probe(made, tmp_path, capsys) -> Callable[..., SimpleNamespace]:
    def run(fake: Fake, *arguments: str, adapter: str = "mine", other: str = "other=") -> SimpleNamespace:
        with fake as url:
            others = ["--other", f"{other}{made.folder / 'other'}"] if "other" in fake.adapters else []
            status = main(["probe", url, "--model", "mine", "--base", str(made.folder / "base"), "--adapter",
                           str(made.folder / adapter), *others, "--prompts", "8", "--tokens", "10", "--seed", "1",
                           "--json", str(tmp_path / "report.json"), *arguments])
        said = json.loads((tmp_path / "report.json").read_text()) if status in (0, 1, 3) else {}
        return SimpleNamespace(status=status, said=said, text=capsys.readouterr().out, kind=said.get("verdict"))

    return run


@pytest.mark.parametrize("way", ["next", "prompt_logprobs", "echo"])
def test_an_honest_server_is_said_to_apply_its_adapter(made, probe, way):
    found = probe(Fake(made.llama, made.adapters, way))
    assert (found.status, found.kind, found.said["log_probabilities"]) == (0, "applied", way)
    for round in found.said["rounds"]:
        for asked in round["asked"]:
            assert asked["right"]
            assert all(row["power"] > 100 for row in asked["alternatives"][1:])  # nothing else could be meant


@pytest.mark.parametrize("narrow", [np.float16, ml_dtypes.bfloat16])
def test_honest_rounding_is_no_fault(made, probe, narrow):
    found = probe(Fake(Llama(made.folder / "base", narrow), made.adapters))
    assert (found.status, found.kind) == (0, "applied"), found.text
    strength, reach = found.said["rounds"][0]["asked"][0]["strength"]
    assert abs(strength - 1) < reach


def served(made, change: Callable[[Weights], Weights]) -> Fake:
    return Fake(made.llama, made.adapters | {"mine": change(made.adapters["mine"])})


@pytest.mark.parametrize(("change", "kind", "words"), [
    (lambda mine: {}, "base model", "the base model alone"),
    (lambda mine: {k: v for k, v in mine.items() if "v_proj" not in k}, "partly applied", "without v_proj"),
    (lambda mine: {k: v for k, v in mine.items() if "layers.0" in k}, "partly applied", "without layer 1"),
    (lambda mine: {k: v for k, v in mine.items() if "q_proj" in k or "down" in k}, "partly applied", "without o_proj, v_proj"),
    (lambda mine: {k: v for k, v in mine.items() if k[13:] not in ("0.self_attn.q_proj", "1.mlp.down_proj")}, "partly applied",
     "without model.layers.0.self_attn.q_proj, model.layers.1.mlp.down_proj"),
    (lambda mine: {k: 3**0.5 * v for k, v in mine.items()}, "wrong strength", "√rank times its strength"),
    (lambda mine: {k: 2 * v for k, v in mine.items()}, "wrong strength", "twice its strength"),
    (lambda mine: {k: 1.3 * v for k, v in mine.items()}, "wrong strength", "all modules × 1.3"),
    (lambda mine: {k: (0.7 if "o_proj" in k else 1) * v for k, v in mine.items()}, "wrong strength", "o_proj × 0.7"),
    (lambda mine: {k: v.T if len(set(v.shape)) == 1 else v for k, v in mine.items()}, "another adapter", "transposed"),
])
def test_what_a_server_does_instead_is_named(made, probe, change, kind, words):
    found = probe(served(made, change))
    assert (found.status, found.kind) == (1, kind), found.text
    assert words in found.said["words"]
    assert kind in found.text


def test_another_adapter_is_named(made, probe):
    found = probe(served(made, lambda mine: made.adapters["other"]))
    assert (found.status, found.kind) == (1, "another adapter")
    assert found.said["words"] == str(made.folder / "other")


def test_what_nobody_knows_is_said_to_be_wrong(made, probe):
    found = probe(served(made, lambda mine: {k: np.flip(v, 0) for k, v in mine.items()}))
    assert (found.status, found.kind) == (1, "wrong, for no known reason")


def test_a_reader_that_leaves_out_rslora_is_found(made, probe):
    mine = {name: delta / 3**0.5 for name, delta in deltas(made.folder / "rslora").items()}
    found = probe(Fake(made.llama, {"mine": mine}), adapter="rslora")
    assert (found.status, found.kind) == (1, "wrong strength")
    named = {found.said["words"], *found.said["rounds"][0]["asked"][0]["not_told_apart"]}
    assert {"its strength over √rank", "scale lora_alpha / rank, without rslora and alpha_pattern"} <= named


def test_an_exchange_in_a_batch_is_found(made, probe):
    """Alone every request is right. In a mixed batch, a request gets the adapter of one that waits."""
    fake, flight, waiting = Fake(made.llama, made.adapters), threading.Condition(), []

    def chosen(asked: dict) -> Weights:
        with flight:
            if asked["model"] == "other":  # asked in the mixed batch alone
                waiting.append("other")
                flight.wait_for(lambda: not waiting, 5)
                return fake.choose(asked)
            taken = waiting.pop() if waiting else asked["model"]
            flight.notify_all()
            return fake.choose(asked | {"model": taken})

    fake.chosen = chosen
    found = probe(fake)
    assert found.status == 1
    assert [asked["right"] for asked in found.said["rounds"][0]["asked"]] == [True]
    assert not all(asked["right"] for asked in found.said["rounds"][-1]["asked"])
    assert "prompts: " in found.text


def test_a_cache_of_another_adapter_is_found(made, probe):
    """llama.cpp's server keeps the keys and values of a prompt when the adapter changes."""
    fake = Fake(made.llama, {"mine": made.adapters["mine"]}, "next")
    seen: dict[str, Weights] = {}
    fake.early = lambda tokens, adapter: seen.setdefault(str(tokens), adapter)
    found = probe(fake)
    assert (found.status, found.kind) == (1, "stale"), found.text
    assert "after 9 tokens in a cache of: the base model alone" in found.said["words"]
    assert found.said["rounds"][0]["asked"][0]["right"]  # new prompts are in no cache


def test_adapters_are_loaded_reloaded_and_unloaded(made, probe):
    fake = Fake(made.llama, made.adapters)
    found = probe(fake, "--dynamic", "6")
    assert (found.status, found.kind) == (0, "applied"), found.text
    steps = " ".join(round["round"] for round in found.said["rounds"])
    assert all(word in steps for word in ("is loaded", "is unloaded", "in the place of"))
    assert fake.adapters.keys() == {"mine", "other"}  # nothing is left behind


def keeps_the_first(fake: Fake) -> None:
    """An adapter that is loaded under a name that was there before is that one."""
    seen: dict[str, Weights] = {}
    fake.load = lambda name, folder: fake.adapters.update({name: seen.setdefault(name, deltas(folder))})


def never_unloads(fake: Fake) -> None:
    fake.unload = lambda name: None


def serves_the_base_for_what_is_new(fake: Fake) -> None:
    fake.load = lambda name, folder: fake.adapters.update({name: {}})


@pytest.mark.parametrize(("fault", "words"), [
    (keeps_the_first, "stale"), (never_unloads, "still answers"), (serves_the_base_for_what_is_new, "base model")])
def test_what_goes_wrong_while_a_server_runs_is_found(made, probe, fault, words):
    fake = Fake(made.llama, made.adapters)
    fault(fake)
    found = probe(fake, "--dynamic", "6")
    assert found.status == 1
    assert words in found.text
    assert all(asked["right"] for round in found.said["rounds"][:3] for asked in round["asked"])


def test_scales_of_llama_cpp_are_set(made, probe):
    fake = Fake(made.llama, made.adapters, scales=True)
    found = probe(fake, "--dynamic", "2", other="other=")
    assert (found.status, found.kind) == (0, "applied"), found.text
    assert fake.scales == {0: 1.0, 1: 1.0}  # as they were
    fake = Fake(made.llama, made.adapters, scales=True)
    fake.scales = type("Fixed", (dict,), {"update": lambda *_: None})({0: 1.0, 1: 1.0})
    found = probe(fake, "--dynamic", "2")
    assert found.status == 1
    assert "requests without scales" in found.text


def test_a_server_that_applies_its_only_adapter_is_asked_as_users_ask(made, probe):
    fake = Fake(made.llama, {"mine": made.adapters["mine"]}, scales=True)
    assert probe(fake).status == 0
    fake.scales = {0: 0.5}
    found = probe(fake)
    assert (found.status, found.said["words"]) == (1, "half its strength")


def test_noise_that_hides_the_adapter_is_said(made, probe):
    rng = np.random.default_rng(0)
    noisy: Any = SimpleNamespace(log_probabilities=lambda *a: made.llama.log_probabilities(*a) + rng.normal(0, 5, (10, 64)))
    found = probe(Fake(noisy, made.adapters))
    assert (found.status, found.kind) == (3, "cannot tell")
    assert "the base model alone" in found.said["words"]


def say(said: Any, path: str = "/v1/completions") -> Callable[[Fake], None]:
    def change(fake: Fake) -> None:
        fake.answer = lambda asked_path, asked: said if asked_path == path else fake.respond(asked_path, asked)

    return change


def gives_nan(fake: Fake) -> None:
    fake.chosen = lambda asked: {name: delta * np.nan for name, delta in fake.choose(asked).items()}


def is_silent_of_the_adapter(fake: Fake) -> None:
    silent = {"choices": [{"logprobs": None}]}
    fake.answer = lambda path, asked: silent if asked and asked.get("model") == "mine" else fake.respond(path, asked)


@pytest.mark.parametrize(("fault", "status", "words"), [
    (say(b"no JSON"), 3, "is no JSON"),
    (say({"choices": []}), 3, "no log-probabilities"),
    (say({"choices": [{"logprobs": {"top_logprobs": [{" the": -1.0}]}}]}), 3, "no log-probabilities"),
    (say({"choices": [{"logprobs": {"top_logprobs": [{"token_id:64": -1.0}]}}]}), 3, "the vocabulary has 64"),
    (say({"data": "?"}, "/v1/models"), 3, "a list of objects"),
    (say({"data": [{"id": "base"}]}, "/v1/models"), 3, "it serves no model 'mine'"),
    (say({"data": [{"id": []}]}, "/v1/models"), 3, "the list of adapters cannot be read"),
    (say({"data": [{"id": None}]}, "/v1/models"), 3, "the list of adapters cannot be read"),
    (say([{"id": 0, "path": "mine.gguf", "scale": None}], "/lora-adapters"), 3, "the list of adapters cannot be read"),
    (say([{"id": "x", "path": "mine.gguf"}], "/lora-adapters"), 3, "the list of adapters cannot be read"),
    (is_silent_of_the_adapter, 3, "the server gives no log-probabilities for any of these prompts"),
    (gives_nan, 1, "no finite numbers"),
])
def test_odd_answers_are_no_crash(made, probe, fault, status, words):
    fake = Fake(made.llama, made.adapters)
    fault(fake)
    found = probe(fake)
    assert found.status == status
    assert words in found.text


def test_a_slow_server_is_not_waited_for(made, probe):
    fake = Fake(made.llama, made.adapters)
    fake.chosen = lambda asked: time.sleep(3) or {}
    found = probe(fake, "--timeout", "0.2")
    assert found.status == 3
    assert "no answer" in found.text


def test_no_server_is_no_verdict(made, tmp_path, capsys):
    folders = ["--base", str(made.folder / "base"), "--adapter", str(made.folder / "mine")]
    assert main(["probe", "http://127.0.0.1:9", "--model", "mine", *folders]) == 3
    assert "no answer" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [
    (), ("http://127.0.0.1:9", "--write", "x"), ("127.0.0.1:9",), ("http://127.0.0.1:9", "--tokens", "1"), ("--write", "x")])
def test_usage(arguments, capsys):
    assert main(["probe", *arguments]) == 2
    assert capsys.readouterr().err.startswith("conformance probe: ")


@pytest.mark.parametrize(("name", "arguments"), [
    ("--seed", ("http://127.0.0.1:9", "--seed", "-1")), ("URL", ("127.0.0.1:9",)), ("URL", ("http://",)),
    ("URL", ("http://h:port",)), ("URL", ("http://[",))])
def test_usage_names_the_argument(made, name, arguments, capsys):
    folders = ["--base", str(made.folder / "base"), "--adapter", str(made.folder / "mine")]
    assert main(["probe", *arguments, *folders]) == 2
    assert capsys.readouterr().err.startswith(f"conformance probe: {name} ")


def test_an_adapter_of_another_model_is_usage(made, probe, tmp_path, capsys):
    write_adapter(tmp_path / "far", 1)
    file = tmp_path / "far" / "adapter_model.safetensors"
    held = {name.replace("layers.1", "layers.7"): array for name, array in load_file(file).items()}
    save_file(held, file)
    with Fake(made.llama, made.adapters) as url:
        arguments = ["--model", "mine", "--base", str(made.folder / "base"), "--adapter", str(tmp_path / "far")]
        assert main(["probe", url, *arguments]) == 2
    assert "has no module model.layers.7" in capsys.readouterr().err


def test_names_may_have_more_segments(made, probe, tmp_path):
    """The server of an adapter with such names often serves the base model."""
    write_adapter(tmp_path / "prefixed", 1)
    file = tmp_path / "prefixed" / "adapter_model.safetensors"
    save_file({name.replace("model.model.model", "model.model.language_model.model"): array
               for name, array in load_file(file).items()}, file)
    found = probe(served(made, lambda mine: {}), adapter=str(tmp_path / "prefixed"))
    assert (found.status, found.kind) == (1, "base model")


def test_calibrated_adapters_move_the_answers_by_one_nat(made, probe, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ("probe", "--base", str(made.folder / "base"), "--write", str(out), "--prompts", "8", "--seed", "1")
    assert main([*arguments]) == 0
    told = dict(line.rsplit(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert len(told) == 8  # seven kinds of layers, and all of them
    assert {f"{float(effect.split()[0]):.1f}" for effect in told.values()} == {"1.0"}
    found = probe(Fake(made.llama, {"mine": deltas(out / "k_proj")}), adapter=str(out / "k_proj"))
    assert (found.status, found.kind) == (0, "applied")
    assert main([*arguments]) == 2  # the folder is not empty
