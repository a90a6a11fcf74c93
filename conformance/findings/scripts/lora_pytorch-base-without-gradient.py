"""lora-pytorch 0.2.0: the base layer passes no gradient to its input; what lies below learns from the LoRA path alone.

requirements: GRAD-01 GRAD-04 GRAD-05 GRAD-07 GRAD-11 GRAD-12 GRAD-14 GRAD-17 GRAD-18 GRAD-19 GRAD-20 GRAD-21 DTYPE-05
    DTYPE-08 DTYPE-09 DTYPE-10
kind: fault
why: LoRA.forward (lora.py) computes the base module under torch.set_grad_enabled(False), to keep gradients off the frozen
    weight; that cuts dx = dy W as well. In a model of several layers every LoRA below another gets a wrong gradient, and
    at the start, where B = 0, none but zeros.
upstream: none found
"""
import torch
from lora_pytorch import LoRA
from torch import nn

base = nn.Linear(2, 2, bias=False)
nn.init.eye_(base.weight)
layer = LoRA.from_module(base, rank=1)
x = torch.ones(1, 2, requires_grad=True)
layer(x).sum().backward()
print("dx got ", x.grad.tolist())
print("dx want", base.weight.sum(0, keepdim=True).tolist())

two = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
two = LoRA.from_module(two, rank=1)
for lora in (two.module[0].lora_module, two.module[1].lora_module):
    nn.init.ones_(lora.in_proj)
nn.init.ones_(two.module[0].lora_module.out_proj)
two(torch.ones(1, 4)).sum().backward()
print("gradient of the lower LoRA, the upper one being fresh: got ", two.module[0].lora_module.out_proj.grad.abs().max().item())
print("gradient of the lower LoRA, the upper one being fresh: want other than 0")
# prints:
# dx got  [[0.0, 0.0]]
# dx want [[1.0, 1.0]]
# gradient of the lower LoRA, the upper one being fresh: got  0.0
# gradient of the lower LoRA, the upper one being fresh: want other than 0
