"""TinyPEFT 1.0.0: merging twice adds the delta twice, and unmerging a layer that is not merged takes it out of W.

requirements: MERGE-05 MERGE-16 STATE-09 STATE-12
kind: fault
why: merge_lora_weights and unmerge_lora_weights (lora/lora.py) set module.merged and never look at it. A second call on
    either side silently leaves wrong base weights in the model.
upstream: none found
"""
from tinypeft import inject_lora, merge_lora_weights, unmerge_lora_weights
from torch import nn


def fresh():
    linear = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(linear.weight)
    model, _ = inject_lora(nn.Sequential(linear), r=1, alpha=4)
    nn.init.ones_(model[0].A)
    nn.init.ones_(model[0].B)
    return model


model = merge_lora_weights(merge_lora_weights(fresh()))
print("W merged twice: got", model[0].base.weight.item(), "want 4.0")
model = unmerge_lora_weights(fresh())
print("W unmerged without a merge: got", model[0].base.weight.item(), "want 0.0")
# prints:
# [merge_lora_weights] merged
# [merge_lora_weights] merged
# W merged twice: got 8.0 want 4.0
# [unmerge_lora_weights] unmerged
# W unmerged without a merge: got -4.0 want 0.0
