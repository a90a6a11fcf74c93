"""llama.cpp, build 11549: its converter leaves out use_rslora and alpha_pattern, so that an adapter gets another strength.

why: convert_lora_to_gguf.py reads lora_alpha alone, and a GGUF file of an adapter has one alpha. The runtime divides it by the
    rank of each tensor.
upstream: none found; the design of one alpha per file is of 2024 (ggml-org/llama.cpp#8332)
run: python llama_cpp-one-alpha.py FOLDER_OF_LLAMA_CPP, where the needs of its converter are installed: torch, transformers
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

SOURCES = Path(sys.argv[1])
sys.path.insert(0, str(SOURCES / "gguf-py"))
from gguf import GGUFReader  # noqa: E402

BASE = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 256,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5}
SCALES = {"use_rslora": 12 / 4**0.5, "alpha_pattern": 2 / 4}  # of q_proj, by PEFT's documentation
folder = Path(tempfile.mkdtemp())
(folder / "config.json").write_text(json.dumps(BASE))
for name, more in (("use_rslora", {"use_rslora": True}), ("alpha_pattern", {"alpha_pattern": {"q_proj": 2}})):
    adapter = folder / name
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps(
        {"peft_type": "LORA", "r": 4, "lora_alpha": 12, "target_modules": ["q_proj"]} | more))
    key = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file({f"{key}.lora_A.weight": torch.randn(4, 64), f"{key}.lora_B.weight": torch.randn(64, 4)},
              adapter / "adapter_model.safetensors")
    subprocess.run([sys.executable, str(SOURCES / "convert_lora_to_gguf.py"), str(adapter), "--base", str(folder), "--outtype",
                    "f32", "--outfile", str(folder / "out.gguf")], check=True, capture_output=True)
    alpha = float(GGUFReader(folder / "out.gguf").fields["adapter.lora.alpha"].parts[-1][0])
    print(f"{name}: the file says alpha {alpha:g}, a scale of {alpha / 4:g}; the settings mean {SCALES[name]:g}")
# prints:
# use_rslora: the file says alpha 12, a scale of 3; the settings mean 6
# alpha_pattern: the file says alpha 12, a scale of 3; the settings mean 0.5
