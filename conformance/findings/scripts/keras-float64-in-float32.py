"""keras 3.15.1: a float64 layer multiplies in float32.

requirements: FWD-01 FWD-02 INIT-09 GRAD-01 GRAD-04 SCALE-02 MERGE-04 DTYPE-01
since: FWD-07
kind: fault
why: Dense.call (layers/core/dense.py) uses ops.matmul, and on PyTorch that (backend/torch/numpy.py) takes the dtype from
    dtypes.result_type, which makes float32 of two float64. It is so without LoRA, too. A bias that is added last makes
    the output float64 again, so that it looks like one.
upstream: https://github.com/keras-team/keras/issues/23704
"""
import os

os.environ["KERAS_BACKEND"] = "torch"
import keras
import torch

layer = keras.layers.Dense(1, kernel_initializer="ones", dtype="float64")
layer.build((None, 1))
layer.enable_lora(1)
y = layer(torch.full((1, 1), 0.1, dtype=torch.float64))
print("y got ", y.item(), y.dtype)
print("y want", 0.1, torch.float64)
# prints:
# y got  0.10000000149011612 torch.float64
# y want 0.1 torch.float64
