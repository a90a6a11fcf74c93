"""TinyPEFT 1.0.0: a fresh layer is not the base layer: A and B are both random.

requirements: INIT-01 INIT-03 INIT-09 DROP-08
kind: fault
why: LoRALayer.__init__ (lora/lora.py) draws A and B alike from N(0, 0.01²), where one of them has to be zero. Injecting
    LoRA alters the pretrained model before the first step, by scale · (A B)ᵀ; the loss starts from another model in every
    run.
upstream: none found
"""
import torch
from tinypeft import inject_lora
from torch import nn

torch.manual_seed(0)
linear = nn.Linear(16, 1, bias=False)
x = torch.ones(1, 16)
want = linear(x).item()
model, _ = inject_lora(nn.Sequential(linear), r=8, alpha=16)
print(f"y got  {model(x).item():.5f}")
print(f"y want {want:.5f}")
print("zero factors:", [name for name in "AB" if not getattr(model[0], name).any()], "want one of A and B")
# prints:
# y got  -0.67252
# y want -0.67242
# zero factors: [] want one of A and B
