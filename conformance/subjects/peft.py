"""PEFT's LoRA on one nn.Linear, through get_peft_model, merge_adapter, save_pretrained and load_adapter."""

NEEDS = ("torch", "peft")


def subject():
    import peft
    import torch
    from torch import nn

    from conformance.subject import LayerConfig, Subject
    from conformance.torch import TorchLayer, to_tensor
    from conformance.torch_script import dtype_of, script, tensor, written

    base = "base_model.model.0"

    def keys(arrays) -> dict:
        """In the layout and under the names of an adapter's file."""
        return {f"{base}.lora_{name}.weight": array.T.copy() for name, array in arrays.items()}

    class PeftLayer(TorchLayer):
        module: peft.PeftModel

        def set_adapter(self, arrays):
            tensors = {key: to_tensor(array) for key, array in keys(arrays).items()}
            peft.set_peft_model_state_dict(self.module, tensors)

        def set_adapter_source(self, name, arrays):
            tensors = [f'    "{key}": {tensor(array, *dtype_of(array))},' for key, array in keys(arrays).items()]
            return [f"peft.set_peft_model_state_dict({name}, {{", *tensors, "})"]

        def merge(self):
            self.module.merge_adapter()

        def unmerge(self):
            self.module.unmerge_adapter()

        def save(self, directory):
            self.module.save_pretrained(str(directory))

        def load(self, directory):
            self.module.load_adapter(str(directory), "default", is_trainable=True)

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
            layer.set_base(weight, bias)
            return layer

        def script(self, calls, spec):
            return script(calls, ["import peft", "from torch import nn"], self.construction)

        def construction(self, config: LayerConfig, name: str) -> list[str]:
            linear = written("nn.Linear", nn.Linear, config.in_features, config.out_features, **linear_options(config))
            made = written("peft.LoraConfig", peft.LoraConfig, **options(config))
            return [f"options = {made}", f"{name} = peft.get_peft_model(nn.Sequential({linear}), options)"]

    return Peft()
