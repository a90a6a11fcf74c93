"""MLoRAx on one Dense of flax.linen.

`apply_fn` merges in every forward pass. `merge_fn` gives merged parameters for the base model, and cannot be undone. Files hold
the trainable parameters, saved with Orbax."""
# Where JAX is not installed, pyright reads a stub of it that lacks most names.
# pyright: reportAttributeAccessIssue=false

from typing import Any

NEEDS = ("jax", "flax", "mlorax", "orbax")
ENVIRONMENT = "jax"


def subject():
    import importlib
    import importlib.metadata
    from dataclasses import replace

    import jax
    from flax import linen as nn

    from conformance.drivers.jax import JaxLayer, to_jax
    from conformance.subject import LayerConfig, Subject, Unsupported

    mlorax: Any = importlib.import_module("mlorax")  # a type checker takes the name for this file

    def init(config: LayerConfig, frozen):
        """What lora_init gives: the trainable parameters, the model as a function of them, and the merge."""
        spec = mlorax.LoRASpec(
            rank=config.rank, rules=["kernel"], alpha=config.alpha, dropout=config.dropout, seed=config.seed
        )
        dense = nn.Dense(config.out_features, use_bias=config.bias, param_dtype=config.dtype)
        return mlorax.lora_init(spec, dense, params=frozen, apply_fn=lambda params, x: dense.apply({"params": params}, x))

    def apply(config, trained, frozen, x, key):
        _, apply_fn, _ = init(config, frozen)
        return apply_fn(trained, lora_rng=key, x=x)

    def apply_merged(config, trained, merged, x, key):
        return nn.Dense(config.out_features, use_bias=config.bias, param_dtype=config.dtype).apply({"params": merged}, x)

    class MLoRAxLayer(JaxLayer):
        config: LayerConfig
        base: dict  # the frozen parameters, also while merged
        training = True
        passes = 0

        def key(self):
            if not (self.training and self.config.dropout):
                return None
            self.passes += 1
            return jax.random.fold_in(jax.random.key(self.config.seed), self.passes)

        def train(self, mode=True):
            self.training = mode

        def merge(self):
            _, _, merge_fn = init(self.config, self.base)
            self.function, self.frozen = apply_merged, merge_fn(self.trained)

        def unmerge(self):
            raise Unsupported("unmerging")

    class MLoRAx(Subject):
        name, version = "mlorax", importlib.metadata.version("mlorax")
        freezes = "lora_init"

        def build(self, config: LayerConfig, weight, bias):
            if config.scaling != "standard":
                raise Unsupported(f"{config.scaling} scaling")
            frozen = {"kernel": to_jax(weight.T)} | ({} if bias is None else {"bias": to_jax(bias)})

            def trained():
                return init(config, frozen)[0]

            A, B = (f"kernel.$lora$.{name}" for name in "ab")
            layer = MLoRAxLayer(
                apply, replace(config, seed=0), trained, jax.eval_shape(trained), frozen,
                W="kernel", b="bias" if config.bias else None, A=A, B=B, transposed="W",
            )
            layer.config, layer.base = config, frozen
            return layer

    return MLoRAx()
