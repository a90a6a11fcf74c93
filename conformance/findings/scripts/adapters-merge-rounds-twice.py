"""adapters 1.3.0: in half precision a merge rounds the delta, and then the sum.

requirements: DTYPE-07
kind: convention
why: LoRA.delta_w and LoRA.com (methods/lora.py) compute B A, the scaling and the sum in the dtype of the factors. The merged
weight is off by more than a merge in float32 that is rounded once.
upstream: none found
"""
import adapters
import torch
from transformers import BertConfig, BertModel

model = BertModel(BertConfig(vocab_size=2, hidden_size=1, intermediate_size=1, num_hidden_layers=1, num_attention_heads=1))
model.half()
adapters.init(model)
options = adapters.LoRAConfig(selfattn_lora=False, intermediate_lora=True, r=1, alpha=2.75, dtype="float16")
model.add_adapter("mine", config=options)
layer = model.encoder.layer[0].intermediate.dense
lora = layer.loras["mine"]
for parameter, value in ((layer.weight, 0.45288), (lora.lora_A, -0.37866), (lora.lora_B, 0.94727)):
    torch.nn.init.constant_(parameter, value)
exact = layer.weight.double() + 2.75 * lora.lora_B.double() @ lora.lora_A.double()
model.merge_adapter("mine")
print("got ", layer.weight.item())
print("want", exact.half().item())
# prints:
# got  -0.533203125
# want -0.53369140625
