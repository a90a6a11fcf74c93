"""mlx-lm's linear_to_lora_layers, and the file that its trainer writes."""

import numpy as np

from conformance.files import llama, merging
from conformance.files.binary import Arrays
from conformance.files.corpus.made import drawn
from conformance.files.readers.mlx_lm import measured, model_of
from conformance.files.writers import NotOffered, only

NEEDS, ENVIRONMENT = ("mlx", "mlx_lm"), "mlx"
FORMATS = ("mlx-lm",)
OUTSIDE = {"embed_tokens": "model.embed_tokens", "lm_head": "lm_head"}


def write(settings: dict, folder: str, base: Arrays) -> Arrays:
    import os

    import mlx.core as mx
    from mlx.utils import tree_flatten, tree_unflatten
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import save_config

    only(settings, "lora_dropout")
    if "model.embed_tokens.weight" not in base:
        raise NotOffered("a model that is no Llama")
    own = {"rank": settings["r"], "scale": settings["lora_alpha"] / settings["r"], "dropout": settings.get("lora_dropout", 0.0)}
    if settings["target_modules"] != "all-linear":
        own["keys"] = keys(settings["target_modules"])
    model = model_of(base)
    model.freeze()
    linear_to_lora_layers(model, llama.LAYERS, own)
    factors = {name: mx.array(drawn(name, *array.shape) / 4) for name, array in tree_flatten(model.trainable_parameters())}
    model.update(tree_unflatten(list(factors.items())))
    found = measured(model, base)
    os.makedirs(folder)
    mx.save_safetensors(f"{folder}/adapters.safetensors", dict(tree_flatten(model.trainable_parameters())))
    save_config({"fine_tune_type": "lora", "num_layers": llama.LAYERS, "lora_parameters": own}, f"{folder}/adapter_config.json")
    return {name: np.asarray(delta) for name, delta in found.items()}


def keys(targets: list[str] | str) -> list[str]:
    """The names of modules inside a layer, or in the model, as mlx-lm wants them. Raises NotOffered."""
    if isinstance(targets, str):
        raise NotOffered("targets by an expression")
    inside = {name.rpartition(".")[2]: name for name in llama.SHAPES}
    return [(inside | OUTSIDE)[name] for name in targets]


def merge(dtype: str, folder: str) -> None:
    """What mlx_lm.fuse does with a model that it has loaded."""
    import mlx.core as mx
    from mlx.utils import tree_unflatten
    from mlx_lm.models.llama import Model, ModelArgs
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import save_model

    model = Model(ModelArgs.from_dict(llama.CONFIG | {"attention_bias": False, "mlp_bias": False}))
    weights = {name: mx.array(array.astype(np.float32)) for name, array in merging.base(dtype).items()}
    model.load_weights([(name, array.astype(getattr(mx, dtype))) for name, array in weights.items()])
    names = keys(merging.SETTINGS["target_modules"])
    own = {"rank": merging.SETTINGS["r"], "scale": merging.SCALE, "dropout": 0.0, "keys": names}
    linear_to_lora_layers(model, llama.LAYERS, own)
    modules = dict(model.named_modules())
    for module in merging.targets():
        modules[module].lora_a, modules[module].lora_b = (mx.array(factor.T.copy()) for factor in merging.factors(module))
    model.update_modules(tree_unflatten([(name, module.fuse()) for name, module in modules.items() if hasattr(module, "fuse")]))
    save_model(folder, model)
