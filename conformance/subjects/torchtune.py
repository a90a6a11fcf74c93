"""torchtune's LoRALinear.

To merge, it makes a checkpoint of a plain layer, as its recipes do. Files hold what get_adapter_state_dict gives."""

from collections import OrderedDict

NEEDS = ("torch", "torchtune")
ENVIRONMENT = "torch-old"


def subject():
    import importlib.metadata

    import torch
    from torch import nn
    from torchtune.modules import peft
    from torchtune.training import set_default_dtype

    from conformance.record.torch_script import script, written
    from conformance.subject import LayerConfig, Subject, Unsupported
    from conformance.torch import TorchLayer, set_seed

    place = "q_proj"  # the checkpoint functions take the state of a model, and know its layers by such names

    class TorchtuneLayer(TorchLayer):
        config: LayerConfig
        plain: nn.Module | None = None  # what was loaded from the merged checkpoint

        def tensor(self, name):
            if self.plain is None or name in "AB":
                return super().tensor(name)
            return self.plain.get_parameter(self.paths[name])

        def forward(self, x):
            if self.plain is None:
                return super().forward(x)
            trained, self.module = self.module, self.plain
            try:
                return super().forward(x)
            finally:
                self.module = trained

        def merge(self):
            state = {key: value.cpu() for key, value in self.module.state_dict().items()}  # recipes/lora_finetune_single_device
            merged = peft.get_merged_lora_ckpt(state, rank=self.config.rank, alpha=self.config.alpha)
            with set_default_dtype(getattr(torch, self.config.dtype)), torch.device(self.config.device):
                plain = nn.Linear(self.config.in_features, self.config.out_features, bias=self.config.bias)
            self.plain = nn.Sequential(OrderedDict({place: plain})).requires_grad_(False)
            self.plain.load_state_dict(merged)

        def unmerge(self):
            raise Unsupported("unmerging: the merged checkpoint is that of another model")

        def save(self, directory):
            torch.save(peft.get_adapter_state_dict(self.module.state_dict()), f"{directory}/adapter_model.pt")

        def load(self, directory):
            state = torch.load(f"{directory}/adapter_model.pt", weights_only=True)
            missing, unexpected = self.module.load_state_dict(state, strict=False)
            peft.validate_missing_and_unexpected_for_lora(
                lora_attn_modules=[place], apply_lora_to_mlp=False, apply_lora_to_output=False, lora_missing=missing,
                lora_unexpected=unexpected)

    def options(config: LayerConfig) -> dict:
        return {"rank": config.rank, "alpha": config.alpha, "dropout": config.dropout, "use_bias": config.bias}

    class Torchtune(Subject):
        name, version = "torchtune", importlib.metadata.version("torchtune")
        freezes = "set_trainable_params"

        def build(self, config: LayerConfig, weight, bias):
            if config.scaling != "standard":
                raise Unsupported(f"{config.scaling} scaling")
            set_seed(config)
            with set_default_dtype(getattr(torch, config.dtype)), torch.device(config.device):
                linear = peft.LoRALinear(config.in_features, config.out_features, **options(config))
            module = nn.Sequential(OrderedDict({place: linear}))
            peft.set_trainable_params(module, peft.get_adapter_params(module))
            layer = TorchtuneLayer(
                module, W=f"{place}.weight", b=f"{place}.bias" if config.bias else None, A=f"{place}.lora_a.weight",
                B=f"{place}.lora_b.weight", transposed="AB",
            )
            layer.config = config
            layer.set_base(weight, bias)
            return layer

        def script(self, calls, spec):
            imports = [
                "from collections import OrderedDict", "import torchtune.modules.peft as peft",
                "from torchtune.training import set_default_dtype",
            ]
            return script(calls, imports, self.construction)

        def construction(self, config: LayerConfig, name: str) -> list[str]:
            made = written("peft.LoRALinear", peft.LoRALinear, config.in_features, config.out_features, **options(config))
            return [
                f"with set_default_dtype(torch.{config.dtype}), torch.device({config.device!r}):",
                f'    {name} = torch.nn.Sequential(OrderedDict({{"{place}": {made}}}))',
                f"peft.set_trainable_params({name}, peft.get_adapter_params({name}))",
            ]

    return Torchtune()
