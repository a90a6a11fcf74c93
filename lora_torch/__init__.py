"""LoRA layers in PyTorch, and a small transformer with LoRA, adapters, prefixes or prompts in it, on CPU and CUDA.

Written apart from lora_ref, so that each can be held against the other.
"""

from lora_torch.adapter import Adapter
from lora_torch.linear import LinearLoRA
from lora_torch.lora import LoRA
from lora_torch.prefix import Prefix
from lora_torch.ptuning import Prompt
from lora_torch.transformer import Config, Transformer, loss

__all__ = ["Adapter", "Config", "LinearLoRA", "LoRA", "Prefix", "Prompt", "Transformer", "loss"]
