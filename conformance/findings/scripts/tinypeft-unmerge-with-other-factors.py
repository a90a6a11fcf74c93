"""TinyPEFT 1.0.0: when the factors are set, loaded or stepped while merged, unmerge subtracts the new delta, and W is lost.

requirements: MERGE-11 MERGE-17 MERGE-19 STATE-09
kind: fault
why: unmerge_lora_weights (lora/lora.py) recomputes B @ A from the factors as they are by then; nothing keeps what was
    added. load_lora_state_dict on a merged layer is neither refused nor followed by a new merge, so the base model is
    damaged for good.
upstream: none found
"""
from tinypeft import get_lora_state_dict, inject_lora, load_lora_state_dict, merge_lora_weights, unmerge_lora_weights
from torch import nn


def fresh(a):
    linear = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(linear.weight)
    model, _ = inject_lora(nn.Sequential(linear), r=1, alpha=1)
    nn.init.constant_(model[0].A, a)
    nn.init.ones_(model[0].B)
    return model


model = merge_lora_weights(fresh(1))
load_lora_state_dict(model, get_lora_state_dict(fresh(5)))
unmerge_lora_weights(model)
print("W got ", model[0].base.weight.item())
print("W want", 0.0)
# prints:
# [merge_lora_weights] merged
# [unmerge_lora_weights] unmerged
# W got  -4.0
# W want 0.0
