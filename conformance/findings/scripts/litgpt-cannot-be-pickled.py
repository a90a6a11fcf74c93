"""litgpt 0.5.13: a layer without dropout cannot be saved whole.

requirements: TORCH-02
kind: fault
why: LoRALayer (litgpt/lora.py) keeps `lambda x: x` as self.lora_dropout when the rate is 0, as loralib does. pickle finds no
    function under that name. With a rate above 0 it keeps nn.Dropout, and the layer can be saved.
upstream: of loralib, https://github.com/microsoft/LoRA/pull/200
"""
import io

import torch
from litgpt.lora import LoRALinear

for rate in (0.0, 0.5):
    try:
        torch.save(LoRALinear(1, 1, r=1, lora_dropout=rate), io.BytesIO())
        print(f"dropout {rate} got : saved")
    except Exception as error:
        print(f"dropout {rate} got : {type(error).__name__}, about a lambda: {'lambda' in str(error)}")
    print(f"dropout {rate} want: saved")
# prints:
# dropout 0.0 got : AttributeError, about a lambda: True
# dropout 0.0 want: saved
# dropout 0.5 got : saved
# dropout 0.5 want: saved
