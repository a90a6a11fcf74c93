"""LoRA in PyTorch on CPU and CUDA: a layer, LoRA in any model and in PEFT's files, and a small transformer.

It imports nothing of lora_ref: the two are written independently, so that tests can compare them.
"""

from lora_torch import adapter, lora, prefix, ptuning
from lora_torch.attach import Report, activate, attach, detach, merge, report, unmerge
from lora_torch.checkpoint import load_adapter, save_adapter
from lora_torch.linear import LinearLoRA
from lora_torch.transformer import Transformer, loss

__all__ = [
    "LinearLoRA", "Report", "Transformer", "activate", "adapter", "attach", "detach", "load_adapter", "lora", "loss", "merge",
    "prefix", "ptuning", "report", "save_adapter", "unmerge",
]
