"""adapters 1.3.0: a merge and a reset do not give back every bit of W.

requirements: MERGE-08
kind: convention
why: LoRALinear.reset_adapter (methods/lora.py) subtracts the delta, so that each cycle rounds twice, and a delta that is not
finite cannot be taken out. It is what most implementations do.
upstream: none found
"""
import adapters
import torch
from transformers import BertConfig, BertModel

model = BertModel(BertConfig(vocab_size=2, hidden_size=1, intermediate_size=1, num_hidden_layers=1, num_attention_heads=1))
adapters.init(model)
options = adapters.LoRAConfig(selfattn_lora=False, intermediate_lora=True, r=1, alpha=1)
model.add_adapter("mine", config=options)
layer = model.encoder.layer[0].intermediate.dense
for factor in layer.loras["mine"].parameters():
    torch.nn.init.ones_(factor)
torch.nn.init.constant_(layer.weight, 0.1)
print("want", layer.weight.item())
model.merge_adapter("mine")
model.reset_adapter()
print("got ", layer.weight.item())
# prints:
# want 0.10000000149011612
# got  0.10000002384185791
