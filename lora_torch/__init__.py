"""LoRA layers in PyTorch, on CPU and CUDA. Written apart from lora_ref, so that each can be held against the other."""

from lora_torch.lora import LinearLoRA

__all__ = ["LinearLoRA"]
