"""mlora 0.5.2: a dropout of 1 is accepted; it drops everything, and the backward pass divides by zero.

requirements: INPUT-06
kind: convention
why: LoraConfig.check (modules/config.py) asks for a dropout of at least 0 and torch's Dropout for one of at most 1;
LoraFunction.backward (modules/lora_linear.py) divides by 1 - p.
upstream: none found
"""
import torch
from mlora.modules import LLMBatchConfig, LLMModelInput, lora_config_factory
from mlora.modules.lora_linear import Linear

layer = Linear(torch.nn.Linear(1, 1), "cpu")
options = {"name": "mine", "r": 1, "lora_alpha": 1, "lora_dropout": 1.0, "target_modules": ["q_proj"]}
try:
    layer.init_lora_weight(lora_config_factory(options))
    print("got  a layer")
except AssertionError:
    print("got  an error")
print("want an error")
try:
    layer(torch.ones(1, 1, 1), LLMModelInput([LLMBatchConfig("mine", 0, 1)])).sum().backward()
except ZeroDivisionError as error:
    print("its backward pass:", error)
# prints:
# got  a layer
# want an error
# its backward pass: float division by zero
