"""The bottleneck adapters of AdapterHub's `adapters`, on Hugging Face's GPT-2. It has no single layers to offer here.

Its GPT-2 gives an adapter the sub-layer's output y and the residual h, and no norm, since GPT-2 has its norms first:

    DoubleSeqBnConfig    y + Ad(y) + h, behind attention and behind the MLP                                       "houlsby"
    SeqBnConfig          y + Ad(y + h) + h (original_ln_before adds h first, residual_before_ln leaves y outside)  "pfeiffer"
    ParBnConfig          y + Ad(h) + h: Ad sees h as it is before the norm, the MLP sees norm(h)                   neither
"""

from typing import Any

NEEDS = ("torch", "transformers", "adapters")
INSTALL = "in an environment of its own: pip install 'transformers>=4.57,<4.58', then pip install --no-deps adapters"
ADAPTER = "adapter"  # its name
PLACES = {  # where the library has them in a layer
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

    from conformance import gpt2
    from conformance.gpt2 import GPT2, Place
    from conformance.model import ModelConfig, places
    from conformance.subject import Subject, Unsupported

    spec = importlib.util.find_spec("adapters")
    adapters: Any = importlib.import_module("adapters")  # a type checker takes the name for this file
    adapters.__spec__ = spec  # which it leaves at None, and then find_spec raises
    logging.getLogger("adapters").setLevel(logging.ERROR)

    class AdaptersModel(GPT2):
        def switch(self, on):
            self.module.set_active_adapters(ADAPTER if on else None)

    def own_places(config: ModelConfig) -> dict[str, Place]:
        """Where the library has the arrays of the adapters."""
        found = {}
        for place in places(config):
            _, layer, part = place.split(".", 2)
            path = f"transformer.h.{layer}.{PLACES[part]}.adapters.{ADAPTER}"
            for name, field in FIELDS.items():
                matrix = name in ("down", "up")
                found[f"{place}.{name}"] = Place(f"{path}.{field}", torch.Tensor.t) if matrix else Place(f"{path}.{field}")
        return found

    def method_options(config: ModelConfig) -> Any:
        """The library's configuration. Its bottleneck is width // reduction_factor, of floats: half a unit more than the
        bottleneck rounds down to it."""
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

        def build(self, config, weight, bias):
            raise Unsupported("single layers")

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
