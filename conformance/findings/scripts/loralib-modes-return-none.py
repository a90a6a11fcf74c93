"""loralib 0.1.2: train() and eval() return None, so `layer = layer.eval()` loses the layer.

requirements: TORCH-15
kind: fault
why: Linear.train (layers.py) calls nn.Linear.train and returns nothing. torch documents that train() and eval() return the
    module.
upstream: none found
"""
import loralib

layer = loralib.Linear(1, 1, r=1)
print("train() got ", layer.train())
print("eval() got  ", layer.eval())
print("eval() want ", "the layer")
# prints:
# train() got  None
# eval() got   None
# eval() want  the layer
