"""adapters 1.3.0: an alpha that is not a number is accepted, and the scale is nan.

requirements: INPUT-05
kind: convention
why: Neither LoRAConfig (configuration/adapter_config.py) nor LoRA (methods/lora.py) checks alpha.
upstream: none found
"""
import adapters
from transformers import BertConfig, BertModel

model = BertModel(BertConfig(vocab_size=2, hidden_size=1, intermediate_size=1, num_hidden_layers=1, num_attention_heads=1))
adapters.init(model)
options = adapters.LoRAConfig(selfattn_lora=False, intermediate_lora=True, r=1, alpha=float("nan"))
try:
    model.add_adapter("mine", config=options)
    print("got  an adapter, with a scale of", model.encoder.layer[0].intermediate.dense.loras["mine"].scaling)
except ValueError:
    print("got  an error")
print("want an error")
# prints:
# got  an adapter, with a scale of nan
# want an error
