"""peft 0.21.2: a file whose tensors have no place in the model, or that lacks some, is loaded with a warning at most.

requirements: FILE-14 FILE-15 FILE-16 FILE-35
kind: fault
why: PeftModel.from_pretrained reads the tensors with strict=False. Of keys that the model does not have nothing is said at all,
    and what the file lacks keeps the numbers that it was made with: a warning says so. With all names of another library, or of
    another method, the base model is served.
upstream: known: huggingface/peft#1932; huggingface/peft#2118 brought the warning
"""
import tempfile
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file


def base():
    torch.manual_seed(0)
    model = torch.nn.Sequential()
    model.q_proj = torch.nn.Linear(4, 4)
    return model


x = torch.ones(1, 4)
model = get_peft_model(base(), LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"]))
torch.nn.init.ones_(model.base_model.model.q_proj.lora_B.default.weight)
with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    path = f"{folder}/adapter_model.safetensors"
    right = load_file(path)
    for words, tensors in (
        ("a layer more", right | {name.replace("q_proj", "k_proj"): tensor for name, tensor in right.items()}),
        ("names with a segment more", {name.replace("q_proj", "module.q_proj"): tensor for name, tensor in right.items()}),
    ):
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            again = PeftModel.from_pretrained(base(), folder)
        told = [one for one in told if "missing adapter keys" in str(one.message)]
        same = "the adapter" if torch.equal(again(x), model(x)) else "the base" if torch.equal(again(x), base()(x)) else "none"
        print(f"{words}: y is that of {same}; a warning about what is missing: {bool(told)}")
# prints:
# a layer more: y is that of the adapter; a warning about what is missing: False
# names with a segment more: y is that of the base; a warning about what is missing: True
