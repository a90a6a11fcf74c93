"""peft 0.21.2: a list of adapters may name one that does not exist; it is passed over.

requirements: MULTI-10
kind: convention
why: BaseTunerLayer.set_adapter (tuners/tuners_utils.py) takes any names, and LoraLayer.set_scale (tuners/lora/layer.py)
    ignores those it does not have; PeftModel.set_adapter checks, but takes one name alone. A misspelt name in
    model.base_model.set_adapter([...]) leaves its adapter out of the output. PeftMixedModel.set_adapter (mixed_model.py), the
    public way to have several, does refuse it.
upstream: none found
"""
import peft
import torch
from torch import nn

model = peft.get_peft_model(nn.Sequential(nn.Linear(2, 2)), peft.LoraConfig(r=1, target_modules=["0"]))
model.add_adapter("second", peft.LoraConfig(r=1, target_modules=["0"], init_lora_weights=False))
x = torch.ones(1, 2)
model.base_model.set_adapter(["default", "second"])
both = model(x)
try:
    model.base_model.set_adapter(["default", "secnod"])
    print("got  no error, and an output without the second adapter:", not torch.equal(model(x), both))
except ValueError as error:
    print("got ", error)
print("want an error")
# prints:
# got  no error, and an output without the second adapter: True
# want an error
