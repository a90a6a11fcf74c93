"""llama.cpp: its converter makes a GGUF file of the adapter, and its server gives the log-probabilities for llama.TOKENS.

Converter and server are of one build: the sources and the wheel of xllamacpp. All numbers are float32, the cache of keys and
values included.
"""

import json
import logging
import runpy
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from conformance.drivers import environments
from conformance.files import llama
from conformance.files.binary import Arrays

NEEDS, ENVIRONMENT = ("xllamacpp", "transformers"), "llama.cpp"
CORPUS, LOGITS = False, True
FORMATS = ("peft",)


def read(place: str, base: Arrays) -> np.ndarray:
    folder = _base()
    adapter = ""
    if place:
        adapter = str(folder / "adapter.gguf")
        _convert("convert_lora_to_gguf.py", place, "--base", str(folder), "--outtype", "f32", "--outfile", adapter)
    return logits(folder, adapter)


@cache
def sources() -> str:
    """The sources of llama.cpp. Raises FileNotFoundError."""
    found = list(environments.sources(ENVIRONMENT).glob("*/thirdparty/llama.cpp"))
    if not found:
        raise FileNotFoundError(f"no sources of llama.cpp in {environments.sources(ENVIRONMENT)}")
    sys.path[:0] = [str(found[0]), str(found[0] / "gguf-py")]
    return str(found[0])


@cache
def _base() -> Path:
    """A folder with the base model as Hugging Face has it, and as base.gguf."""
    sources()
    from conversion.llama import LlamaModel

    def set_vocab(self) -> None:  # a made-up one, for there is no tokenizer
        count = llama.VOCABULARY
        self.gguf_writer.add_tokenizer_model("llama")
        self.gguf_writer.add_tokenizer_pre("default")
        self.gguf_writer.add_token_list(["<unk>", "<s>", "</s>", *(f"word{i}" for i in range(count - 3))])
        self.gguf_writer.add_token_scores([0.0] * count)
        self.gguf_writer.add_token_types([2, 3, 3] + [1] * (count - 3))

    folder, usual = Path(tempfile.mkdtemp(prefix="conformance-")), LlamaModel.set_vocab
    llama.checkpoint(folder, llama.weights())
    LlamaModel.set_vocab = set_vocab
    _convert("convert_hf_to_gguf.py", str(folder), "--outtype", "f32", "--outfile", str(folder / "base.gguf"))
    LlamaModel.set_vocab = usual
    return folder


def _convert(script: str, *arguments: str) -> None:
    """Runs a converter. Raises ValueError with what it logged if it exits with an error."""
    logged: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: logged.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(f"{sources()}/{script}", run_name="__main__")
    except SystemExit as error:
        if error.code:
            raise ValueError("; ".join([f"{script} exited with status {error.code}", *logged])) from error
    finally:
        logging.getLogger().removeHandler(handler)


def logits(folder: Path, adapter: str) -> np.ndarray:
    """Log-probabilities of the next token, after each of the tokens."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(folder / "base.gguf")
    params.n_ctx, params.n_batch, params.warmup, params.n_parallel = 64, 64, False, 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = 1
    if adapter:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
    server = xllamacpp.Server(params)
    rows = []
    for count in range(1, len(llama.TOKENS) + 1):
        answer = server.handle_completions({
            "prompt": list(llama.TOKENS[:count]), "n_predict": 1, "n_probs": llama.VOCABULARY, "temperature": 0.0,
            "cache_prompt": False})
        answer = json.loads(answer) if isinstance(answer, str) else answer
        by_token = {one["id"]: one["logprob"] for one in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}
        rows.append([by_token[token] for token in range(llama.VOCABULARY)])
    return np.array(rows)
