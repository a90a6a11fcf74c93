"""litgpt 0.5.13: a load that is refused has already changed a factor.

requirements: STATE-08
kind: convention
why: What lora_filter lets through is read by torch's load_state_dict, which copies every tensor that fits and raises for
    the others afterwards. Who catches the error goes on with one factor of the file and one of the layer.
upstream: none found
"""
import torch
from litgpt.lora import LoRAQKVLinear, lora_filter
from torch import nn


def made(n):
    layer = LoRAQKVLinear(
        n, 8, head_size=2, n_head=2, n_query_groups=1, r=1, lora_alpha=1.0, lora_dropout=0.0, enable_lora=(True, False, True))
    nn.init.ones_(layer.lora_B)
    return layer


def lora_part(layer):
    return {key: value for key, value in layer.state_dict().items() if lora_filter(key, value)}


layer = made(3)
with torch.no_grad():
    layer.lora_B.zero_()
try:
    layer.load_state_dict(lora_part(made(4)), strict=False)
except RuntimeError as error:
    print("refused:", str(error).splitlines()[0])
print("B got ", layer.lora_B.flatten()[-2:].tolist())
print("B want", [0.0, 0.0])
# prints:
# refused: Error(s) in loading state_dict for LoRAQKVLinear:
# B got  [1.0, 1.0]
# B want [0.0, 0.0]
