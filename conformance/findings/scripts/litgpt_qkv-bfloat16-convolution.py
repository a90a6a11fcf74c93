"""litgpt 0.5.13: in bfloat16, LoRAQKVLinear gives wrong numbers on a CPU with one thread.

requirements: DROP-04 DTYPE-08
kind: fault
why: LoRAQKVLinear.conv1d (lora.py) has torch's conv1d multiply by B. In bfloat16, with one thread, a kernel of 1 and more
    than 64 outputs, torch 2.13.0 with oneDNN gives wrong sums on this CPU (Xeon, AVX-512). With two threads, without oneDNN,
    in float16, or as a product of matrices they are right.
upstream: this one: none found; pytorch/pytorch#163347 and #169688 are other wrong convolutions in bfloat16
"""
import torch
from litgpt.lora import LoRAQKVLinear

torch.set_num_threads(1)
torch.manual_seed(0)
layer = LoRAQKVLinear(2, 4 * 65, head_size=65, n_head=2, n_query_groups=1, r=2, lora_alpha=2, enable_lora=(True, False, True))
for parameter in layer.requires_grad_(False).parameters():
    parameter.copy_(torch.randint(-3, 4, parameter.shape))
x = torch.randint(-3, 4, (1, 5, 2)).float()
want, got = layer(x), layer.bfloat16()(x.bfloat16()).float()
print("largest y:", int(want.abs().max()), "and 256 is the largest whole number up to which bfloat16 has all")
print("the value is wrong in some places:", bool((got != want)[..., -65:].any()))
# prints:
# largest y: 31 and 256 is the largest whole number up to which bfloat16 has all
# the value is wrong in some places: True
