"""AdapterHub's `adapters`: LoRA, and bottleneck adapters on GPT-2.

Its LoRA is tested on the down-projection of a tiny Llama, its bottleneck adapters on Hugging Face's GPT-2. The LoRA merges with
merge_adapter and unmerges with reset_adapter. Its files are written by save_adapter.

GPT-2 has its norms before each part, so an adapter gets the part's output y and the residual h, and no norm:

    DoubleSeqBnConfig    y + Ad(y) + h, behind attention and behind the MLP                                       "houlsby"
    SeqBnConfig          y + Ad(y + h) + h (original_ln_before adds h first, residual_before_ln leaves y outside)  "pfeiffer"
    ParBnConfig          y + Ad(h) + h: Ad sees h as it is before the norm, the MLP sees norm(h)                   neither
"""

from typing import Any

NEEDS = ("torch", "transformers", "adapters")
ENVIRONMENT = "torch-old"
ADAPTER = "adapter"  # the name of the adapter in the library
PLACES = {  # where the library has the adapters in a layer
    "attention.output": "attention_adapters", "mlp.output": "output_adapters", "output": "output_adapters",
}
FIELDS = {
    "down": "adapter_down.0.weight", "down_bias": "adapter_down.0.bias", "up": "adapter_up.weight",
    "up_bias": "adapter_up.bias",
}


