"""Lorax: LoRA as a transform of a JAX function.

It is driven through init_lora, lora and merge_params, and cannot unmerge. As in its README, the gradient is taken of all
parameters, and wrap_optimizer does not change the frozen ones. It has no files."""
# Where JAX is not installed, pyright reads a stub of it that lacks most names.
# pyright: reportAttributeAccessIssue=false

NEEDS = ("jax", "lorax", "optax")
ENVIRONMENT = "jax-old"


def subject():
    import importlib.metadata

    import jax
    import lorax
    import optax

    from conformance.drivers.jax import JaxLayer, leaves, replaced, to_jax
    from conformance.subject import LayerConfig, Subject, Unsupported

    def model(params, x):
        y = x @ params["kernel"]
        return y + params["bias"] if "bias" in params else y

    lora_model = lorax.lora(model)

    def apply(static, trained, frozen, x, key):
        return lora_model(trained, x)

    def apply_merged(static, trained, merged, x, key):
        return model(merged, x)

    class LoraxLayer(JaxLayer):
        spec: dict

        def trainable(self):
            left = lorax.split_lora_params(self.trained, self.spec)
            return {self._name(path): leaf.shape for path, leaf in leaves(left).items()}

        def step(self, lr):
            if not self.gradients:
                return
            optimizer = lorax.wrap_optimizer(optax.sgd(lr), self.spec)
            gradients = replaced(self.trained, self.gradients)
            updates, _ = optimizer.update(gradients, optimizer.init(self.trained), params=self.trained)
            self.trained = optax.apply_updates(self.trained, updates)

        def merge(self):
            self.function, self.frozen = apply_merged, lorax.merge_params(self.trained, destructive=False)
            self.paths["W"] = "kernel"

        def unmerge(self):
            raise Unsupported("unmerging")

        def save(self, directory):
            raise Unsupported("files")

        def load(self, directory):
            raise Unsupported("files")

    class Lorax(Subject):
        name, version = "jax-lorax", importlib.metadata.version("jax-lorax")
        freezes = "wrap_optimizer"

        def build(self, config: LayerConfig, weight, bias):
            if config.dropout or config.scaling != "standard":
                raise Unsupported("dropout" if config.dropout else f"{config.scaling} scaling")
            params = {"kernel": to_jax(weight.T)} | ({} if bias is None else {"bias": to_jax(bias)})
            spec = lorax.simple_spec(params, decision_fn=lambda path, parameter: config.rank)

            def trained():
                key = jax.random.PRNGKey(config.seed)
                return lorax.init_lora(params, spec, key, dtype=config.dtype, alpha=config.alpha)

            layer = LoraxLayer(
                apply, None, trained, jax.eval_shape(trained), {}, W="kernel.w", b="bias" if config.bias else None,
                A="kernel.b", B="kernel.a", transposed="W",
            )
            layer.spec = spec
            layer.set_base(weight, bias)
            return layer

    return Lorax()
