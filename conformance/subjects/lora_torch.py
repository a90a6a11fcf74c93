"""lora_torch.LinearLoRA, this project's PyTorch layer."""

NEEDS = ("torch",)


def subject():
    import importlib
    import pkgutil

    import torch

    import lora_torch
    from conformance import __version__
    from conformance.drivers.torch_loader import TorchLoader
    from conformance.model import Model, ModelConfig, places
    from conformance.record.torch_script import script, written
    from conformance.subject import LayerConfig, Subject
    from conformance.torch import TorchLayer, set_seed, to_array, to_tensor
    from lora_torch.transformer import Config

    def arguments(config: LayerConfig) -> dict:
        return {
            "in_features": config.in_features, "out_features": config.out_features, "rank": config.rank,
            "alpha": config.alpha, "bias": config.bias, "dropout": config.dropout, "scaling": config.scaling,
            "device": config.device, "dtype": getattr(torch, config.dtype),
        }

    def layer_of(method: str):
        """The layer class of a method's file: LinearLoRA, or a class with the same arguments and the same names of arrays."""
        return importlib.import_module(f"lora_torch.{method}").LAYER

    def layer_methods() -> tuple[str, ...]:
        """The methods that have a layer: LoRA first, then each file of lora_torch with a LAYER of its own."""
        names = [info.name for info in pkgutil.iter_modules(lora_torch.__path__) if info.name not in ("lora", "kernels")]
        return ("lora", *(name for name in names if hasattr(importlib.import_module(f"lora_torch.{name}"), "LAYER")))

    def method(config: ModelConfig):
        """The hyperparameters of the method at each of its places."""
        if config.method == "lora":
            return lora_torch.lora.Config(config.rank, config.alpha / config.rank)
        if config.method == "adapter":
            return lora_torch.adapter.Config(config.bottleneck, config.nonlinearity, config.adapter_scale, config.start)
        if config.method == "prefix":
            return lora_torch.prefix.Config(config.length, config.hidden_size)
        return lora_torch.ptuning.Config(config.positions, config.encoder, config.hidden_size)

    class TransformerModel(Model):
        def __init__(self, config: ModelConfig, arrays):
            own = Config(**{name: getattr(config, name) for name in Config._fields})
            methods = {place: method(config) for place in places(config)}
            self.module = lora_torch.Transformer(
                own, methods, full=config.method == "full", device=config.device, dtype=getattr(torch, config.dtype))
            self.names = set(arrays)  # the names of the base's arrays
            self.load(arrays)

        def load(self, arrays):
            self.module.load_arrays(self.module.arrays() | {name: to_tensor(array) for name, array in arrays.items()})

        def arrays(self):
            return {name: to_array(a) for name, a in self.module.arrays().items() if name not in self.names}

        def base(self):
            return {name: to_array(a) for name, a in self.module.arrays().items() if name in self.names}

        def set_arrays(self, arrays):
            self.load(arrays)

        def forward(self, tokens, mask=None):
            device = next(self.module.parameters()).device
            masked = None if mask is None else torch.from_numpy(mask).to(device)
            self.logits = self.module(torch.from_numpy(tokens).to(device), masked)
            return to_array(self.logits)

        def backward(self, dlogits):
            if self.logits.requires_grad:
                self.logits.backward(to_tensor(dlogits, self.logits.device))
            return {name: to_array(g) for name, g in self.module.gradients().items() if g is not None}

        def zero_grad(self):
            self.module.zero_grad()

        def trainable(self):
            return {name: tuple(self.module.arrays()[name].shape) for name in self.module.gradients()}

        def step(self, lr):
            torch.optim.SGD([p for p in self.module.parameters() if p.requires_grad], lr).step()

        def merge(self):
            self.module.merge()

        def fold(self):
            self.module.fold()

    class FileLoader(TorchLoader):
        """The adapter on the model is called by the number of the load that put it there."""

        loads, name = 0, ""

        def put(self, path):
            self.loads += 1
            new = f"load{self.loads}"
            lora_torch.load_adapter(self.model, path, new)
            if self.name:
                lora_torch.detach(self.model, self.name)
            self.name = new

        def save(self, directory):
            lora_torch.save_adapter(self.model, directory, self.name)

        def merge(self):
            lora_torch.detach(self.model, merge=True)
            self.name = ""

        def inner(self, layer):
            return layer.original if hasattr(layer, "original") else layer.pre_trained_weight

    class LinearLoRALayer(TorchLayer):
        config: LayerConfig

        def around(self, linear):
            c = self.config
            return layer_of(c.method).around(linear, c.rank, c.alpha, c.dropout, c.scaling)

    class LoRATorch(Subject):
        name, version = "lora_torch", __version__
        methods = (*layer_methods(), "adapter", "prefix", "ptuning")

        def build(self, config: LayerConfig, weight, bias):
            set_seed(config)
            module = layer_of(config.method)(**arguments(config))
            layer = LinearLoRALayer(
                module, W="pre_trained_weight.weight", b="pre_trained_weight.bias" if config.bias else None,
                A="lora_A", B="lora_B",
            )
            layer.config = config
            layer.set_base(weight, bias)
            return layer

        def build_model(self, config: ModelConfig, arrays):
            set_seed(config)
            return TransformerModel(config, arrays)

        def build_loader(self, base, kinds):
            return FileLoader(base, kinds)

        def script(self, calls, spec):
            return script(calls, ["import lora_torch"], self.construction)

        def construction(self, config: LayerConfig, name: str) -> list[str]:
            made = layer_of(config.method)
            place = "lora_torch" if hasattr(lora_torch, made.__name__) else f"lora_torch.{config.method}"
            return [f"import {place}"] * (place != "lora_torch") + [
                f"{name} = " + written(f"{place}.{made.__name__}", made, **arguments(config))]

    return LoRATorch()
