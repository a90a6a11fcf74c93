"""lora-adapters 0.1.4: a layer without dropout cannot be saved whole.

requirements: TORCH-02
kind: fault
why: LoRALayer (layers.py) keeps `lambda x: x` as self.lora_dropout when the rate is 0, as loralib does. pickle finds no
    function under that name. With a rate above 0 it keeps nn.Dropout, and the layer can be saved.
upstream: of loralib, https://github.com/microsoft/LoRA/pull/200
"""
import io

import torch
from lora_adapters import LoraLinear
from torch import nn

for rate in (0.0, 0.5):
    try:
        torch.save(LoraLinear(nn.Linear(1, 1), rank=1, lora_dropout=rate), io.BytesIO())
        print(f"dropout {rate} got : saved")
    except Exception as error:
        print(f"dropout {rate} got : {type(error).__name__}, about a lambda: {'lambda' in str(error)}")
    print(f"dropout {rate} want: saved")
# prints:
# dropout 0.0 got : AttributeError, about a lambda: True
# dropout 0.0 want: saved
# dropout 0.5 got : saved
# dropout 0.5 want: saved
