"""peft 0.21.2: a load that is refused has already changed a factor.

requirements: STATE-08 INPUT-08
kind: convention
why: set_peft_model_state_dict (utils/save_and_load.py), which load_adapter and users call, uses torch's load_state_dict,
    which copies every tensor that fits and raises for the others afterwards. Who catches the error goes on with one
    factor of the file and one of the layer.
upstream: none found
"""
import peft
import torch
from torch import nn


def made(n):
    layer = peft.get_peft_model(nn.Sequential(nn.Linear(n, 2)), peft.LoraConfig(
        r=1, lora_alpha=1.0, lora_dropout=0.0, target_modules=["0"]))
    nn.init.ones_(layer.base_model.model[0].lora_B.default.weight)
    return layer


layer = made(3)
with torch.no_grad():
    layer.base_model.model[0].lora_B.default.weight.zero_()
try:
    peft.set_peft_model_state_dict(layer, peft.get_peft_model_state_dict(made(4)))
except RuntimeError as error:
    print("refused:", str(error).splitlines()[0])
print("B got ", layer.base_model.model[0].lora_B.default.weight.flatten()[-2:].tolist())
print("B want", [0.0, 0.0])
# prints:
# refused: Error(s) in loading state_dict for PeftModel:
# B got  [1.0, 1.0]
# B want [0.0, 0.0]
