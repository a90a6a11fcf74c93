"""keras 3.15.1: a file holds the merged kernel; the factors are not saved, and the base kernel is not given back.

requirements: STATE-01 STATE-03 STATE-05 STATE-07 STATE-09 STATE-12 STATE-15 STATE-16 STATE-17
kind: convention
why: Dense.save_own_variables (layers/core/dense.py) stores kernel + scale · A B, as the docstring of
    _get_kernel_with_merged_lora says, "for deploying the model or for continuing training after permanently applying the
    LoRA update". The outputs come back; A, B and the pretrained kernel do not, the file is of full size, and it fits a
    layer of any rank.
upstream: https://github.com/keras-team/keras/issues/23244
"""
import os

os.environ["KERAS_BACKEND"] = "torch"
import keras

layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
layer.build((None, 1))
layer.enable_lora(1, b_initializer="ones", a_initializer="ones")
stored = {}
layer.save_own_variables(stored)
print("stored got ", {key: value.tolist() for key, value in stored.items()})
print("stored want", "A = [[1.0]] and B = [[1.0]]")
layer.load_own_variables(stored)
print("base kernel after load got ", layer._kernel.value.tolist())
print("base kernel after load want", [[1.0]])
# prints:
# stored got  {'0': [[2.0]]}
# stored want A = [[1.0]] and B = [[1.0]]
# base kernel after load got  [[2.0]]
# base kernel after load want [[1.0]]
