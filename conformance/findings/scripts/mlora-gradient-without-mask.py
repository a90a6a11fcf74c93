"""mlora 0.5.2: with dropout the gradients of A and of x are those of a pass in which nothing was dropped, times 1 / (1 - p).

requirements: DROP-04 DROP-13 DROP-17 TORCH-09
kind: fault
why: LoraFunction.backward (modules/lora_linear.py), of the default operator, does not keep the mask: it multiplies by the input
that was not dropped, and by scaling / (1 - dropout). It is not the gradient of what was computed, and not the mean of that over
all masks either, which is 1 - p times as large. The other operator, which MLORA_EVALUATE_MODE asks for, has none of this.
upstream: none found
"""
import torch
from mlora.modules import LLMBatchConfig, LLMModelInput, LoraConfig
from mlora.modules.lora_linear import Linear

layer = Linear(torch.nn.Linear(1, 1, bias=False), "cpu")
layer.init_lora_weight(LoraConfig("mine", lora_r_=1, lora_alpha_=1, lora_dropout_=0.5))
torch.nn.init.zeros_(layer.base_layer_.weight)
lora = layer.loras_["mine"]
for factor in (lora.lora_a_, lora.lora_b_):
    torch.nn.init.ones_(factor.weight)
for efficient in (True, False):
    torch.manual_seed(0)
    lora.zero_grad()
    x = torch.ones(1, 8, 1, requires_grad=True)
    y = layer(x, LLMModelInput([LLMBatchConfig("mine", 0, 1)], efficient_operator_=efficient))
    y.sum().backward()
    print("got " if efficient else "want", "dA", lora.lora_a_.weight.grad.item(), "dx", x.grad.flatten().tolist())
    print("     of y", y.flatten().tolist())
# prints:
# got  dA 16.0 dx [2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0]
#      of y [0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 2.0, 2.0]
# want dA 6.0 dx [0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 2.0, 2.0]
#      of y [0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 2.0, 2.0]
