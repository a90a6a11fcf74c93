"""pytora 0.0.4: apply_lora does not freeze the base: W and b train along with A and B.

requirements: GRAD-10 PARAM-01 PARAM-02 PARAM-03 PARAM-04 MERGE-01 DROP-01 STATE-09 STATE-12 STATE-14 LEARN-01
kind: fault
why: apply_lora (utils.py) sets module.weight.requires_grad = False after register_parametrization. By then module.weight
    is a tensor that is computed anew at every access; the parameter is parametrizations.weight.original, which goes on
    training. b is not looked at. The fine-tuning is one of all weights, and A and B alone do not tell what was learned.
upstream: none found
"""
from pytora import apply_lora
from torch import nn

model = nn.Sequential(nn.Linear(3, 2))
apply_lora(model, lora_r=1)
found = [name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name]
print("trainable, beside A and B: got", found, "want []")
# prints:
# trainable, beside A and B: got ['0.bias', '0.parametrizations.weight.original'] want []
