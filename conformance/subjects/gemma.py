"""Gemma's peft.LoRADense around a Dense of flax.linen.

It has no alpha and no dropout, and its merge, fuse_params, is not implemented yet. Files hold the second half of what
split_params gives, saved with Orbax."""
# Where JAX is not installed, pyright reads a stub of it that lacks most names.
# pyright: reportAttributeAccessIssue=false

from typing import Any

NEEDS = ("jax", "flax", "gemma", "orbax")
ENVIRONMENT = "jax"


def subject():
    import importlib.metadata

    import jax
    from flax import linen as nn
    from gemma import peft

    from conformance.drivers.jax import JaxLayer
    from conformance.subject import LayerConfig, Subject, Unsupported

    def apply(module, trained, frozen, x, key):
        return module.apply({"params": peft.merge_params(frozen, trained)}, x)

    class GemmaLayer(JaxLayer):
        def merge(self):
            try:
                peft.fuse_params()
            except NotImplementedError:
                raise Unsupported("merging: fuse_params is not implemented") from None

    class Gemma(Subject):
        name, version = "gemma", importlib.metadata.version("gemma")
        freezes = "split_params"
        scale = 1.0

        def build(self, config: LayerConfig, weight, bias):
            if config.dropout or config.scaling != "standard":
                raise Unsupported("dropout" if config.dropout else f"{config.scaling} scaling")
            dtype = jax.numpy.dtype(config.dtype)
            # The initial kernel is overwritten, and a draw takes long to compile.
            zeros = nn.initializers.zeros
            dense = nn.Dense(config.out_features, use_bias=config.bias, param_dtype=dtype, kernel_init=zeros)
            module = peft.LoRADense(rank=config.rank, wrapped=dense, dtype=dtype)

            def parts():
                params: Any = module.init(jax.random.key(config.seed), jax.numpy.zeros((1, config.in_features), dtype))
                return peft.split_params(params["params"])

            frozen, trained = jax.eval_shape(parts)
            layer = GemmaLayer(
                apply, module, lambda: parts().lora, trained, frozen, W="kernel", b="bias" if config.bias else None,
                A="lora.a", B="lora.b", transposed="W",
            )
            layer.set_base(weight, bias)
            return layer

    return Gemma()
