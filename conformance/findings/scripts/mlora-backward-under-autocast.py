"""mlora 0.5.2: a forward pass of the default operator under autocast cannot be followed by a backward pass.

requirements: TORCH-14
kind: fault
why: LoraFunction (modules/lora_linear.py) has no torch.amp.custom_fwd and custom_bwd. Under autocast its forward pass keeps a
    product in bfloat16, and its backward pass multiplies that by a float32 gradient. The other operator, which
    MLORA_EVALUATE_MODE asks for, is made of torch's own functions and works.
upstream: none found
"""
import torch
from mlora.modules import LLMBatchConfig, LLMModelInput, LoraConfig
from mlora.modules.lora_linear import Linear

layer = Linear(torch.nn.Linear(1, 1, bias=False), "cpu")
layer.init_lora_weight(LoraConfig("mine", lora_r_=1, lora_alpha_=1, lora_dropout_=2**-100))
lora = layer.loras_["mine"]
for factor in (lora.lora_a_, lora.lora_b_):
    torch.nn.init.ones_(factor.weight)
for efficient in (True, False):
    lora.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.ones(1, 1, 1), LLMModelInput([LLMBatchConfig("mine", 0, 1)], efficient_operator_=efficient))
    try:
        y.sum().backward()
        found = lora.lora_a_.weight.grad.item()
    except RuntimeError as error:
        found = error
    print("dA", "got " if efficient else "want", found)
# prints:
# dA got  expected scalar type Float but found BFloat16
# dA want 1.0
