"""adapters 1.3.0: a dropout below zero or of 1 is accepted; below zero it is taken for none.

requirements: INPUT-06
kind: convention
why: LoRA (methods/lora.py) makes an nn.Dropout only if the rate is above zero, so that torch's own check never sees a negative
one; torch accepts 1, which drops everything.
upstream: none found
"""
import adapters
from transformers import BertConfig, BertModel

model = BertModel(BertConfig(vocab_size=2, hidden_size=1, intermediate_size=1, num_hidden_layers=1, num_attention_heads=1))
adapters.init(model)
for name, rate in (("negative", -0.1), ("one", 1.0)):
    try:
        model.add_adapter(name, config=adapters.LoRAConfig(selfattn_lora=False, intermediate_lora=True, dropout=rate))
        print("got  an adapter, with a dropout of", rate)
    except ValueError:
        print("got  an error")
    print("want an error")
# prints:
# got  an adapter, with a dropout of -0.1
# want an error
# got  an adapter, with a dropout of 1.0
# want an error
