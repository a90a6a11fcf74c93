"""mlora 0.5.2: a file of rank 1 is accepted by an adapter of any rank, and does something else there.

requirements: STATE-03
kind: fault
why: Loading anew into an adapter that is there (init_lora_weight of its name, as load_adapter does) calls
Lora.reset_parameters (modules/lora_linear.py), whose copy_ broadcasts:
each of the r rows of A and columns of B becomes that of the file, and the delta r times as large, at the scale of before.
upstream: none found
"""
import torch
from mlora.modules import LLMBatchConfig, LLMModelInput, LoraConfig
from mlora.modules.lora_linear import Linear

layer = Linear(torch.nn.Linear(1, 1, bias=False), "cpu")
torch.nn.init.zeros_(layer.base_layer_.weight)
layer.init_lora_weight(LoraConfig("mine", lora_r_=2, lora_alpha_=2, lora_dropout_=2.0**-100))
A, B = torch.ones(1, 1), torch.ones(1, 1)
try:
    layer.init_lora_weight(LoraConfig("mine", lora_r_=1, lora_alpha_=1, lora_dropout_=2.0**-100), (A, B))
    y = layer(torch.ones(1, 1, 1), LLMModelInput([LLMBatchConfig("mine", 0, 1)]))
    print("got ", y.item(), "of an adapter that gives 1.0, in one of rank", layer.loras_["mine"].r_)
except RuntimeError:
    print("got  an error")
print("want an error, or 1.0")
# prints:
# got  2.0 of an adapter that gives 1.0, in one of rank 2
# want an error, or 1.0
