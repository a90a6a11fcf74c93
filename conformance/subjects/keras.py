"""Keras's Dense with enable_lora, on PyTorch.

Its files hold the merged kernel and no factors. `merge` here does in memory what saving and loading such a file does: a plain
Dense takes the variables that the layer with LoRA gives out."""

import os
from typing import Any

NEEDS = ("torch", "keras")
ENVIRONMENT = "torch"


def subject():
    os.environ["KERAS_BACKEND"] = "torch"
    import importlib
    import importlib.metadata

    import torch

    from conformance.subject import Layer, LayerConfig, Subject, Unsupported
    from conformance.torch import to_array, to_tensor

    keras: Any = importlib.import_module("keras")  # a type checker takes the name for this file
    factors = {"A": "lora_kernel_a", "B": "lora_kernel_b"}

    class KerasLayer(Layer):
        """Drives a Dense with LoRA. Its kernel is Wᵀ (in, out); its A and B have the layout of conformance/subject.py."""

        def __init__(self, config: LayerConfig, layer: Any):
            self.config, self.layer = config, layer
            self.training, self._x_needs_grad = True, True
            self._x = self._y = None

        def variable(self, name: str) -> Any:
            if not self.layer.lora_enabled:
                raise Unsupported("the factors of a merged layer: it is a plain Dense")
            return getattr(self.layer, factors[name])

        def adapter(self):
            return {name: to_array(self.variable(name).value) for name in factors}

        def stored(self):
            return {factors[name]: array for name, array in self.adapter().items()}

        def set_adapter(self, arrays):
            for name, array in arrays.items():
                if array.shape != tuple(self.variable(name).shape):
                    raise ValueError(f"{name} is {array.shape}, expected {tuple(self.variable(name).shape)}")
            for name, array in arrays.items():
                self.variable(name).assign(to_tensor(array.copy()))

        def weight(self):
            return to_array(self.layer._kernel.value.t())

        def bias(self):
            return None if self.layer.bias is None else to_array(self.layer.bias.value)

        def forward(self, x):
            self._x = to_tensor(x, self.config.device).requires_grad_(self._x_needs_grad)
            self._y = self.layer(self._x, training=self.training)
            return to_array(self._y)

        def backward(self, dy):
            if self._y is None or self._x is None:
                raise RuntimeError("backward before forward")
            if self._y.requires_grad:
                self._y.backward(to_tensor(dy, self._y.device))
            found = {} if self._x.grad is None else {"x": to_array(self._x.grad)}
            return found | {self.name(v): to_array(v.value.grad) for v in self.layer.weights if v.value.grad is not None}

        def name(self, variable: Any) -> str:
            return next((name for name, known in factors.items() if known == variable.name), variable.name)

        def zero_grad(self):
            self.layer.zero_grad()

        def input_needs_grad(self, needed=True):
            self._x_needs_grad = needed

        def trainable(self):
            return {self.name(v): tuple(v.shape) for v in self.layer.trainable_weights}

        def train(self, mode=True):
            self.training = mode

        def step(self, lr):
            variables = [v for v in self.layer.trainable_weights if v.value.grad is not None]
            with torch.no_grad():
                keras.optimizers.SGD(lr).apply([v.value.grad for v in variables], variables)

        def merge(self):
            self.variable("A")
            store = {}
            self.layer.save_own_variables(store)
            self.layer = plain(self.config)
            self.layer.load_own_variables(store)

        def model(self) -> Any:
            return keras.Sequential([keras.Input((self.config.in_features,)), self.layer])

        def save(self, directory):
            self.variable("A")
            self.model().save_weights(f"{directory}/model.weights.h5")

        def load(self, directory):
            self.variable("A")
            self.model().load_weights(f"{directory}/model.weights.h5")

    def plain(config: LayerConfig) -> Any:
        with keras.device(config.device):
            layer = keras.layers.Dense(config.out_features, use_bias=config.bias, dtype=config.dtype)
            layer.build((None, config.in_features))
        return layer

    class Keras(Subject):
        name, version = "keras", importlib.metadata.version("keras")
        freezes = "enable_lora"

        def build(self, config: LayerConfig, weight, bias):
            if config.scaling != "standard" or config.dropout:
                raise Unsupported("rslora and dropout: enable_lora has no options for them")
            keras.utils.set_random_seed(config.seed)
            layer = plain(config)
            layer.set_weights([to_tensor(weight.T.copy()), *([] if bias is None else [to_tensor(bias.copy())])])
            with keras.device(config.device):
                layer.enable_lora(config.rank, lora_alpha=config.alpha)
            return KerasLayer(config, layer)

    return Keras()
