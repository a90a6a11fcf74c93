"""mlx-lm 0.32.2: a scale that is not a number is accepted, and the output is nan.

requirements: INPUT-05
kind: convention
why: LoRALinear (tuner/lora.py) does not check the scale, which stands for alpha / rank here.
upstream: none found
"""
import mlx.core as mx
from mlx import nn
from mlx_lm.tuner.lora import LoRALinear

try:
    layer = LoRALinear.from_base(nn.Linear(1, 1), r=1, scale=float("nan"))
    print("got  a layer, whose output is", layer(mx.ones((1, 1))).item())
except ValueError:
    print("got  an error")
print("want an error")
# prints:
# got  a layer, whose output is nan
# want an error
