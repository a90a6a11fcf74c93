"""mlx_lm's load_adapters, into its own Llama with the base weights. mlx computes on the CPU."""

import numpy as np

from conformance.files import llama
from conformance.files.binary import Arrays

NEEDS, ENVIRONMENT = ("mlx", "mlx_lm"), "mlx"
CORPUS, LOGITS = False, False
FORMATS = ("mlx-lm",)


def read(place: str, base: Arrays) -> Arrays:
    from mlx_lm.tuner.utils import load_adapters

    return measured(load_adapters(model_of(base), place), base)


def model_of(base: Arrays):
    """mlx_lm's model of llama.py."""
    import mlx.core as mx
    from mlx_lm.models.llama import Model, ModelArgs

    model = Model(ModelArgs.from_dict(llama.CONFIG))
    model.load_weights([(name, mx.array(array)) for name, array in (base | llama.norms() | llama.biases()).items()])
    return model


def measured(model, base: Arrays) -> Arrays:
    """ΔW of every module that computes something else than with the base weights: see torch_model.py."""
    import mlx.core as mx

    model.eval()
    found, modules = {}, dict(model.named_modules())
    for name, weight in base.items():
        module = name.removesuffix(".weight")
        embeds = module == "model.embed_tokens"
        given = mx.arange(len(weight)) if embeds else mx.eye(weight.shape[1])
        y = np.array(modules[module](given), np.float64)
        found[module] = (y if embeds else y.T) - weight
    return {module: change for module, change in found.items() if change.any()}
