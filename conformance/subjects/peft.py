"""PEFT's LoRA on one nn.Linear, through get_peft_model, merge_adapter, save_pretrained and load_adapter."""

NEEDS = ("torch", "peft")


def subject():
    import peft
    import torch
    from torch import nn

    from conformance.subject import LayerConfig, Subject
    from conformance.torch import TorchLayer, to_tensor

    base = "base_model.model.linear"

    class Model(nn.Module):
        def __init__(self, linear: nn.Linear):
            super().__init__()
            self.linear = linear

        def forward(self, x):
            return self.linear(x)

    class PeftLayer(TorchLayer):
        module: peft.PeftModel

        def set_adapter(self, arrays):
            tensors = {f"{base}.lora_{name}.weight": to_tensor(array.T.copy()) for name, array in arrays.items()}
            peft.set_peft_model_state_dict(self.module, tensors)

        def merge(self):
            self.module.merge_adapter()

        def unmerge(self):
            self.module.unmerge_adapter()

        def save(self, directory):
            self.module.save_pretrained(str(directory))

        def load(self, directory):
            self.module.load_adapter(str(directory), "default", is_trainable=True)

    class Peft(Subject):
        name, version = "peft", peft.__version__

        def build(self, config: LayerConfig, weight, bias):
            torch.manual_seed(config.seed)
            linear = nn.Linear(
                config.in_features, config.out_features, config.bias, device=config.device,
                dtype=getattr(torch, config.dtype),
            )
            options = peft.LoraConfig(
                r=config.rank, lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType] any number works
                lora_dropout=config.dropout, target_modules=["linear"],
                use_rslora=config.scaling == "rslora",
            )
            module = peft.get_peft_model(Model(linear), options)
            layer = PeftLayer(
                module, W=f"{base}.base_layer.weight", b=f"{base}.base_layer.bias" if config.bias else None,
                A=f"{base}.lora_A.default.weight", B=f"{base}.lora_B.default.weight", transposed="AB",
            )
            layer.set_base(weight, bias)
            return layer

    return Peft()
