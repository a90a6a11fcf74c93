"""adapters 1.3.0: an adapter that is deleted while it is merged stays in W for ever.

requirements: MULTI-12
kind: fault
why: delete_adapter (methods/adapter_layer_base.py) does not look whether the adapter is merged, and reset_adapter
(methods/lora.py) then fails with a KeyError, since the factors that it would subtract are gone.
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
torch.nn.init.zeros_(layer.weight)
torch.nn.init.zeros_(layer.bias)
for factor in layer.loras["mine"].parameters():
    torch.nn.init.ones_(factor)
model.merge_adapter("mine")
model.delete_adapter("mine")
try:
    model.reset_adapter()
except KeyError as error:
    print("reset_adapter: KeyError", error)
print("got ", layer.weight.item())
print("want 0.0")
# prints:
# reset_adapter: KeyError 'mine'
# got  1.0
# want 0.0
