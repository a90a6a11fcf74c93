"""mlora 0.5.2: one factor cannot be frozen alone, and with both frozen the default operator leaves LoRA out of y.

requirements: GRAD-21 TORCH-27
kind: fault
why: LoraFunction.forward (modules/lora_linear.py) asserts that both factors need a gradient or neither does. If neither does,
    it skips the adapter, so y and dx are those of the base layer alone, without an error. The other operator, which
    MLORA_EVALUATE_MODE asks for, has none of this.
upstream: none found
"""
import torch
from mlora.modules import LLMBatchConfig, LLMModelInput, LoraConfig
from mlora.modules.lora_linear import Linear

layer = Linear(torch.nn.Linear(1, 1, bias=False), "cpu")
layer.init_lora_weight(LoraConfig("mine", lora_r_=1, lora_alpha_=1, lora_dropout_=2**-100))
torch.nn.init.ones_(layer.base_layer_.weight)
lora = layer.loras_["mine"]
for factor in (lora.lora_a_, lora.lora_b_):
    torch.nn.init.ones_(factor.weight)
for words, frozen in (("A frozen", lora.lora_a_), ("A and B frozen", lora.lora_b_)):
    frozen.requires_grad_(False)
    for efficient in (True, False):
        try:
            y = layer(torch.ones(1, 1, 1), LLMModelInput([LLMBatchConfig("mine", 0, 1)], efficient_operator_=efficient)).item()
        except AssertionError as error:
            y = type(error).__name__
        print(f"{words}: y {'got ' if efficient else 'want'}", y)
# prints:
# A frozen: y got  AssertionError
# A frozen: y want 2.0
# A and B frozen: y got  1.0
# A and B frozen: y want 2.0
