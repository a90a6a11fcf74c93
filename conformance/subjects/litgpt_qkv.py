"""LitGPT's LoRAQKVLinear: LoRA on a fused query, key and value.

The layer under test is the value part, with two heads in one query group. Query and value have an adapter, the key has none.
The outputs of query and key are not examined. Their weights and factors are not zero, so that a leak from them into the value
shows. The library accepts x only as (batch, context, in), so x is reshaped.
"""

from typing import Any

NEEDS = ("torch", "litgpt")
ENVIRONMENT = "torch"
HEADS, GROUPS = 2, 1
ROWS = HEADS + 2 * GROUPS  # rows of the fused matrix, in sizes of a head


def subject():
    import importlib
    import importlib.metadata

    import torch

    from conformance.subject import LayerConfig, Subject, Unsupported
    from conformance.torch import TorchLayer, set_seed, to_array, to_tensor

    lora: Any = importlib.import_module("litgpt.lora")

    class ValueLayer(TorchLayer):
        """Drives the value part of the fused layer: the last rows of each tensor."""

        module: Any
        rows: dict[str, int]

        def part(self, name: str, whole: torch.Tensor) -> torch.Tensor:
            """The rows of the value, in the library's layout."""
            return whole[-self.rows[name]:]

        def tensor(self, name):
            stored = super().tensor(name)
            return self.part(name, stored.t()).t() if name in self.transposed else self.part(name, stored)

        def stored(self):
            return {self.paths[name]: to_array(self.tensor(name).t()) for name in "AB"}

        def forward(self, x):
            self._x = to_tensor(x, self.module.linear.weight.device).requires_grad_(self._x_needs_grad)
            shape = self._x.shape
            batch = self._x.flatten(0, -3) if len(shape) > 3 else self._x[(None,) * (3 - len(shape))]
            self._y = y = self.module(batch)[..., -self.rows["W"]:].reshape(*shape[:-1], self.rows["W"])
            return to_array(y)

        def backward(self, dy):
            found = super().backward(dy)
            for name in {"A", "B"} & set(found):
                whole = to_tensor(found[name])
                found[name] = to_array(self.part(name, whole.t()).t())
                others = whole.t()[:-self.rows[name]]
                if others.any():
                    found[f"{self.paths[name]} of the query"] = to_array(others)
            return found

        def trainable(self):
            shapes = super().trainable()
            return shapes | {name: tuple(self.tensor(name).t().shape) for name in {"A", "B"} & set(shapes)}

        def save(self, directory):
            state = {key: value for key, value in self.module.state_dict().items() if lora.lora_filter(key, value)}
            torch.save({"model": state}, f"{directory}/lit_model.pth.lora")

        def load(self, directory):
            state = torch.load(f"{directory}/lit_model.pth.lora", mmap=True)["model"]
            self.module.load_state_dict(state, strict=False)

    class LitGptQkv(Subject):
        name, version = "litgpt_qkv", importlib.metadata.version("litgpt")
        freezes = "mark_only_lora_as_trainable"

        def build(self, config: LayerConfig, weight, bias):
            if config.scaling != "standard":
                raise Unsupported(f"{config.scaling} scaling")
            set_seed(config)
            module = lora.LoRAQKVLinear(
                config.in_features, ROWS * config.out_features, head_size=config.out_features, n_head=HEADS,
                n_query_groups=GROUPS, r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout,
                enable_lora=(True, False, True), bias=config.bias,
            )
            lora.mark_only_lora_as_trainable(module)
            if config.rank:
                torch.nn.init.ones_(module.lora_B[:HEADS * config.out_features].detach())
            module.to(config.device, getattr(torch, config.dtype))
            layer = ValueLayer(
                module, W="linear.weight", b="linear.bias" if config.bias else None, A="lora_A", B="lora_B", transposed="AB"
            )
            layer.rows = {"W": config.out_features, "b": config.out_features, "A": config.rank, "B": config.out_features}
            layer.set_base(weight, bias)
            return layer

    return LitGptQkv()
