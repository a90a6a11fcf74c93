"""mlx-lm 0.32.2: a dropout that is not a number is accepted; the output is nan.

requirements: INPUT-06
kind: convention
why: mlx's Dropout refuses what is below 0 or not below 1, and both comparisons are false for a nan; LoRALinear (tuner/lora.py)
checks nothing itself.
upstream: none found
"""
import mlx.core as mx
from mlx import nn
from mlx_lm.tuner.lora import LoRALinear

for rate in (1.0, float("nan")):
    try:
        layer = LoRALinear.from_base(nn.Linear(1, 1), r=1, dropout=rate)
        print("got  a layer for a dropout of", rate, "whose output is", layer(mx.ones((1, 1))).item())
    except ValueError:
        print("got  an error for a dropout of", rate)
    print("want an error")
# prints:
# got  an error for a dropout of 1.0
# want an error
# got  a layer for a dropout of nan whose output is nan
# want an error
