"""litgpt 0.5.13: a merge between the forward and the backward pass gives a wrong gradient of x, and no error.

requirements: TORCH-32
kind: convention
why: merge() (lora.py) adds to linear.weight.data. autograd counts what is written in place into a tensor that it has saved,
    and raises an error, but not what is written through .data. The backward pass then takes the merged W and adds the LoRA
    path again.
upstream: none found
"""
import torch
from litgpt.lora import LoRALinear

torch.manual_seed(0)


def gradient(merge):
    x = torch.ones(1, 4, requires_grad=True)
    y = layer(x)
    if merge:
        layer.merge()
    y.sum().backward()
    return x.grad


layer = LoRALinear(4, 4, r=2, lora_alpha=4)
torch.nn.init.normal_(layer.lora_B)
right = gradient(merge=False)
print("dx is right after a merge between the passes:", torch.allclose(gradient(merge=True), right))
# prints:
# dx is right after a merge between the passes: False
