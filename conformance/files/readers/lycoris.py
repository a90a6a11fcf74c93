"""lycoris' reader of kohya's format, create_lycoris_from_weights, around a model of the base weights."""

from conformance.files import container
from conformance.files.binary import Arrays
from conformance.files.torch_model import measured, model_of

NEEDS, ENVIRONMENT = ("torch", "lycoris"), "torch"
CORPUS, LOGITS = False, False
FORMATS = ("kohya",)
PREFIXES = "lycoris", "lora_unet"  # that of lycoris, and that of kohya's scripts: who reads says which


def read(place: str, base: Arrays) -> Arrays:
    from lycoris.wrapper import LycorisNetwork, create_lycoris_from_weights

    held, _ = container.read(place)
    prefix = next(known for known in PREFIXES if any(name.startswith(known) for name in held.tensors))
    LycorisNetwork.apply_preset({"lora_prefix": prefix})
    model = model_of(base)
    network, _ = create_lycoris_from_weights(1.0, place, model)
    network.apply_to()
    return {kohya(prefix, module): delta for module, delta in measured(model, base).items()}


def kohya(prefix: str, module: str) -> str:
    """The name of a module in kohya's format. A bias stays one."""
    at, dot, end = module.rpartition(".") if module.endswith(".bias") else (module, "", "")
    return f"{prefix}_{at.replace('.', '_')}{dot}{end}"
