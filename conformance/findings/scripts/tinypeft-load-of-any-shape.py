"""TinyPEFT 1.0.0: load_lora_state_dict takes factors of any shape.

requirements: STATE-03 STATE-08 STATE-15
kind: fault
why: load_lora_state_dict (lora/lora.py) puts the file's tensors in the place of module.A.data and module.B.data without a
    look at their shapes. A file of another rank is run with this layer's alpha / r; one of another model fails later, in
    the forward pass.
upstream: none found
"""
from tinypeft import get_lora_state_dict, inject_lora, load_lora_state_dict
from torch import nn

saved = get_lora_state_dict(inject_lora(nn.Sequential(nn.Linear(3, 2)), r=1, alpha=4)[0])
model, _ = inject_lora(nn.Sequential(nn.Linear(5, 2)), r=2, alpha=4)
try:
    load_lora_state_dict(model, saved)
    print("got  a layer of in 5, rank 2 with A", tuple(model[0].A.shape), "and scale", model[0].scaling)
except Exception as error:
    print("got ", type(error).__name__)
print("want an error")
# prints:
# got  a layer of in 5, rank 2 with A (1, 3) and scale 2.0
# want an error
