"""peft 0.21.2: with rslora the adapter that add_weighted_adapter makes is √rank too strong.

requirements: MULTI-17
kind: fault
why: LoraModel.add_weighted_adapter (tuners/lora/model.py) puts the scalings into the factors and sets lora_alpha = r so
    that the new scaling be 1; but it takes use_rslora over from the first adapter, and the new scaling is alpha / √r =
    √r.
upstream: https://github.com/huggingface/peft/issues/3761
"""
import peft
from torch import nn

options = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0"], use_rslora=True, init_lora_weights=False)
model = peft.get_peft_model(nn.Sequential(nn.Linear(5, 7)), options)
model.base_model.add_weighted_adapter(["default"], [1.0], "same", "cat")
layer = model.base_model.model[0]
ratio = layer.get_delta_weight("same").norm() / layer.get_delta_weight("default").norm()
print(f"delta of the combination / delta of its only part: got {ratio:.3f} want 1.000")
# prints:
# delta of the combination / delta of its only part: got 2.000 want 1.000
