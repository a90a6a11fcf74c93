"""keras 3.15.1: an x without a batch dimension is refused.

requirements: FWD-03 GRAD-14
kind: convention
why: Dense (layers/core/dense.py) documents inputs of shape (batch_size, ..., input_dim) and asks for two dimensions or
    more by its input_spec. The refusal is an error with a clear text.
upstream: none found
"""
import os

os.environ["KERAS_BACKEND"] = "torch"
import keras
import torch

layer = keras.layers.Dense(2)
layer.build((None, 3))
layer.enable_lora(1)
try:
    print("got ", tuple(layer(torch.ones(3)).shape))
except ValueError as error:
    print("got ", "expected min_ndim=2, found ndim=1" if "expected min_ndim=2" in str(error) else error)
print("want", (2,))
# prints:
# got  expected min_ndim=2, found ndim=1
# want (2,)
