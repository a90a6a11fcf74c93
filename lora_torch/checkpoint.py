"""Adapters in PEFT's file format: a directory with adapter_config.json and adapter_model.safetensors.

    what                        its key                                                          its shape in the file
    A, B of a linear layer      base_model.model.{module}.lora_A.weight, .lora_B.weight          (rank, in), (out, rank)
    A, B of an embedding        base_model.model.{module}.lora_embedding_A, .lora_embedding_B    (rank, in), (out, rank)
    a trained bias              base_model.model.{module}.bias, of a target .base_layer.bias     as in the model
    a module to save            base_model.model.{module}.{parameter or buffer}                  as in the model

Here A is (in, rank) and B is (rank, out): both are transposed on the way. The adapter's name is in no key.

Reading accounts for everything by name. Every tensor that the model needs is in the file. Every tensor of the file is used, or
it equals what is there already. A key of the configuration that changes the function is followed, or the file is refused. All
of this is tested before anything is changed: a refusal leaves the model bit-identical.

Source: PEFT 0.21, developer guide "Checkpoint format", utils/save_and_load.py, and tuners/lora/config.py for the keys.
"""

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_torch.adapted import FACTORS, Kept, is_conv1d
from lora_torch.adapter_files import CONFIG, TENSORS, Shapes, put_files, read_config, read_tensors, some
from lora_torch.attach import activate
from lora_torch.checks import require
from lora_torch.linear import SCALINGS
from lora_torch.merging import as_own, copy_at_once
from lora_torch.parts import Parts, biases, parts, parts_of, put, refuse_merged, state_of
from lora_torch.report import Report, report
from lora_torch.settings import Settings
from lora_torch.targets import ALL_LINEAR, all_linear, bare, find, walk

PREFIX = "base_model.model."
NAMES = {  # of a key of the file → of a field of Settings
    "r": "rank", "lora_alpha": "alpha", "target_modules": "targets", "exclude_modules": "exclude",
    "layers_to_transform": "layers", "layers_pattern": "layers_pattern", "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern", "lora_dropout": "dropout", "bias": "bias", "modules_to_save": "modules_to_save",
}
# Keys that say where the adapter is from, how it was made or will be run, or what the modules of the model say themselves.
HARMLESS = {
    "task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping", "peft_version", "megatron_core",
    "fan_in_fan_out", "qalora_group_size", "runtime_config", "eva_config",
}
# How A and B started, where W stayed as it was. Others (pissa, olora, loftq, corda, lora_ga, …) changed W.
STARTS = (True, False, "gaussian", "orthogonal", "eva")

_require = partial(require, "load_adapter")


def save_adapter(model: nn.Module, directory: str | os.PathLike[str], name: str = "default") -> None:
    """Write the adapter of this name, merged or not, so that load_adapter and PEFT can read it.

    Both files are written beside their places, flushed to the disk, and then put in place. If writing fails, what was there
    before is still there. ValueError if there is no such adapter, or if a tensor has no numbers or one that is not finite.
    """
    own = parts_of(model, name)
    settings, places = state_of(model).settings[name], dict(walk(model))
    tensors = in_file(model, settings, own)
    _check_numbers("save_adapter", tensors)
    config = {key: getattr(settings, field) for key, field in NAMES.items()}
    for key in ("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"):
        config[key] = config[key] or None  # as PEFT has it where nothing is asked for
    config |= {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": None, "revision": None, "inference_mode": True,
        "use_rslora": settings.scaling == "rslora", "use_dora": False, "lora_bias": False, "init_lora_weights": True,
        "fan_in_fan_out": all(is_conv1d(bare(places[path].module)) for path in own.adapters),
    }
    copies = {key: tensor.to("cpu", copy=True).contiguous() for key, tensor in tensors.items()}  # no two of one memory
    # Sorted, but not inside: of rank_pattern and alpha_pattern the first key that matches counts.
    text = json.dumps(dict(sorted(config.items())), indent=2, allow_nan=False, default=dict) + "\n"
    put_files(Path(directory), {
        TENSORS: lambda path: save_file(copies, path, metadata={"format": "pt"}),
        CONFIG: lambda path: path.write_text(text, encoding="utf-8"),
    })


