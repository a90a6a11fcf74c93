"""peft 0.21.2: a setting that it does not know is left out with a warning, also if it changes what the file means.

requirements: FILE-17
kind: convention
why: PeftConfig.from_peft_type warns of the names that it leaves out, so that files of later versions can be read. Who does not
    read warnings serves another function than the one that was trained.
upstream: intended: huggingface/peft#2038
"""
import json
import tempfile
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model

model = torch.nn.Sequential()
model.q_proj = torch.nn.Linear(4, 4)
adapter = get_peft_model(model, LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"]))
with tempfile.TemporaryDirectory() as folder:
    adapter.save_pretrained(folder)
    with open(f"{folder}/adapter_config.json") as file:
        said = json.load(file)
    with open(f"{folder}/adapter_config.json", "w") as file:
        json.dump(said | {"use_depth_scaling": True}, file)
    again = torch.nn.Sequential()
    again.q_proj = torch.nn.Linear(4, 4)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        PeftModel.from_pretrained(again, folder)
    words = next(str(one.message) for one in told if "use_depth_scaling" in str(one.message))
    print("loaded;", words.partition(" for class")[0])
# prints:
# loaded; Unexpected keyword arguments ['use_depth_scaling']
