"""adapters 1.3.0: the Average block divides by the number of adapters twice: of two equal adapters it gives half of one.

requirements: MULTI-03 MULTI-05 MULTI-06
kind: fault
why: The weights of Average (composition.py) add up to 1, by default 1 / n each, and LoRALinear.mean (methods/lora.py)
multiplies by them and then takes torch.mean, which divides by n again; the mean of bottleneck adapters
(methods/bottleneck.py) does so, too. Composed adapters are n times too weak, and so are their gradients.
upstream: none found
"""
import adapters
import torch
from adapters.composition import Average
from transformers import BertConfig, BertModel

model = BertModel(BertConfig(vocab_size=2, hidden_size=1, intermediate_size=1, num_hidden_layers=1, num_attention_heads=1))
adapters.init(model)
options = adapters.LoRAConfig(selfattn_lora=False, intermediate_lora=True, r=1, alpha=1)
for name in ("one", "two"):
    model.add_adapter(name, config=options)
layer = model.encoder.layer[0].intermediate.dense
torch.nn.init.zeros_(layer.weight)
torch.nn.init.zeros_(layer.bias)
for lora in layer.loras.values():
    for factor in lora.parameters():
        torch.nn.init.ones_(factor)
for setup in ("one", "two", Average("one", "two")):
    model.set_active_adapters(setup)
    print("want" if isinstance(setup, str) else "got ", layer(torch.ones(1, 1, 1)).item(), "of", setup)
# prints:
# want 1.0 of one
# want 1.0 of two
# got  0.5 of Average[one, two]