def subject():
    import importlib.metadata
    import importlib.util
    import logging

    import torch
    from torch import nn
    from transformers import LlamaConfig, LlamaModel

    from conformance.drivers import gpt2
    from conformance.drivers.gpt2 import GPT2, Place
    from conformance.model import ModelConfig, places
    from conformance.subject import LayerConfig, Subject, Unsupported
    from conformance.torch import TorchLayer, set_seed, to_array, to_tensor

    spec = importlib.util.find_spec("adapters")
    adapters: Any = importlib.import_module("adapters")  # a type checker takes the name for this file
    adapters.__spec__ = spec  # the library sets it to None, and find_spec would then raise
    logging.getLogger("adapters").setLevel(logging.ERROR)
    composition: Any = importlib.import_module("adapters.composition")
    ForwardContext: Any = importlib.import_module("adapters.context").ForwardContext
    lora, default = "model.layers.0.mlp.down_proj", "default"

    class Alone(nn.Module):
        """Only the down-projection. It gets (batch, sequence, width), as in a model."""

        def __init__(self, model: Any):
            super().__init__()
            self.model = model

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batch = x[(None,) * (3 - x.ndim)]
            with ForwardContext(self.model, batch):
                y = self.model.layers[0].mlp.down_proj(batch)
            return y.reshape(*x.shape[:-1], y.shape[-1])

    class AdaptersLayer(TorchLayer):
        module: Alone
        config: LayerConfig
        active: dict[str, float] = {default: 1.0}

        @property
        def measured(self):
            return self.module.model.layers[0].mlp.down_proj

        def merge(self):
            if list(self.active.values()) != [1]:
                raise Unsupported("merging several adapters, and weights of adapters")
            self.module.model.merge_adapter(*self.active)

        def unmerge(self):
            self.module.model.reset_adapter()

        def save(self, directory):
            self.module.model.save_adapter(str(directory), default)

        def load(self, directory):
            self.module.model.load_adapter(str(directory))

        def adapter(self):
            return {name: to_array(self.tensor(name)) for name in self.paths if name[-1] in "AB"}

        def add_adapter(self, name, arrays, alpha):
            self.module.model.add_adapter(name, config=layer_options(self.config, arrays["A"].shape[1], alpha))
            self.paths |= {f"{name}.{part}": f"{lora}.loras.{name}.lora_{part}" for part in "AB"}
            self.transposed = (*self.transposed, f"{name}.A", f"{name}.B")
            self.set_adapter({f"{name}.{part}": array for part, array in arrays.items()})

        def remove_adapter(self, name):
            self.module.model.delete_adapter(name)
            for part in "AB":
                del self.paths[f"{name}.{part}"]

        def activate(self, weights):
            setup = list(weights) or None
            if len(weights) > 1 or any(weight != 1 for weight in weights.values()):
                setup = composition.Average(*weights, weights=list(weights.values()), normalize_weights=False)
            self.module.model.set_active_adapters(setup)
            self.active = dict(weights)

        def forward_mixed(self, x, names):
            if None in names:
                raise Unsupported("samples of a mixed batch that have no adapter")
            before = self.module.model.active_adapters
            self.module.model.set_active_adapters(composition.BatchSplit(*names, batch_sizes=[1] * len(names)))
            tensor = to_tensor(x, self.tensor("W").device)
            y = to_array(self.module(tensor.unsqueeze(1) if x.ndim == 2 else tensor))
            self.module.model.set_active_adapters(before)
            return y.reshape(*x.shape[:-1], -1)

    def layer_options(config: LayerConfig, rank: int, alpha: float) -> Any:
        return adapters.LoRAConfig(
            selfattn_lora=False, intermediate_lora=True, r=rank, alpha=alpha, dropout=config.dropout, dtype=config.dtype)

    class AdaptersModel(GPT2):
        def switch(self, on):
            self.module.set_active_adapters(ADAPTER if on else None)

    def own_places(config: ModelConfig) -> dict[str, Place]:
        """Where the library stores the arrays of the adapters."""
        found = {}
        for place in places(config):
            _, layer, part = place.split(".", 2)
            path = f"transformer.h.{layer}.{PLACES[part]}.adapters.{ADAPTER}"
            for name, field in FIELDS.items():
                matrix = name in ("down", "up")
                found[f"{place}.{name}"] = Place(f"{path}.{field}", torch.Tensor.t) if matrix else Place(f"{path}.{field}")
        return found

    def method_options(config: ModelConfig) -> Any:
        """The library's configuration. It computes the bottleneck as width // reduction_factor, in floats. So the factor is
        made for half a unit more than the bottleneck, which rounds down to the bottleneck."""
        if config.form == "parallel":
            raise Unsupported("adapters beside the MLP that see what it sees: ParBnConfig has them see it before the norm")
        options = {
            "reduction_factor": config.width / (config.bottleneck + 0.5), "scaling": float(config.adapter_scale),
            "non_linearity": {"gelu": "gelu_new", "relu": "relu"}[config.nonlinearity],
            "init_weights": {"near": "houlsby", "zero": "mam_adapter"}[config.start],
            "ln_before": False, "ln_after": False, "original_ln_after": True, "residual_before_ln": True,
        }
        if config.form == "pfeiffer":
            return adapters.SeqBnConfig(original_ln_before=True, **options)
        return adapters.DoubleSeqBnConfig(original_ln_before=False, **options)

    class Adapters(Subject):
        name, version = "adapters", importlib.metadata.version("adapters")
        methods = ("lora", "adapter")
        freezes = "train_adapter"

        def build(self, config: LayerConfig, weight, bias):
            if config.scaling != "standard":
                raise Unsupported(f"{config.scaling} scaling")
            set_seed(config)
            model: Any = LlamaModel(LlamaConfig(
                vocab_size=2, hidden_size=config.out_features, intermediate_size=config.in_features, num_hidden_layers=1,
                num_attention_heads=1, head_dim=2, mlp_bias=config.bias))
            model.to(device=config.device, dtype=getattr(torch, config.dtype))
            adapters.init(model)
            model.add_adapter(default, config=layer_options(config, config.rank, config.alpha))
            model.train_adapter(default)
            layer = AdaptersLayer(
                Alone(model), W=f"{lora}.weight", b=f"{lora}.bias" if config.bias else None,
                A=f"{lora}.loras.{default}.lora_A", B=f"{lora}.loras.{default}.lora_B", transposed="AB",
            )
            layer.config = config
            layer.set_base(weight, bias)
            return layer

        def build_model(self, config: ModelConfig, arrays):
            if config.method in ("none", "full"):
                return gpt2.plain(config, arrays)
            if config.method != "adapter":
                raise Unsupported(f"{config.method}: only bottleneck adapters are driven")
            module, options = gpt2.build(config, arrays), method_options(config)
            adapters.init(module)
            module.add_adapter(ADAPTER, config=options)
            module.train_adapter(ADAPTER)
            module.to(device=config.device, dtype=getattr(torch, config.dtype)).eval()
            return AdaptersModel(module, gpt2.base_places(arrays), own_places(config))

    return Adapters()
