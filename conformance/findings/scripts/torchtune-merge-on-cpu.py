"""torchtune 0.6.1: on a CPU, writing the merged checkpoint adds the adapter to the weights of the model that is being trained.

requirements: MERGE-05 STATE-09 STATE-12
kind: fault
why: get_merged_lora_ckpt (modules/peft/_utils.py) merges with `+=` into the tensors that it is given, as its docstring says.
save_checkpoint of recipes/lora_finetune_single_device.py gives it `{k: v.cpu() for …}`, which copies from a GPU and is the
model's own memory on a CPU. The delta stays in the base weight of the model, whose LoRA path adds it again: after the
checkpoint of an epoch training goes on from another function, and the checkpoints that follow hold the deltas of all of them.
upstream: none found
"""
import torch
from torch import nn
from torchtune.modules.peft import LoRALinear, get_merged_lora_ckpt

model = nn.Sequential(LoRALinear(1, 1, rank=1, alpha=1))
for parameter in model.parameters():
    nn.init.ones_(parameter)
x = torch.ones(1, 1)
print("want", model(x).item(), model[0].weight.item())
for _ in range(2):  # two checkpoints, as the recipe writes them
    merged = get_merged_lora_ckpt({k: v.cpu() for k, v in model.state_dict().items()}, rank=1, alpha=1)
    print("got ", model(x).item(), model[0].weight.item(), "and a merged weight of", merged["0.weight"].item(), "want 2.0")
# prints:
# want 2.0 1.0
# got  3.0 2.0 and a merged weight of 2.0 want 2.0
# got  4.0 3.0 and a merged weight of 3.0 want 2.0
