"""torchtune 0.6.1: loading an adapter file that does not fit raises, but has then overwritten the factor that did fit.

requirements: STATE-08
kind: convention
why: Its recipes load with torch's load_state_dict(strict=False), which copies every tensor whose shape agrees before it raises
for the others. The layer that refused the file is left with one factor of the file and one of its own.
upstream: none found
"""
from torch import nn
from torchtune.modules.peft import LoRALinear, get_adapter_state_dict

saved, other = (nn.Sequential(LoRALinear(n, 1, rank=1, alpha=1)) for n in (3, 4))
nn.init.ones_(saved[0].lora_b.weight)
try:
    other.load_state_dict(get_adapter_state_dict(saved.state_dict()), strict=False)
except RuntimeError:
    print("refused")
print("got  B =", other[0].lora_b.weight.item())
print("want B = 0.0")
# prints:
# refused
# got  B = 1.0
# want B = 0.0
