"""peft 0.21.2: an alpha that is not finite is accepted, and the outputs are not finite.

requirements: INPUT-05
kind: convention
why: LoraConfig and LoraLayer.update_layer (tuners/lora) divides alpha by the rank without a look at it. The fault shows
    only where the outputs are used, far from the configuration that has it.
upstream: none found
"""
import peft
import torch
from torch import nn


def made(alpha):
    return peft.get_peft_model(nn.Sequential(nn.Linear(3, 2)), peft.LoraConfig(
        r=1, lora_alpha=alpha, lora_dropout=0.0, target_modules=["0"]))


try:
    print("got ", "a layer with outputs", made(float("nan"))(torch.ones(1, 3)).flatten()[-2:].tolist())
except ValueError as error:
    print("got ", error)
print("want an error when the layer is built")
# prints:
# got  a layer with outputs [nan, nan]
# want an error when the layer is built