def in_file(model: nn.Module, settings: Settings, of: Parts) -> dict[str, Tensor]:
    """Every tensor of an adapter in the shape that it has in a file, by its key. They are views: what is written into them is
    in the adapter."""
    found, places = {}, dict(walk(model))
    for path, adapter in of.adapters.items():
        embeds = isinstance(bare(places[path].module), nn.Embedding)
        a, b = ("lora_embedding_A", "lora_embedding_B") if embeds else ("lora_A.weight", "lora_B.weight")
        found[f"{path}.{a}"], found[f"{path}.{b}"] = adapter.lora_A.detach().t(), adapter.lora_B.detach().t()
    for path, bias in biases(model, settings, of).items():
        module = path.removesuffix("bias").removesuffix(".")
        found[f"{module}.base_layer.bias" if module in of.adapters else path] = bias.detach()
    for path, module in of.kept.items():
        found |= {f"{path}.{key}": tensor for key, tensor in module.state_dict().items()}
    return {PREFIX + key: tensor for key, tensor in found.items()}


def load_adapter(
    model: nn.Module, directory: str | os.PathLike[str], name: str = "default", *, trained: bool = False,
    dtype: torch.dtype | None = None,
) -> Report:
    """Read an adapter that save_adapter or PEFT wrote, and make it the only active one. If the model has no adapter of this
    name, it is attached, and trains if `trained`. If it has one, the file must fit to it, and its numbers are copied in.

    dtype: as in attach. Numbers are rounded to a narrower dtype only if one is given. Raises ValueError naming the tensors that
    are missing, unknown, or of another shape or dtype, or the key of the configuration that cannot be followed.
    """
    folder, is_new = Path(directory), name not in state_of(model).settings
    settings = _settings(model, read_config(folder))
    refuse_merged(model, "load_adapter")
    own = parts(model, name, settings, None, dtype) if is_new else _fitting(model, name, settings, dtype)
    places = {path: place.module for path, place in walk(model)}
    devices = {path: bare(places[path]).get_parameter("weight").device for path in own.adapters}
    without = [path for path, device in devices.items() if device.type == "meta"]
    _require(not without, "model", f"on the meta device in {some(without)}", "one with memory", "numbers are copied into it")

    into, same = in_file(model, settings, own), _same_as_there(own, places)
    came = read_tensors(folder, partial(_check_names, into, same))
    _check_values(came, into, same, dtype is not None)

    if is_new:
        for path, adapter in own.adapters.items():
            adapter.to_empty(device=devices[path])
        into = in_file(model, settings, own)
    values = [as_own(came[key], tensor) for key, tensor in into.items()]
    if is_new:
        put(model, name, settings, own)
    else:
        trained = any(part.lora_A.requires_grad for part in own.adapters.values())
    copy_at_once(list(into.values()), values)
    activate(model, name, trained)
    return report(model, name)


def _fitting(model: nn.Module, name: str, settings: Settings, dtype: torch.dtype | None) -> Parts:
    """The parts of the adapter that the model has. ValueError unless one with these settings computes the same from them."""
    own, (found, kept), what = parts_of(model, name), find(model, settings), f"the adapter {name!r} of the model has it"
    for key, came, have in (
        ("target_modules", some(sorted(found)), some(sorted(own.adapters))),
        ("modules_to_save", some(sorted(kept)), some(sorted(own.kept))),
        ("bias", settings.bias, state_of(model).settings[name].bias),
        ("dtype", dtype, None),
    ):
        _require(came == have, key, came, repr(have), what)
    _require(found.keys() == own.adapters.keys(), "target_modules", len(found), f"{len(own.adapters)} others", what)
    for path, adapter in own.adapters.items():
        rank, alpha = settings.of(path)
        came = rank, float(SCALINGS[settings.scaling](alpha, rank))
        _require(came == (adapter.rank, adapter.scale), f"rank, scale of {path}", came, f"{adapter.rank, adapter.scale}", what)
    return own


