"""mlora 0.5.2: loading an adapter that does not fit raises, but has then overwritten A.

requirements: STATE-08
kind: convention
why: Lora.reset_parameters (modules/lora_linear.py) copies A, and then B; if only B has another shape, the adapter that refused
the file is left with the file's A and its own B.
upstream: none found
"""
import torch
from mlora.modules import LoraConfig
from mlora.modules.lora_linear import Linear

layer = Linear(torch.nn.Linear(1, 3), "cpu")
config = LoraConfig("mine", lora_r_=1, lora_alpha_=1, lora_dropout_=0.5)
layer.init_lora_weight(config, (torch.zeros(1, 1), torch.zeros(3, 1)))
try:
    layer.init_lora_weight(config, (torch.ones(1, 1), torch.ones(2, 1)))
except RuntimeError:
    print("refused")
print("got  A =", layer.loras_["mine"].lora_a_.weight.item())
print("want A = 0.0")
# prints:
# refused
# got  A = 1.0
# want A = 0.0
