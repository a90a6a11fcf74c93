"""Qwix's LoraProvider on Flax's nnx.Linear.

It has no merge. Files hold its nnx.LoRAParam state, saved with Orbax. Its dropout needs `qwix_rngs`, which are set for each
forward pass."""
# Where JAX is not installed, pyright reads a stub of it that lacks most names.
# pyright: reportAttributeAccessIssue=false

from typing import Any

NEEDS = ("jax", "flax", "qwix", "orbax")
ENVIRONMENT = "jax"


def subject():
    import functools
    import importlib
    import importlib.metadata
    from dataclasses import replace

    import jax
    from flax import nnx

    from conformance.drivers.jax import JaxLayer
    from conformance.subject import LayerConfig, Subject, Unsupported

    qwix: Any = importlib.import_module("qwix")  # a type checker takes the name for this file

    def adapted(config: LayerConfig):
        linear = nnx.Linear(
            config.in_features, config.out_features, use_bias=config.bias, param_dtype=config.dtype, rngs=nnx.Rngs(config.seed),
            kernel_init=nnx.initializers.zeros,  # it is overwritten, and a draw takes long to compile
        )
        rule = qwix.LoraRule(module_path=".*", rank=config.rank, alpha=config.alpha, dropout=config.dropout)
        x = jax.numpy.zeros((1, config.in_features), config.dtype)
        return qwix.apply_lora_to_model(linear, qwix.LoraProvider([rule]), x, rngs=nnx.Rngs(config.seed))

    @functools.cache  # Qwix makes a class per module; the cache keeps equal ones equal, so that they are compiled once
    def parts(config: LayerConfig):
        return nnx.split(nnx.eval_shape(lambda: adapted(config)), nnx.LoRAParam, ...)

    def apply(graph, trained, frozen, x, key):
        module = nnx.merge(graph, trained, frozen)
        if key is not None:
            module.set_attributes(qwix_rngs=nnx.Rngs(dropout=key))
        return module(x)

    class QwixLayer(JaxLayer):
        config: LayerConfig
        passes = 0

        def key(self):
            if not self.config.dropout:
                return None
            self.passes += 1
            return jax.random.fold_in(jax.random.key(self.config.seed), self.passes)

        def train(self, mode=True):
            module = nnx.merge(self.static, self._trained, self.frozen)
            module.train() if mode else module.eval()
            self.static, self._trained, self.frozen = nnx.split(module, nnx.LoRAParam, ...)

    class Qwix(Subject):
        name, version = "qwix", importlib.metadata.version("qwix")
        freezes = "the filter nnx.LoRAParam"

        def build(self, config: LayerConfig, weight, bias):
            if config.scaling != "standard":
                raise Unsupported(f"{config.scaling} scaling")
            graph, trained, frozen = parts(replace(config, seed=0))
            layer = QwixLayer(
                apply, graph, lambda: nnx.state(adapted(config), nnx.LoRAParam), trained, frozen,
                W="kernel", b="bias" if config.bias else None, A="kernel_lora_a", B="kernel_lora_b", transposed="W",
            )
            layer.config = config
            layer.set_base(weight, bias)
            return layer

    return Qwix()
