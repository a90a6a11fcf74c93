"""keras 3.15.1: an alpha that is not finite is accepted, and the outputs are not finite.

requirements: INPUT-05
kind: convention
why: Dense.enable_lora (layers/core/dense.py) keeps lora_alpha as it is given. The fault shows only where the outputs are
    used, far from the configuration that has it.
upstream: none found
"""
import os

os.environ["KERAS_BACKEND"] = "torch"
import keras
import torch

layer = keras.layers.Dense(2)
layer.build((None, 3))
try:
    layer.enable_lora(1, lora_alpha=float("nan"))
    print("got ", layer(torch.ones(1, 3)).tolist())
except ValueError as error:
    print("got ", error)
print("want an error")
# prints:
# got  [[nan, nan]]
# want an error
