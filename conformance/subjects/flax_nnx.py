"""Flax's nnx.LoRALinear.

It has no alpha, no dropout and no merge. Files hold its nnx.LoRAParam state, saved with Orbax."""

NEEDS = ("jax", "flax", "orbax")
ENVIRONMENT = "jax"


def subject():
    import importlib.metadata

    from flax import nnx

    from conformance.drivers.jax import JaxLayer
    from conformance.subject import LayerConfig, Subject, Unsupported

    def apply(graph, trained, frozen, x, key):
        return nnx.merge(graph, trained, frozen)(x)

    class FlaxLayer(JaxLayer):
        def train(self, mode=True):
            module = nnx.merge(self.static, self._trained, self.frozen)
            module.train() if mode else module.eval()
            self.static, self._trained, self.frozen = nnx.split(module, nnx.LoRAParam, ...)

    class FlaxNNX(Subject):
        name, version = "flax", importlib.metadata.version("flax")
        freezes = "the filter nnx.LoRAParam"
        scale = 1.0

        def build(self, config: LayerConfig, weight, bias):
            if config.dropout or config.scaling != "standard":
                raise Unsupported("dropout" if config.dropout else f"{config.scaling} scaling")
            def module():
                return nnx.LoRALinear(
                    config.in_features, config.out_features, lora_rank=config.rank, use_bias=config.bias,
                    param_dtype=config.dtype, lora_param_dtype=config.dtype, rngs=nnx.Rngs(config.seed),
                    kernel_init=nnx.initializers.zeros,  # it is overwritten, and a draw takes long to compile
                )

            graph, trained, frozen = nnx.split(nnx.eval_shape(module), nnx.LoRAParam, ...)
            layer = FlaxLayer(
                apply, graph, lambda: nnx.state(module(), nnx.LoRAParam), trained, frozen,
                W="kernel", b="bias" if config.bias else None, A="lora.lora_a", B="lora.lora_b", transposed="W",
            )
            layer.set_base(weight, bias)
            return layer

    return FlaxNNX()
