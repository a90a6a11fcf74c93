"""torchtune 0.6.1: a dropout below zero or of 1 is accepted; below zero it is taken for none.

requirements: INPUT-06
kind: convention
why: LoRALinear (modules/peft/lora.py) makes an nn.Dropout only if dropout > 0.0, and nn.Identity otherwise, so that torch's own
check never sees a negative rate; torch accepts 1, which drops everything.
upstream: none found
"""
from torchtune.modules.peft import LoRALinear

for rate in (-0.1, 1.0):
    try:
        print("got ", LoRALinear(1, 1, rank=1, alpha=1, dropout=rate).dropout, "for a dropout of", rate)
    except ValueError:
        print("got  an error for a dropout of", rate)
    print("want an error")
# prints:
# got  Identity() for a dropout of -0.1
# want an error
# got  Dropout(p=1.0, inplace=False) for a dropout of 1.0
# want an error
