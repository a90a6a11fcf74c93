"""mlora's Linear, in a decoder of one projection.

It has no merge. Files hold what its load_adapter reads. Its constructor asserts a dropout rate above zero, so a layer without
dropout gets the rate NONE, which is so small that nothing is dropped. It takes x as (batch, sequence, in), and only alphas that
are whole numbers.
"""

import json
import math
from types import SimpleNamespace

NEEDS = ("torch", "mlora")
ENVIRONMENT = "torch-old"
NONE = 2.0**-100
# Experiments of conformance/torch_experiments.py with the state, the parameters or the mode of the module. They would judge
# the Decoder below, which is not mlora's.
WHOLE = ("copied", "reloaded", "hold", "held", "modes", "moved", "functional", "transformed", "zeroed")


def subject():
    import importlib.metadata

    import torch
    from mlora.model import OutputLayer, get_lora_layer_weight, init_lora_layer_weight
    from mlora.modules import LLMBatchConfig, LLMModelConfig, LLMModelInput, lora_config_factory
    from mlora.modules.lora_linear import Linear
    from torch import nn

    from conformance.subject import LayerConfig, Subject, Unsupported
    from conformance.torch import TorchLayer, set_seed, to_array, to_tensor

    place, default, base = "q_proj", "default", "base"
    key = f"base_model.model.model.layers.0.self_attn.{place}.lora_"

    class Plain(nn.Identity):
        loss = None

    class Decoder(nn.Module):
        """The parts of mlora's model that its functions for adapters need. The output layer refuses unknown names."""

        layer_id_, inference = 0, False

        def __init__(self, linear: nn.Linear, device: str):
            super().__init__()
            self.linear, self.mlp_ = Linear(linear, device), SimpleNamespace(moes_={})
            self.output, self.configs, self.active = OutputLayer(), {}, default
            self.output.layers_[base] = Plain()

        def state_dict(self, *args, **kwargs):
            return {place: self.linear}, {}

        @property
        def loras(self):
            return SimpleNamespace(**self.linear.loras_)

        def init_adapter(self, config, weights=None):
            self.configs[config.adapter_name], self.output.layers_[config.adapter_name] = config, Plain()
            init_lora_layer_weight(self, LLMModelConfig(), config, weights)

        def weights(self, name: str) -> dict:
            found = {}
            get_lora_layer_weight(self, self.configs[name], found)
            return found

        def forward(self, x: torch.Tensor, names: tuple = ()) -> torch.Tensor:
            batch = x.unsqueeze(1) if names and x.ndim == 2 else x[(None,) * (3 - x.ndim)]
            if batch.ndim > 3:
                raise Unsupported("inputs of more than three dimensions")
            parts = [(name or base, i, i + 1) for i, name in enumerate(names)] or [(self.active, 0, len(batch))]
            given = LLMModelInput([LLMBatchConfig(*part) for part in parts], inference_mode_=self.inference)
            y = torch.cat([part.logits for part in self.output(self.linear(batch, given), given)])
            return y.reshape(*x.shape[:-1], y.shape[-1])

    class MloraLayer(TorchLayer):
        module: Decoder
        config: LayerConfig

        def learned(self) -> dict:
            """The parameters that mlora's trainer gives to the optimizer, under the names of conformance/subject.py."""
            found = {}
            for name in self.module.configs:
                prefix = "" if name == default else f"{name}."
                found |= {f"{prefix}{path.removeprefix(key)[0]}": p for path, p in self.module.weights(name).items()}
            return {name: p for name, p in found.items() if p.requires_grad}

        def backward(self, dy):
            learned = self.learned()
            found = super().backward(dy)
            return found | {name: to_array(p.grad.t()) for name, p in learned.items() if p.grad is not None}

        def zero_grad(self):
            super().zero_grad()
            for parameter in self.learned().values():
                parameter.grad = None

        def trainable(self):
            return super().trainable() | {name: tuple(p.shape) for name, p in self.learned().items()}

        def train(self, mode=True):
            self.module.inference = not mode  # mlora has no other modes: it calls neither train() nor eval()

        def step(self, lr):
            torch.optim.SGD(list(self.learned().values()), lr=lr).step()

        def save(self, directory):
            torch.save(self.module.weights(default), f"{directory}/adapter_model.bin")
            with open(f"{directory}/adapter_config.json", "w") as file:
                json.dump(self.module.configs[default].export(), file)

        def load(self, directory):
            with open(f"{directory}/adapter_config.json") as file:
                config = lora_config_factory(json.load(file))
            config.adapter_name = default
            self.module.init_adapter(config, torch.load(f"{directory}/adapter_model.bin"))

        def as_module(self, experiment, given):
            if experiment in WHOLE:
                raise Unsupported(f"{experiment}: mlora's Linear keeps its adapters in a plain dict, not among its modules")
            return super().as_module(experiment, given)

        def add_adapter(self, name, arrays, alpha):
            config = options(self.config, name, arrays["A"].shape[1], alpha)
            weights = {f"{key}{part}.weight": to_tensor(array.T.copy()) for part, array in arrays.items()}
            self.module.init_adapter(config, weights)
            self.paths |= {f"{name}.{part}": f"loras.{name}.lora_{part.lower()}_.weight" for part in "AB"}
            self.transposed = (*self.transposed, f"{name}.A", f"{name}.B")

        def remove_adapter(self, name):
            for held in (self.module.configs, self.module.output.layers_, self.module.linear.loras_):
                held.pop(name)  # as mlora's unload_adapter does

        def adapter(self):
            return {name: to_array(self.tensor(name)) for name in self.paths if name[-1] in "AB"}

        def activate(self, weights):
            if len(weights) > 1 or any(weight != 1 for weight in weights.values()):
                raise Unsupported("several adapters on one sample, and weights of adapters")
            name = next(iter(weights), base)
            self.module.output(torch.empty(0), LLMModelInput([LLMBatchConfig(name, 0, 0)]))
            self.module.active = name

        def forward_mixed(self, x, names):
            return to_array(self.module(to_tensor(x, self.tensor("W").device), names))

    def options(config: LayerConfig, name: str, rank: int, alpha: float):
        if math.isfinite(alpha) and alpha % 1:
            raise Unsupported("an alpha that is not a whole number")
        return lora_config_factory({
            "name": name, "r": rank, "lora_alpha": int(alpha) if math.isfinite(alpha) else alpha,
            "lora_dropout": config.dropout or NONE, "target_modules": [place], "use_rslora": config.scaling == "rslora",
        })

    class Mlora(Subject):
        name, version = "mlora", importlib.metadata.version("mlora")

        def build(self, config: LayerConfig, weight, bias):
            if config.dtype == "float64":
                raise Unsupported("float64: mlora loads float32, float16 and bfloat16")
            set_seed(config)
            dtype = getattr(torch, config.dtype)
            linear = nn.Linear(config.in_features, config.out_features, bias=config.bias, dtype=dtype)
            module = Decoder(linear, config.device)
            module.init_adapter(options(config, default, config.rank, config.alpha))
            layer = MloraLayer(
                module, W="linear.base_layer_.weight", b="linear.base_layer_.bias" if config.bias else None,
                A="loras.default.lora_a_.weight", B="loras.default.lora_b_.weight", transposed="AB",
            )
            layer.config = config
            layer.set_base(weight, bias)
            return layer

    return Mlora()
