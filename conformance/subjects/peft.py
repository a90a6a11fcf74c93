"""PEFT's LoRA on one nn.Linear, through get_peft_model, merge_adapter, save_pretrained and load_adapter."""

from typing import Any

NEEDS = ("torch", "peft")


def subject():
    import peft
    import torch
    from torch import nn

    from conformance.subject import LayerConfig, Subject
    from conformance.torch import TorchLayer, to_array, to_tensor
    from conformance.torch_script import dtype_of, script, tensor, written

    base = "base_model.model.0"

    def keys(arrays) -> dict:
        """In the layout and under the names of an adapter's file."""
        return {f"{base}.lora_{name}.weight": array.T.copy() for name, array in arrays.items()}

    class PeftLayer(TorchLayer):
        module: Any  # a peft.PeftModel, whose attributes are those of torch.nn.Module to a type checker
        config: LayerConfig

        @property
        def measured(self):
            return self.module.base_model.model[0]

        def set_adapter(self, arrays):
            tensors = {key: to_tensor(array) for key, array in keys(arrays).items()}
            peft.set_peft_model_state_dict(self.module, tensors)

        def set_adapter_source(self, name, arrays, *adapter):
            tensors = [f'    "{key}": {tensor(array, *dtype_of(array))},' for key, array in keys(arrays).items()]
            return [f"peft.set_peft_model_state_dict({name}, {{", *tensors, "}" + "".join(f", {a!r}" for a in adapter) + ")"]

        def merge(self):
            self.module.merge_adapter()

        def unmerge(self):
            self.module.unmerge_adapter()

        def save(self, directory):
            self.module.save_pretrained(str(directory))

        def load(self, directory):
            self.module.load_adapter(str(directory), "default", is_trainable=True)

        def further(self, arrays, alpha):
            return {**options(self.config), "r": arrays["A"].shape[1], "lora_alpha": alpha}

        def add_adapter(self, name, arrays, alpha):
            self.module.add_adapter(name, peft.LoraConfig(**self.further(arrays, alpha)))
            tensors = {key: to_tensor(array) for key, array in keys(arrays).items()}
            peft.set_peft_model_state_dict(self.module, tensors, name)
            self.paths |= {f"{name}.{part}": f"{base}.lora_{part}.{name}.weight" for part in "AB"}
            self.transposed = (*self.transposed, f"{name}.A", f"{name}.B")

        def add_adapter_source(self, module, name, arrays, alpha):
            made = written("peft.LoraConfig", peft.LoraConfig, **self.further(arrays, alpha))
            return [f"{module}.add_adapter({name!r}, {made})", *self.set_adapter_source(module, arrays, name)]

        def remove_adapter(self, name):
            self.module.delete_adapter(name)

        def activate(self, weights):
            if len(weights) == 1:
                self.module.set_adapter(*weights)
            else:
                self.module.base_model.set_adapter(list(weights))
            for name, weight in weights.items():
                self.module.base_model.model[0].set_scale(name, weight)
            enable = self.module.base_model.enable_adapter_layers if weights else self.module.base_model.disable_adapter_layers
            enable()

        def activate_source(self, module, weights):
            one = f"{module}.set_adapter({next(iter(weights), '')!r})"
            lines = [one if len(weights) == 1 else f"{module}.base_model.set_adapter({list(weights)})"]
            inner = f"{module}.base_model.model[0]"
            lines += [f"{inner}.set_scale({name!r}, {weight})" for name, weight in weights.items()]
            return [*lines, f"{module}.base_model.{'enable' if weights else 'disable'}_adapter_layers()"]

        def combine(self, name, weights):
            self.module.base_model.add_weighted_adapter(list(weights), list(weights.values()), name, "cat")

        def forward_mixed(self, x, names):
            return to_array(self.module(to_tensor(x), adapter_names=mixed(names)))

        def forward_mixed_source(self, module, x, names):
            return [f"{module}({tensor(x, *dtype_of(x))}, adapter_names={mixed(names)})"]

    def mixed(names) -> list[str]:
        return ["__base__" if name is None else name for name in names]

    def linear_options(config: LayerConfig) -> dict:
        return {"bias": config.bias, "device": config.device, "dtype": getattr(torch, config.dtype)}

    def options(config: LayerConfig) -> dict:
        return {
            "r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout, "target_modules": ["0"],
            "use_rslora": config.scaling == "rslora",
        }

    class Peft(Subject):
        name, version = "peft", peft.__version__

        def build(self, config: LayerConfig, weight, bias):
            torch.manual_seed(config.seed)
            linear = nn.Linear(config.in_features, config.out_features, **linear_options(config))
            module = peft.get_peft_model(nn.Sequential(linear), peft.LoraConfig(**options(config)))
            layer = PeftLayer(
                module, W=f"{base}.base_layer.weight", b=f"{base}.base_layer.bias" if config.bias else None,
                A=f"{base}.lora_A.default.weight", B=f"{base}.lora_B.default.weight", transposed="AB",
            )
            layer.config = config
            layer.set_base(weight, bias)
            return layer

        def script(self, calls, spec):
            return script(calls, ["import peft", "from torch import nn"], self.construction)

        def construction(self, config: LayerConfig, name: str) -> list[str]:
            linear = written("nn.Linear", nn.Linear, config.in_features, config.out_features, **linear_options(config))
            made = written("peft.LoraConfig", peft.LoraConfig, **options(config))
            return [f"options = {made}", f"{name} = peft.get_peft_model(nn.Sequential({linear}), options)"]

    return Peft()
