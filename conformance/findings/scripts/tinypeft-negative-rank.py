"""TinyPEFT 1.0.0: a negative rank is accepted and gives a layer without LoRA.

requirements: INPUT-02
kind: fault
why: LoRALayer.__init__ (lora/lora.py) treats every r ≤ 0 as "off", where 0 is the usual sign for that; a mistyped rank
    trains nothing, with no word about it.
upstream: none found
"""
from tinypeft import inject_lora
from torch import nn

try:
    _, layers = inject_lora(nn.Sequential(nn.Linear(3, 2)), r=-1, alpha=4)
    print("got ", layers[0].A, layers[0].B)
except Exception as error:
    print("got ", type(error).__name__)
print("want an error")
# prints:
# got  None None
# want an error
