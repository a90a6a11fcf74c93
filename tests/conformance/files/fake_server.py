"""A small server with the protocol of OpenAI, for a Llama in NumPy, which shares no code with what it is asked by. It can be
made to do wrong what servers do wrong."""

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

Weights = dict[str, np.ndarray]


def deltas(folder: str | Path) -> Weights:
    """ΔW by module, of a folder of PEFT whose modules all have one rank and alpha."""
    said = json.loads((Path(folder) / "adapter_config.json").read_text())
    scale = said["lora_alpha"] / (said["r"] ** 0.5 if said.get("use_rslora") else said["r"])
    held = load_file(Path(folder) / "adapter_model.safetensors")
    return {name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): scale * held[name.replace("A.w", "B.w")] @ A
            for name, A in held.items() if name.endswith("lora_A.weight")}


class Llama:
    """Llama's forward pass in float32, rounded to a narrower type after every operation."""

    def __init__(self, folder: Path, narrow: Any = np.float32):
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = load_file(folder / "model.safetensors")
        self.narrow = narrow

    def round(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(x, np.float32).astype(self.narrow).astype(np.float32)

    def log_probabilities(self, tokens: list[int], adapter: Weights, early: Weights | None = None) -> np.ndarray:
        """(tokens, vocabulary); `adapter` has ΔW of its modules. All tokens but the last may have been computed with another
        adapter, `early`, and kept in a cache."""
        c, q = self.config, self.round
        heads, groups = c["num_attention_heads"], c["num_key_value_heads"]
        size, n = c["hidden_size"] // heads, len(tokens)
        angles = np.outer(np.arange(n), c["rope_parameters"]["rope_theta"] ** (-np.arange(0, size, 2) / size))
        cos, sin = (np.tile(f(angles), 2)[:, None] for f in (np.cos, np.sin))

        def linear(x: np.ndarray, name: str) -> np.ndarray:
            y = q(x @ q(self.weights[f"{name}.weight"]).T)
            for rows, applied in ((slice(0, -1), adapter if early is None else early), (slice(-1, None), adapter)):
                if name in applied:
                    y[rows] = q(y[rows] + q(x[rows] @ q(applied[name]).T))
            return y

        def norm(x: np.ndarray, name: str) -> np.ndarray:
            return q(x / np.sqrt((x**2).mean(-1, keepdims=True) + c["rms_norm_eps"]) * self.weights[f"{name}.weight"])

        def heads_of(x: np.ndarray, name: str, count: int, turn: bool) -> np.ndarray:
            y = linear(x, name).reshape(n, count, size)
            half = np.concatenate([-y[..., size // 2 :], y[..., : size // 2]], -1)
            return np.repeat(q(y * cos + half * sin) if turn else y, heads // count, axis=1)

        x = q(self.weights["model.embed_tokens.weight"])[tokens]
        for i in range(c["num_hidden_layers"]):
            place = f"model.layers.{i}"
            h = norm(x, f"{place}.input_layernorm")
            Q, K, V = (heads_of(h, f"{place}.self_attn.{name}_proj", count, name != "v")
                       for name, count in (("q", heads), ("k", groups), ("v", groups)))
            scores = np.einsum("ihd,jhd->hij", Q, K) / size**0.5 + np.triu(np.full((n, n), -np.inf), 1)
            share = np.exp(scores - scores.max(-1, keepdims=True))
            mixed = q(np.einsum("hij,jhd->ihd", q(share / share.sum(-1, keepdims=True)), V)).reshape(n, -1)
            x = q(x + linear(mixed, f"{place}.self_attn.o_proj"))
            h = norm(x, f"{place}.post_attention_layernorm")
            gate, up = (linear(h, f"{place}.mlp.{name}_proj") for name in ("gate", "up"))
            x = q(x + linear(q(q(gate / (1 + np.exp(-gate))) * up), f"{place}.mlp.down_proj"))
        logits = linear(norm(x, "model.norm"), "lm_head").astype(np.float64)
        less = logits - logits.max(-1, keepdims=True)
        return less - np.log(np.exp(less).sum(-1, keepdims=True))


class Fake:
    """A server with a base model named `base`, and adapters by name. `way` is how it gives log-probabilities; `scales` makes it
    a llama.cpp. The functions may be replaced by faulty ones."""

    def __init__(self, model: Llama, adapters: dict[str, Weights], way: str = "next", scales: bool = False):
        self.model, self.way, self.adapters = model, way, dict(adapters)
        self.scales = dict.fromkeys(range(len(adapters)), 1.0) if scales else None
        self.read: Callable[[str], Weights] = deltas
        self.load: Callable[[str, str], None] = lambda name, folder: self.adapters.update({name: self.read(folder)})
        self.unload: Callable[[str], Any] = self.adapters.pop
        self.chosen: Callable[[dict], Weights] = self.choose
        self.early: Callable[[list[int], Weights], Weights] = lambda tokens, adapter: adapter
        self.answer: Callable[[str, dict | None], Any] = self.respond

    def choose(self, asked: dict) -> Weights:
        """ΔW for a request."""
        if self.scales is None:
            return {} if asked["model"] == "base" else self.adapters[asked["model"]]
        said = asked.get("lora")
        scales = self.scales if said is None else {one["id"]: one["scale"] for one in said}
        found: Weights = {}
        for number, adapter in enumerate(self.adapters.values()):
            for name, delta in adapter.items():
                found[name] = found.get(name, 0) + scales.get(number, 0.0) * delta
        return found

    def respond(self, path: str, asked: Any) -> Any:
        """What is said to a request. Raises KeyError for what there is not."""
        if path == "/lora-adapters" and self.scales is not None:
            self.scales.update({one["id"]: one["scale"] for one in asked or ()})
            return [{"id": i, "path": f"{name}.gguf", "scale": self.scales[i]} for i, name in enumerate(self.adapters)]
        if path == "/v1/models":
            return {"data": [{"id": "base"}, *({"id": name, "parent": "base"} for name in self.adapters)]}
        if path == "/v1/load_lora_adapter":
            return self.load(asked["lora_name"], asked["lora_path"])
        if path == "/v1/unload_lora_adapter":
            return self.unload(asked["lora_name"])
        tokens = {"/v1/completions": asked}[path]["prompt"]
        adapter = self.chosen(asked)
        found = self.model.log_probabilities(tokens, adapter, self.early(tokens, adapter))
        before = [None, *(float(row[token]) for row, token in zip(found, tokens[1:], strict=False))]
        choice: dict[str, Any] = {"text": "", "logprobs": None}
        if self.way == "prompt_logprobs" in asked:
            choice["prompt_logprobs"] = [None, *({str(t): {"logprob": v}} for t, v in zip(tokens[1:], before[1:], strict=True))]
        if self.way == "echo" in asked:
            choice["logprobs"] = {"token_logprobs": [*before, float(found[-1].max())]}
        if self.way == "next":
            top = np.argsort(-found[-1])[: asked.get("logprobs", 0)]
            of_vllm = {"top_logprobs": [{f"token_id:{t}": float(found[-1, t]) for t in top}]}
            of_llama_cpp = {"content": [{"top_logprobs": [{"id": int(t), "logprob": float(found[-1, t])} for t in top]}]}
            choice["logprobs"] = of_vllm if self.scales is None else of_llama_cpp
        return {"choices": [choice]}

    def __enter__(self) -> str:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def do_GET(self) -> None:
                self.answer(None)

            def answer(self, asked: Any) -> None:
                try:
                    status, said = 200, fake.answer(self.path, asked)
                except KeyError as error:
                    status, said = 404, {"error": f"no {error}"}
                with suppress(OSError):  # nobody waits for it any more
                    self.send_response(status)
                    self.end_headers()
                    self.wfile.write(said if isinstance(said, bytes) else json.dumps(said).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_: Any) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
