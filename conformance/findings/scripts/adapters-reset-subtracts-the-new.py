"""adapters 1.3.0: an adapter that is changed or loaded while it is merged is taken out of W instead of the one that was merged.

requirements: MERGE-11 MERGE-17 MERGE-19 STATE-09 STATE-12
kind: fault
why: LoRALinear.reset_adapter (methods/lora.py) subtracts the delta of the factors as they are by then, and load_adapter
overwrites those of a merged adapter without an error. The difference of the two deltas stays in the base weight.
upstream: none found
"""
import tempfile

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
directory = tempfile.mkdtemp()
model.save_adapter(directory, "mine")  # its B is zero
for factor in layer.loras["mine"].parameters():
    torch.nn.init.ones_(factor)
model.merge_adapter("mine")
print("merged", layer.weight.item())
model.load_adapter(directory)
model.reset_adapter()
print("got   ", layer.weight.item())
print("want   0.0")
# prints:
# merged 1.0
# got    1.0
# want   0.0
