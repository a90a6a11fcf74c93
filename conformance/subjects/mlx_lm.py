"""mlx-lm's LoRALinear, through linear_to_lora_layers.

It merges with fuse(), which gives a plain layer. Files are written as its trainer writes them."""

from typing import Any

NEEDS = ("mlx", "mlx_lm")
ENVIRONMENT = "mlx"


def subject():
    import importlib.metadata

    import ml_dtypes
    import mlx.core as mx
    import mlx.optimizers as optim
    import numpy as np
    from mlx import nn
    from mlx.utils import tree_flatten, tree_unflatten
    from mlx_lm.tuner.utils import linear_to_lora_layers

    from conformance.subject import Layer, LayerConfig, Subject, Unsupported

    place = "layers.0.proj"
    names = {f"{place}.lora_a": "A", f"{place}.lora_b": "B", f"{place}.linear.weight": "W", f"{place}.linear.bias": "b"}

    def to_mlx(array: np.ndarray) -> mx.array:
        array = np.ascontiguousarray(array)  # mlx takes no negative strides
        if array.dtype == ml_dtypes.bfloat16:
            return mx.array(array.view(np.uint16)).view(mx.bfloat16)
        return mx.array(array, dtype=getattr(mx, array.dtype.name))

    def to_array(array: mx.array) -> np.ndarray:
        if array.dtype == mx.bfloat16:
            return np.array(array.view(mx.uint16)).view(ml_dtypes.bfloat16)
        return np.array(array)

    def random_seed() -> int:
        """The seed that would give the same random numbers as those that come next."""
        high, low = np.array(mx.random.state[0]).tolist()
        return high << 32 | low

    class Block(nn.Module):
        def __init__(self, linear: nn.Linear):
            super().__init__()
            self.proj: Any = linear

        def __call__(self, x: mx.array) -> mx.array:
            return self.proj(x)

    class Model(nn.Module):
        def __init__(self, linear: nn.Linear):
            super().__init__()
            self.layers = [Block(linear)]

        def __call__(self, x: mx.array) -> mx.array:
            return self.layers[0](x)

    class MlxLayer(Layer):
        """Drives mlx-lm's layer. mlx records no operations, so `backward` repeats the forward pass, in its mode and with
        the same random numbers. The gradients are added up here."""

        def __init__(self, model: Model):
            self.model = model
            self.fused: nn.Linear | None = None
            self.gradients: dict[str, mx.array] = {}
            self.x: mx.array | None = None
            self.x_needs_grad = True
            self.random, self.training = 0, True  # of the last forward pass

        @property
        def lora(self):
            return self.model.layers[0].proj

        @property
        def base(self) -> Any:
            return self.lora.linear if self.fused is None else self.fused

        def adapter(self):
            return {"A": to_array(self.lora.lora_a), "B": to_array(self.lora.lora_b)}

        def stored(self):
            return {name: to_array(self.lora[name]) for name in ("lora_a", "lora_b")}

        def set_adapter(self, arrays):
            have = self.adapter()
            for name, array in arrays.items():
                if array.shape != have[name].shape:
                    raise ValueError(f"{name} is {array.shape}, expected {have[name].shape}")
            for name, array in arrays.items():
                key = f"lora_{name.lower()}"
                self.lora[key] = to_mlx(array).astype(self.lora[key].dtype)

        def weight(self):
            return to_array(self.base.weight)

        def bias(self):
            return to_array(self.base.bias) if "bias" in self.base else None

        def apply(self, x: mx.array) -> mx.array:
            return self.model(x) if self.fused is None else self.fused(x)

        def forward(self, x):
            self.x, self.random, self.training = to_mlx(x), random_seed(), self.model.training
            return to_array(self.apply(self.x))

        def backward(self, dy):
            if self.x is None:
                raise RuntimeError("backward before forward")
            parameters = self.model.trainable_parameters()
            paths, values = zip(*tree_flatten(parameters), strict=True) if parameters else ((), ())

            def function(x, *values):
                self.model.update(tree_unflatten(list(zip(paths, values, strict=True))))
                return self.apply(x)

            after, mode = random_seed(), self.model.training
            mx.random.seed(self.random)
            self.model.train(self.training)
            _, (dx, *found) = mx.vjp(function, [self.x, *values], [to_mlx(dy)])
            self.model.update(parameters)
            self.model.train(mode)
            mx.random.seed(after)
            if self.fused is None:
                for path, gradient in zip(paths, found, strict=True):
                    self.gradients[path] = self.gradients[path] + gradient if path in self.gradients else gradient
            read = {names.get(path, path): to_array(gradient) for path, gradient in self.gradients.items()}
            return ({"x": to_array(dx)} if self.x_needs_grad else {}) | read

        def zero_grad(self):
            self.gradients = {}

        def input_needs_grad(self, needed=True):
            self.x_needs_grad = needed

        def trainable(self):
            return {names.get(path, path): value.shape for path, value in tree_flatten(self.model.trainable_parameters())}

        def train(self, mode=True):
            self.model.train(mode)

        def merge(self):
            self.fused = self.lora.fuse()

        def unmerge(self):
            raise Unsupported("unmerging: fuse() gives a plain layer")

        def step(self, lr):
            optim.SGD(learning_rate=lr).update(self.model, tree_unflatten(list(self.gradients.items())))

        def save(self, directory):
            mx.save_safetensors(f"{directory}/adapters.safetensors", dict(tree_flatten(self.model.trainable_parameters())))

        def load(self, directory):
            self.model.load_weights(f"{directory}/adapters.safetensors", strict=False)  # as --resume-adapter-file does

    class MlxLm(Subject):
        name, version = "mlx_lm", importlib.metadata.version("mlx-lm")
        freezes = "model.freeze()"

        def build(self, config: LayerConfig, weight, bias):
            if config.scaling != "standard":
                raise Unsupported(f"{config.scaling} scaling")
            if config.dtype == "float64" or config.device != "cpu":
                raise Unsupported(f"{config.dtype} on {config.device}")
            mx.random.seed(config.seed)
            linear: Any = nn.Linear(config.in_features, config.out_features, bias=config.bias)
            linear.weight = to_mlx(weight)
            if bias is not None:
                linear.bias = to_mlx(bias)
            model = Model(linear)
            model.freeze()
            scale = config.alpha / (config.rank or 1)  # mlx-lm itself decides about a rank of 0
            options = {"rank": config.rank, "scale": scale, "dropout": config.dropout, "keys": ["proj"]}
            linear_to_lora_layers(model, 1, options)
            model.train()
            return MlxLayer(model)

    return MlxLm()
