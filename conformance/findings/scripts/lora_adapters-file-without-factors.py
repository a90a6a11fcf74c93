"""lora-adapters 0.1.4: lora_state_dict holds the base weight and neither lora_A nor lora_B: what was trained is not saved.

requirements: STATE-01 STATE-02 STATE-03 STATE-04 STATE-05 STATE-06 STATE-07 STATE-08 STATE-09 STATE-10 STATE-12
    STATE-13 STATE-15 STATE-16 STATE-17
kind: fault
why: lora_state_dict (utils.py) collects module.weight of every LoRA layer. In training mode, in which its README calls
    it, that is the frozen W: the file is of full size and the fine-tuning is lost. In inference mode it is the merged W,
    which no load tells from a base weight; and a file fits a layer of any rank.
upstream: none found
"""
import torch
from lora_adapters import LoraLinear, apply_adapter, lora_state_dict, mark_only_lora_as_trainable
from torch import nn

torch.manual_seed(0)
model = apply_adapter(nn.Sequential(nn.Linear(4, 3)), LoraLinear, rank=2)
model = mark_only_lora_as_trainable(model)
before = model[0].weight.clone()
nn.init.ones_(model[0].lora_B)  # stands for training
updates = lora_state_dict(model)
print("saved got ", list(updates), "equal to W before training:", torch.equal(updates["0.weight"], before))
print("saved want", ["0.lora_A", "0.lora_B"])
# prints:
# saved got  ['0.weight'] equal to W before training: True
# saved want ['0.lora_A', '0.lora_B']
