"""mlora 0.5.2: dropout stays on in inference.

requirements: DROP-01 DROP-05 DROP-18 STATE-04
kind: fault
why: LoraFunction.forward (modules/lora_linear.py), the default operator, calls F.dropout whatever the mode is: it looks neither
at inference_mode_, which the evaluator and the generator set, nor at training. The other operator has an nn.Dropout, but
mlora never calls eval(), and eval() does not reach it, since a Linear has its adapters in a plain dict. All evaluations and
generated texts are those of a randomly thinned adapter; a dropout of zero is refused by an assert.
upstream: none found
"""
import torch
from mlora.modules import LLMBatchConfig, LLMModelInput, LoraConfig
from mlora.modules.lora_linear import Linear

torch.manual_seed(0)
layer = Linear(torch.nn.Linear(1, 1, bias=False), "cpu")
layer.init_lora_weight(LoraConfig("mine", lora_r_=1, lora_alpha_=1, lora_dropout_=0.5))
torch.nn.init.zeros_(layer.base_layer_.weight)
for factor in (layer.loras_["mine"].lora_a_, layer.loras_["mine"].lora_b_):
    torch.nn.init.ones_(factor.weight)
layer.eval()
x = torch.ones(1, 8, 1)
with torch.inference_mode():
    for efficient in (True, False):
        given = LLMModelInput([LLMBatchConfig("mine", 0, 1)], efficient_operator_=efficient, inference_mode_=True)
        print("got ", layer(x, given).flatten().tolist())
print("want", x.flatten().tolist())
# prints:
# got  [2.0, 0.0, 0.0, 0.0, 2.0, 2.0, 0.0, 2.0]
# got  [2.0, 2.0, 2.0, 0.0, 2.0, 2.0, 2.0, 2.0]
# want [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
