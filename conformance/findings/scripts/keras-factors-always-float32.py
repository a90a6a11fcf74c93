"""keras 3.15.1: in a float64 layer the factors are float32, and so is their product.

requirements: FWD-02 GRAD-02 GRAD-04 SCALE-02 MERGE-02 MERGE-04
kind: convention
why: Dense.enable_lora (layers/core/dense.py) gives both factors dtype="float32", lest they underflow in half precision,
    as a comment there says; for float64 that is a loss. The merged kernel is float64 and right to 7 digits.
upstream: none found
"""
import os

os.environ["KERAS_BACKEND"] = "torch"
import keras
import torch

layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros", dtype="float64")
layer.build((None, 1))
layer.enable_lora(1)
layer.lora_kernel_a.assign(torch.full((1, 1), 0.1, dtype=torch.float64))
layer.lora_kernel_b.assign(torch.ones(1, 1, dtype=torch.float64))
print("W' got ", layer.kernel.item(), layer.kernel.dtype)
print("W' want", 0.1, torch.float64)
# prints:
# W' got  0.10000000149011612 torch.float64
# W' want 0.1 torch.float64
