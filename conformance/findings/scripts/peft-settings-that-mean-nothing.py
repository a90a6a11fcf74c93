"""peft 0.21.2: settings and numbers of a file are taken as they come: text for a switch, one setting twice, NaN.

requirements: FILE-18 FILE-20 FILE-21
kind: convention
why: adapter_config.json goes through json.load into a dataclass, which checks no types: the text "false" is true. Of two
    settings of one name json keeps the last. Nobody looks at the numbers of the tensors.
upstream: none found
"""
import json
import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file


def base():
    model = torch.nn.Sequential()
    model.q_proj = torch.nn.Linear(4, 4)
    return model


def loaded():
    return PeftModel.from_pretrained(base(), folder).base_model.model.q_proj


model = get_peft_model(base(), LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False))
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    with open(f"{folder}/adapter_config.json") as file:
        said = json.load(file)
    with open(f"{folder}/adapter_config.json", "w") as file:
        json.dump(said | {"use_rslora": "false"}, file)
    print('use_rslora "false": scale', loaded().scaling["default"])
    with open(f"{folder}/adapter_config.json", "w") as file:
        file.write(json.dumps(said | {"lora_alpha": 4})[:-1] + ', "lora_alpha": 8}')
    print("lora_alpha 4 and 8: scale", loaded().scaling["default"])
    path = f"{folder}/adapter_model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, path)
    print("a NaN in a factor: y", loaded()(torch.ones(1, 4))[0, 0].item())
# prints:
# use_rslora "false": scale 2.0
# lora_alpha 4 and 8: scale 2.0
# a NaN in a factor: y nan
