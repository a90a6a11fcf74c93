"""keras 3.15.1: after load_weights both factors are zero, and LoRA never learns again.

requirements: STATE-10
kind: fault
why: Dense.load_own_variables (layers/core/dense.py) puts the merged kernel of the file in the place of the base kernel
    and sets lora_kernel_a and lora_kernel_b both to zero. With both at zero both gradients are zero for ever: training
    that is resumed from a checkpoint goes on without an error and changes nothing but the bias. Zeroing lora_kernel_b
    alone would do.
upstream: none found
"""
import os
import tempfile

os.environ["KERAS_BACKEND"] = "torch"
import keras
import torch

layer = keras.layers.Dense(2)
model = keras.Sequential([keras.Input((3,)), layer])
layer.enable_lora(1)
with tempfile.TemporaryDirectory() as directory:
    model.save_weights(f"{directory}/resume.weights.h5")
    model.load_weights(f"{directory}/resume.weights.h5")
layer(torch.ones(1, 3)).sum().backward()
learning = [v.name for v in (layer.lora_kernel_a, layer.lora_kernel_b) if v.value.grad.any()]
print("factors that get a gradient other than 0: got", learning, "want one or both")
# prints:
# factors that get a gradient other than 0: got [] want one or both
