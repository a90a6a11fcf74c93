"""mlx-lm 0.32.2: in half precision fuse() rounds the delta, and then the sum.

requirements: DTYPE-07
kind: convention
why: LoRALinear.fuse (tuner/lora.py) casts the delta, which it has in float32, to the dtype of the weight before it adds it. The
fused weight is off by up to a unit in the last place more than a sum in float32 that is rounded once.
upstream: https://github.com/ml-explore/mlx-lm/pull/1120 (closed; fuses in float32, among other things)
"""
import mlx.core as mx
from mlx import nn
from mlx_lm.tuner.lora import LoRALinear

linear = nn.Linear(1, 1, bias=False)
linear.weight = mx.array([[0.4528]]).astype(mx.float16)
layer = LoRALinear.from_base(linear, r=1, scale=2.75)
layer.lora_a, layer.lora_b = mx.array([[-0.3787]]), mx.array([[0.9473]])
exact = linear.weight.astype(mx.float32) + layer.scale * layer.lora_b.T @ layer.lora_a.T
print("got ", layer.fuse().weight.item())
print("want", exact.astype(mx.float16).item())
# prints:
# got  -0.533203125
# want -0.53369140625
