"""peft 0.21.2: a file that is refused leaves a random adapter on the model, and what it replaced is gone.

requirements: FILE-23
kind: fault
why: load_adapter first puts fresh factors on every layer, and copies those of the file afterwards. If that fails, the new
    adapter stays. With PeftModel.from_pretrained the model that the caller gave is changed, too: its layers are those of the
    adapter that was refused.
upstream: none found
"""
import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model


def base(n):
    model = torch.nn.Sequential()
    model.q_proj = torch.nn.Linear(n, 4)
    return model


options = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False)
with tempfile.TemporaryDirectory() as folder:
    get_peft_model(base(3), options).save_pretrained(folder)
    model = base(4)
    x = torch.ones(1, 4)
    before = model(x)
    try:
        PeftModel.from_pretrained(model, folder)
    except RuntimeError as error:
        print("refused:", str(error).splitlines()[0])
    print("the layer of the caller's model is now a", type(model.q_proj).__module__ + "." + type(model.q_proj).__name__)
# prints:
# refused: Error(s) in loading state_dict for PeftModel:
# the layer of the caller's model is now a peft.tuners.lora.layer.Linear
