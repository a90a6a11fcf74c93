"""keras 3.15.1: enable_lora freezes the kernel and leaves the bias trainable.

requirements: GRAD-10 PARAM-01 PARAM-02 PARAM-03 PARAM-04 STATE-09 STATE-14 LEARN-01
kind: convention
why: Dense.enable_lora (layers/core/dense.py) sets trainable to False for _kernel alone; the documentation speaks of the
    kernel alone, too. With a bias more is trained than LoRA's factors, as loralib does when asked for bias="lora_only";
    here it cannot be chosen.
upstream: none found
"""
import os

os.environ["KERAS_BACKEND"] = "torch"
import keras

layer = keras.layers.Dense(2)
layer.build((None, 3))
layer.enable_lora(1)
print("trainable got ", [v.name for v in layer.trainable_variables])
print("trainable want", ["lora_kernel_a", "lora_kernel_b"])
# prints:
# trainable got  ['bias', 'lora_kernel_a', 'lora_kernel_b']
# trainable want ['lora_kernel_a', 'lora_kernel_b']
