"""LoRA layers in PyTorch, and a small transformer with LoRA, adapters, prefixes or prompts in it, on CPU and CUDA.

It imports nothing of lora_ref: the two are written independently, so that tests can compare them.
"""

from lora_torch import adapter, lora, prefix, ptuning
from lora_torch.linear import LinearLoRA
from lora_torch.transformer import Transformer, loss

__all__ = ["LinearLoRA", "Transformer", "adapter", "lora", "loss", "prefix", "ptuning"]
