"""adapters 1.3.0: loading an adapter that does not fit raises, but has then overwritten the factor that did fit.

requirements: STATE-08
kind: convention
why: load_adapter (loading.py) lets torch's _load_from_state_dict copy every tensor whose shape agrees before it raises for the
others. The adapter that refused the file is left with one factor of the file and one of its own.
upstream: none found
"""
import tempfile

import adapters
import torch
from transformers import BertConfig, BertModel


def build(width):
    model = BertModel(BertConfig(
        vocab_size=2, hidden_size=width, intermediate_size=1, num_hidden_layers=1, num_attention_heads=1))
    adapters.init(model)
    model.add_adapter("mine", config=adapters.LoRAConfig(selfattn_lora=False, intermediate_lora=True, r=1))
    return model, model.encoder.layer[0].intermediate.dense.loras["mine"]


(model, lora), (other, its) = build(1), build(2)
directory = tempfile.mkdtemp()
torch.nn.init.ones_(lora.lora_B)
model.save_adapter(directory, "mine")
try:
    other.load_adapter(directory)
except RuntimeError:
    print("refused")
print("got  B =", its.lora_B.item())
print("want B = 0.0")
# prints:
# refused
# got  B = 1.0
# want B = 0.0
