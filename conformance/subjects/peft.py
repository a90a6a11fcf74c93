"""PEFT: LoRA on one nn.Linear; LoRA, prefixes and prompts on GPT-2.

The layer is driven through get_peft_model, merge_adapter, save_pretrained and load_adapter. LoRA, prefix tuning, prompt tuning
and P-tuning are also put on Hugging Face's GPT-2."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

NEEDS = ("torch", "peft")
ENVIRONMENT = "torch"
LSTM = {"W": "weight_ih", "U": "weight_hh", "b": "bias_ih"}  # names in torch, for one layer and one direction


def subject():
    import peft
    import torch
    from torch import nn

    from conformance.drivers import gpt2
    from conformance.drivers.gpt2 import GPT2, Place
    from conformance.drivers.torch_loader import TorchLoader
    from conformance.model import ModelConfig, places
    from conformance.record.torch_script import dtype_of, script, tensor, written
    from conformance.subject import LayerConfig, Subject, Unsupported
    from conformance.torch import TorchLayer, set_seed, to_array, to_tensor

    base = "base_model.model.0"

    def keys(arrays) -> dict:
        """The arrays in the layout and under the names of an adapter's file."""
        return {f"{base}.lora_{name}.weight": array.T.copy() for name, array in arrays.items()}

    class PeftLayer(TorchLayer):
        module: Any  # a peft.PeftModel, whose attributes are those of torch.nn.Module to a type checker
        config: LayerConfig

        @property
        def measured(self):
            return self.module.base_model.model[0]

        def around(self, linear):
            return peft.get_peft_model(nn.Sequential(linear), peft.LoraConfig(**options(self.config)))

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
            return to_array(self.module(to_tensor(x, self.tensor("W").device), adapter_names=mixed(names)))

        def forward_mixed_source(self, module, x, names):
            return [f"{module}({tensor(x, *dtype_of(x))}, adapter_names={mixed(names)})"]

    def mixed(names) -> list[str]:
        return ["__base__" if name is None else name for name in names]

    def one_bias(lstm: nn.LSTM) -> None:
        """Sets the LSTM's second bias to zero and freezes it. torch's LSTM adds two biases where the definition has one."""
        for name, parameter in lstm.named_parameters():
            if name.startswith("bias_hh"):
                nn.init.zeros_(parameter.requires_grad_(False))

    def linear_options(config: LayerConfig) -> dict:
        return {"bias": config.bias, "device": config.device, "dtype": getattr(torch, config.dtype)}

    def options(config: LayerConfig) -> dict:
        return {
            "r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout, "target_modules": ["0"],
            "use_rslora": config.scaling == "rslora",
        }

    class PeftModel(GPT2):
        config: ModelConfig
        off: ExitStack | None = None  # while the method is switched off

        def merge(self):
            self.module.merge_adapter()

        def fold(self):
            """Replaces the network by what save_pretrained stores of it, loaded into a model as from_pretrained makes it."""
            stored = peft.get_peft_model_state_dict(self.module)
            options = self.module.active_peft_config
            options.inference_mode = True
            module: Any = peft.PeftModelForCausalLM(self.module.get_base_model(), options)
            module.to(getattr(torch, self.config.dtype)).eval()
            peft.set_peft_model_state_dict(module, stored)
            self.module, self.own_at = module, own_places(replace(self.config, hidden_size=None, encoder="embedding"))

        def switch(self, on):
            if on and self.off is not None:
                self.off.close()
                self.off = None
            if not on and self.off is None:
                self.off = ExitStack()
                self.off.enter_context(self.module.disable_adapter())

    class PeftPrompted(PeftModel):
        """Drops the logits of the prompts: PEFT puts prompts first, and gives logits for them, too."""

        def forward(self, tokens, mask=None):
            super().forward(tokens, mask)
            self.logits = self.logits[:, self.logits.shape[1] - tokens.shape[1]:]
            return to_array(self.logits)

    def own_places(config: ModelConfig) -> dict[str, Place]:
        """Where PEFT stores the arrays of the method."""
        encoder = "prompt_encoder.default"
        if config.method == "lora":
            factors = {place: f"base_model.model.{gpt2.path_of(place)}.lora_" for place in places(config)}
            return {f"{place}.{part}": Place(f"{path}{part}.default.weight", torch.Tensor.t)
                    for place, path in factors.items() for part in "AB"}
        if config.method == "prefix" and config.hidden_size is None:
            def part(i: int) -> Place:
                """The keys (i = 0) or the values (1). A row is keys of layer 0, values of layer 0, keys of layer 1, …"""
                shape = config.layers, 2, -1
                return Place(f"{encoder}.embedding.weight", lambda w: w.unflatten(1, shape)[:, :, i].transpose(0, 1))

            return {"prefix.keys": part(0), "prefix.values": part(1)}
        paths = {"embedding": "embedding.weight"}
        if config.hidden_size is not None:
            head = "transform" if config.method == "prefix" else "mlp_head"
            paths |= {"W1": f"{head}.0.weight", "b1": f"{head}.0.bias", "W2": f"{head}.2.weight", "b2": f"{head}.2.bias"}
        if config.encoder == "lstm":
            ways = {"forward": "", "backward": "_reverse"}
            paths |= {f"{way}_{name}": f"lstm_head.{path}_l0{end}" for way, end in ways.items() for name, path in LSTM.items()}
        return {f"{places(config)[0]}.{name}": Place(f"{encoder}.{path}") for name, path in paths.items()}

    def method_options(config: ModelConfig) -> Any:
        """PEFT's configuration of the method."""
        if config.method == "lora":
            targets = [gpt2.path_of(place) for place in places(config)]
            return peft.LoraConfig(
                r=config.rank, lora_alpha=config.alpha, target_modules=targets, fan_in_fan_out=True,  # pyright: ignore
                task_type="CAUSAL_LM")
        if config.method == "prefix":
            return peft.PrefixTuningConfig(
                task_type="CAUSAL_LM", num_virtual_tokens=config.length, prefix_projection=config.hidden_size is not None,
                encoder_hidden_size=config.hidden_size)  # pyright: ignore[reportArgumentType]
        if config.method != "ptuning":
            raise Unsupported("bottleneck adapters: PEFT has none")
        n = len(config.positions)
        if config.positions != tuple(range(n)):
            raise Unsupported("prompts anywhere but before the tokens")
        if config.encoder == "embedding":
            return peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=n)
        if config.encoder == "mlp":
            raise Unsupported("an MLP of two linear layers as the prompts' encoder: PEFT's has three")
        return peft.PromptEncoderConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=n, encoder_reparameterization_type="LSTM",  # pyright: ignore
            encoder_hidden_size=config.hidden_size, encoder_num_layers=1)  # pyright: ignore[reportArgumentType]

    class FileLoader(TorchLoader):
        """The first adapter makes a PeftModel of the model. Each further one is loaded beside the old one, which is deleted."""

        loads, peft_model, name = 0, None, ""

        def put(self, path):
            self.loads += 1
            new = f"load{self.loads}"
            if self.peft_model is None:
                self.peft_model = peft.PeftModel.from_pretrained(self.model, str(path), adapter_name=new)
            else:
                self.peft_model.load_adapter(str(path), new)
                self.peft_model.set_adapter(new)
                self.peft_model.delete_adapter(self.name)
            self.name = new

        def save(self, directory):
            assert self.peft_model is not None
            self.peft_model.save_pretrained(str(directory))
            own = Path(directory) / self.name  # where an adapter goes that is not called "default"
            for path in own.iterdir():
                path.rename(Path(directory) / path.name)
            own.rmdir()

        def merge(self):
            assert self.peft_model is not None
            self.model = self.peft_model.merge_and_unload()

        def inner(self, layer):
            return layer.original_module if hasattr(layer, "original_module") else layer.base_layer

    class Peft(Subject):
        name, version = "peft", peft.__version__
        methods = ("lora", "prefix", "ptuning")
        freezes = "get_peft_model"

        def build(self, config: LayerConfig, weight, bias):
            set_seed(config)
            linear = nn.Linear(config.in_features, config.out_features, **linear_options(config))
            module = peft.get_peft_model(nn.Sequential(linear), peft.LoraConfig(**options(config)))
            layer = PeftLayer(
                module, W=f"{base}.base_layer.weight", b=f"{base}.base_layer.bias" if config.bias else None,
                A=f"{base}.lora_A.default.weight", B=f"{base}.lora_B.default.weight", transposed="AB",
            )
            layer.config = config
            layer.set_base(weight, bias)
            return layer

        def build_model(self, config: ModelConfig, arrays):
            if config.method in ("none", "full"):
                return gpt2.plain(config, arrays)
            module: Any = peft.get_peft_model(gpt2.build(config, arrays), method_options(config))
            module.to(getattr(torch, config.dtype)).eval()
            if config.encoder == "lstm":
                one_bias(module.prompt_encoder.default.lstm_head)
            lora = config.method == "lora"
            root, inner = ("base_model.model.", places(config)) if lora else ("base_model.", ())
            kind = PeftPrompted if config.method == "ptuning" else PeftModel
            model = kind(module, gpt2.base_places(arrays, root, inner), own_places(config))
            model.config = config
            return model

        def build_loader(self, base, kinds):
            return FileLoader(base, kinds)

        def script(self, calls, spec):
            return script(calls, ["import peft", "from torch import nn"], self.construction)

        def construction(self, config: LayerConfig, name: str) -> list[str]:
            linear = written("nn.Linear", nn.Linear, config.in_features, config.out_features, **linear_options(config))
            made = written("peft.LoraConfig", peft.LoraConfig, **options(config))
            return [f"options = {made}", f"{name} = peft.get_peft_model(nn.Sequential({linear}), options)"]

    return Peft()
