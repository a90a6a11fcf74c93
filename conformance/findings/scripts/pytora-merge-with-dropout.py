"""pytora 0.0.4: remove_lora(merge=True) in training mode merges a weight with a dropout mask in it.

requirements: DROP-10
since: MERGE-14
kind: fault
why: remove_lora (utils.py) has torch's remove_parametrizations keep the weight as LoraLayer.forward (lora_layer.py) gives
    it, and in training mode that has dropped entries of the delta and scaled the others. The demo merges right after
    apply_lora, in the mode that the model happens to be in.
upstream: none found
"""
import torch
from pytora import apply_lora, remove_lora
from torch import nn

torch.manual_seed(0)
linear = nn.Linear(8, 8, bias=False)
nn.init.zeros_(linear.weight)
model = nn.Sequential(linear)
apply_lora(model, lora_r=1, lora_dropout=0.5)
for name in ("lora_A", "lora_B"):
    nn.init.ones_(getattr(model[0].parametrizations.weight[0], name))
remove_lora(model, merge=True)
print("merged weights got ", sorted(set(model[0].weight.flatten().tolist())))
print("merged weights want", [1.0])
# prints:
# merged weights got  [0.0, 2.0]
# merged weights want [1.0]
