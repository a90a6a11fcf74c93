"""litgpt 0.5.13: an alpha that is not finite is accepted, and the outputs are not finite.

requirements: INPUT-05
kind: convention
why: LoRALayer (lora.py), on which LoRAQKVLinear is built, divides alpha by the rank without a look at it. The fault shows
    only where the outputs are used, far from the configuration that has it.
upstream: none found
"""
import torch
from litgpt.lora import LoRAQKVLinear


def made(alpha):
    return LoRAQKVLinear(
        3, 8, head_size=2, n_head=2, n_query_groups=1, r=1, lora_alpha=alpha, lora_dropout=0.0, enable_lora=(True, False, True))


try:
    print("got ", "a layer with outputs", made(float("nan"))(torch.ones(1, 1, 3)).flatten()[-2:].tolist())
except ValueError as error:
    print("got ", error)
print("want an error when the layer is built")
# prints:
# got  a layer with outputs [nan, nan]
# want an error when the layer is built