def _same_as_there(of: Parts, places: Mapping[str, Any]) -> dict[str, Tensor | str]:
    """Keys that some files have, too: of what was never trained, with the model's tensor; of a tensor that the file has under
    another key, with that key. PEFT writes the W of embeddings and heads that are targets, and with bias="all" each bias of a
    module to save three times, once with the adapter's name in the key if it is deep inside."""
    same: dict[str, Tensor | str] = {
        f"{PREFIX}{path}.base_layer.weight": bare(places[path]).get_parameter("weight") for path in of.adapters
    }
    for path, module in of.kept.items():
        original = places[path].original if isinstance(places[path], Kept) else places[path]
        same |= {f"{PREFIX}{path}.original_module.{key}": tensor for key, tensor in original.state_dict().items()}
        for again in ("modules_to_save", "modules_to_save.default"):
            same |= {f"{PREFIX}{path}.{again}.{key}": f"{PREFIX}{path}.{key}" for key in module.state_dict()}
    return same


def _check_names(into: Mapping[str, Tensor], same: Mapping[str, Tensor | str], shapes: Shapes) -> None:
    """ValueError unless the file has all of `into`, and besides only keys of `same`, with these shapes."""
    missing, unknown = into.keys() - shapes.keys(), shapes.keys() - into.keys() - same.keys()
    expected = f"the tensors that belong to the modules of {CONFIG}"
    _require(not missing, TENSORS, f"without {some(sorted(missing))}", expected, "each is a part of what the model computes")
    _require(not unknown, TENSORS, f"with {some(sorted(unknown))}", expected, "nobody would use the others")
    for key, shape in shapes.items():
        twin = into[key] if key in into else same[key]
        want = tuple(into[twin].shape if isinstance(twin, str) else twin.shape)
        _require(shape == want, key, shape, str(want), "this model, and the ranks of the configuration, give it this shape")


def _check_values(
    came: Mapping[str, Tensor], into: Mapping[str, Tensor], same: Mapping[str, Tensor | str], may_round: bool
) -> None:
    """ValueError for a number that is not finite or would be rounded, and where two tensors that must be equal are not."""
    _check_numbers("load_adapter", came)
    for key, own in into.items():
        dtype, factor = came[key].dtype, ".lora_" in key
        floats = {dtype, own.dtype} <= FACTORS.keys()
        fits = dtype == own.dtype or floats and (may_round and factor or torch.promote_types(dtype, own.dtype) == own.dtype)
        _require(fits, key, dtype, f"{own.dtype} or narrower", "its numbers would be rounded; dtype= allows that for A and B")
    for key in came.keys() - into.keys():
        twin = same[key]
        twin = came[twin] if isinstance(twin, str) else twin.cpu()
        equal = twin.dtype == came[key].dtype and torch.equal(twin, came[key])
        _require(equal, key, "of other numbers", "those that are there", "it is no part of the adapter, and was never trained")


def _check_numbers(caller: str, tensors: Mapping[str, Tensor]) -> None:
    bad = [key for key, t in tensors.items() if t.is_meta or t.is_floating_point() and not bool(torch.isfinite(t).all())]
    require(caller, not bad, some(bad), "without a finite number somewhere", "finite numbers", "no output would have one")


def _settings(model: nn.Module, config: dict[str, Any]) -> Settings:
    """What the configuration says. ValueError for a key that may change the function and is not known here."""
    came = config.get("peft_type")
    _require(came == "LORA", "peft_type", came, "'LORA'", "other methods compute something else")
    for key in ("r", "lora_alpha", "target_modules"):
        _require(config.get(key) is not None, key, config.get(key), "a value", "ranks, scales and modules follow from it")
    understood = {*NAMES, *HARMLESS, "peft_type", "use_rslora", "init_lora_weights"}
    for key, value in config.items():
        unset = value is None or value is False or value in ("", [], {})
        why = "it may change what the adapter computes, and is not supported"
        _require(unset or key in understood, key, value, "null, false or empty", why)
    start, rslora = config.get("init_lora_weights", True), config.get("use_rslora") or False
    why = "others changed W itself, which is not in the file"
    _require(isinstance(start, bool | str) and start in STARTS, "init_lora_weights", start, f"one of {STARTS}", why)
    _require(isinstance(rslora, bool), "use_rslora", rslora, "true or false", "it makes the scale")
    given = {field: config[key] for key, field in NAMES.items() if config.get(key) is not None}
    if isinstance(given["targets"], str) and given["targets"].lower() == ALL_LINEAR:
        given["targets"] = all_linear(model)
    try:
        return Settings(**given, scaling="rslora" if rslora else "standard")
    except ValueError as error:
        raise ValueError(f"load_adapter: {CONFIG} is refused: {error}") from error
