"""peft 0.21.2: a merge between the forward and the backward pass gives a wrong gradient of x, and no error.

requirements: TORCH-32
kind: convention
why: merge() adds to weight.data. autograd counts what is written in place into a tensor that it has saved, and raises an error,
    but not what is written through .data. The backward pass then takes the merged W and adds the LoRA path again.
upstream: none found
"""
import torch
from peft import LoraConfig, get_peft_model

torch.manual_seed(0)
model = torch.nn.Sequential()
model.q_proj = torch.nn.Linear(4, 4)
model = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False))
layer = model.base_model.model.q_proj


def gradient(merge):
    x = torch.ones(1, 4, requires_grad=True)
    y = layer(x)
    if merge:
        layer.merge()
    y.sum().backward()
    return x.grad


right = gradient(merge=False)
print("dx is right after a merge between the passes:", torch.allclose(gradient(merge=True), right))
# prints:
# dx is right after a merge between the passes: False
