"""mlx-lm 0.32.2: resuming from an adapter file of another rank or another size is accepted.

requirements: STATE-03 STATE-08 STATE-15
kind: fault
why: train_model (lora.py) loads --resume-adapter-file with load_weights(strict=False), which does not check shapes, and puts
the arrays of the file in the layer's place. Another size fails in the next forward pass. With another rank training goes
on, under an adapter_config.json that names the rank of the new run; load_adapters, which does check shapes, then refuses
what was trained.
upstream: none found
"""
import json
import tempfile

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.TransformerEncoderLayer(4, 1)]
        self.freeze()


def options(rank):
    return {"rank": rank, "scale": 1.0, "dropout": 0.0, "keys": ["linear1"]}


def save(model, directory, rank):
    mx.save_safetensors(f"{directory}/adapters.safetensors", dict(tree_flatten(model.trainable_parameters())))
    with open(f"{directory}/adapter_config.json", "w") as file:
        json.dump({"num_layers": 1, "lora_parameters": options(rank)}, file)


first, second = tempfile.mkdtemp(), tempfile.mkdtemp()
model = Model()
linear_to_lora_layers(model, 1, options(rank=1))
save(model, first, rank=1)

model = Model()
linear_to_lora_layers(model, 1, options(rank=2))
try:
    model.load_weights(f"{first}/adapters.safetensors", strict=False)  # as train_model does for --resume-adapter-file
    print("got  a rank of", model.layers[0].linear1.lora_a.shape[1], "in a layer of rank 2")
except ValueError:
    print("got  an error")
print("want an error")
save(model, second, rank=2)
try:
    load_adapters(Model(), second)
    print("it loads again")
except ValueError as error:
    print(error.args[0].splitlines()[1].strip())
# prints:
# got  a rank of 1 in a layer of rank 2
# want an error
# layers.0.linear1.lora_b: adapter shape (1, 16) does not match model parameter shape (2, 16)
