"""LoRA in any model: attach wraps layers and freezes the rest, detach gives the model back, merge and unmerge turn all of it.

    attach(model, rank, alpha, targets)   y = x Wᵀ + b  →  x Wᵀ + b + scale · (x A) B at every target
    merge(model)                          W → W + scale · (A B)ᵀ, rounded once, in all layers or in none
    unmerge(model)                        W as it was, bit for bit
    detach(model)                         the modules that were there before, with the numbers that they had
    detach(model, merge=True)             the same modules, and what the active adapters learned is in them

A model may have several adapters by name. `activate` says which are at work. Their parts are summed. Each call tests all that
it needs before it changes anything. If it raises, the model is as it was.

What is attached is in the modules themselves (adapted.py) and in `model.lora_attached`. So deepcopy, pickle, state_dict, .to()
and optimizers work as with every module. targets.py says how targets are named. Left out: LoRA in convolutions and in
parameters that are not the weight of a layer (fused experts), quantised weights, and variants that change the formula.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from lora_torch.adapted import Adapted, Kept
from lora_torch.checks import require
from lora_torch.linear import INITS
from lora_torch.merging import as_own, copy_at_once, put_at_once
from lora_torch.parts import Attached, adapted, biases, named_parameters, parts, parts_of, put, refuse_merged, state_of
from lora_torch.report import Report, report
from lora_torch.settings import Settings
from lora_torch.targets import ALL_LINEAR, all_linear, find, walk

_require = partial(require, "attach")
Changes = list[tuple[dict[str, Any], dict[str, Any]]]  # what put_at_once takes


def attach(
    model: nn.Module, rank: int = 8, alpha: float = 16, targets: str | Sequence[str] = ALL_LINEAR, *, name: str = "default",
    exclude: str | Sequence[str] = (), layers: int | Sequence[int] | None = None, layers_pattern: str | Sequence[str] = (),
    rank_pattern: Mapping[str, int] | None = None, alpha_pattern: Mapping[str, float] | None = None,
    scaling: str = "standard", dropout: float = 0.0, bias: str = "none", modules_to_save: Sequence[str] = (),
    init: str = "gaussian", dtype: torch.dtype | None = None,
) -> Report:
    """Put a new adapter into the model and freeze everything else. It becomes the only active one.

    targets, exclude, layers, layers_pattern: as targets.py says. rank_pattern, alpha_pattern: as settings.py says. scaling,
    dropout, init: as in LinearLoRA. bias: "none", "all", or "lora_only" of the targets; a model of several adapters trains
    none. modules_to_save: a copy of each trains in its place. dtype: of A and B; None is that of each layer, and float32 if
    that is float16 or bfloat16. Raises ValueError naming what is out of range, or the entry of targets or modules_to_save
    that selects nothing.
    """
    everything = isinstance(targets, str) and targets.lower() == ALL_LINEAR
    settings = Settings(
        rank, alpha, all_linear(model) if everything else targets, exclude, layers, layers_pattern, rank_pattern or {},
        alpha_pattern or {}, scaling, dropout, bias, modules_to_save,
    )
    _require(init in INITS, "init", init, f"one of {', '.join(INITS)}", "it draws A")
    found, kept = find(model, settings)
    asked = () if everything or isinstance(targets, str) else settings.targets
    everywhere = [path for path, _ in walk(model)]
    for option, places, entries in (("targets", everywhere, asked), ("modules_to_save", kept, settings.modules_to_save)):
        for entry in entries:
            ends = f".{entry}" if option == "targets" else entry
            _require(any(f".{path}".endswith(ends) for path in places), option, entry, "the end of a name", "no module has it")
    put(model, name, settings, parts(model, name, settings, init, dtype))
    activate(model, name)
    return report(model, name)


def activate(model: nn.Module, names: str | Sequence[str], trained: bool = True) -> None:
    """Say which adapters are at work: one, several, whose parts are summed, or none, for the base alone. They train, or with
    trained=False they do not, and all others do not. ValueError for an unknown name, for two that keep copies of one module,
    and if an adapter that trains biases is left out: these are the model's own."""
    names = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))  # none twice
    of = {name: parts_of(model, name) for name in names}
    refuse_merged(model, "activate")
    kept = [path for each in of.values() for path in each.kept]
    _require(len(kept) == len(set(kept)), "names", names, "at most one for each module that is kept whole", "one copy works")
    for name, settings in state_of(model).settings.items():
        _require(name in names or settings.bias == "none", "names", names, f"{name!r} among them", "it has changed biases")
    wrappers = [place.module for _, place in walk(model) if isinstance(place.module, Adapted | Kept)]
    put_at_once(*((wrapper.__dict__, {"active": names}) for wrapper in wrappers))
    for wrapper in wrappers:
        for name, module in (wrapper.adapters if isinstance(wrapper, Adapted) else wrapper.copies).items():
            for parameter in module.parameters():
                parameter.requires_grad_(trained and name in names and parameter.is_floating_point())
    for name, each in of.items():
        for bias in biases(model, state_of(model).settings[name], each).values():
            bias.requires_grad_(trained)


def merge(model: nn.Module) -> None:
    """Put W + scale · (A B)ᵀ of all active adapters into every layer that has one. Beside the new weights this takes 2 MiB.
    RuntimeError if no adapter is active, if the model is merged, or if a W is computed from other tensors."""
    refuse_merged(model, "merge")
    layers = [layer for layer in adapted(model) if layer.at_work()]
    if not layers or any("weight" not in layer.pre_trained_weight._parameters for layer in layers):
        raise RuntimeError(
            "merge: the model has no active adapter, or a W that is computed from other tensors, expected layers whose W is a "
            "Parameter, because another one is put in its place"
        )
    put_at_once(*(change for layer in layers for change in layer.merging()))


def unmerge(model: nn.Module) -> None:
    """Put every W back, the Parameter that was there. RuntimeError if the model is not merged."""
    layers = [layer for layer in adapted(model) if layer.merged]
    if not layers:
        raise RuntimeError("unmerge: the model is not merged, expected a merged one, because there is no W to put back")
    put_at_once(*(change for layer in layers for change in layer.unmerging()))


def detach(model: nn.Module, name: str | None = None, *, merge: bool = False) -> None:
    """Take one adapter out, or all of them. A module that no adapter is left for is the one that was there before, with its
    numbers. When none is left at all, what trained before attach trains again.

    merge=True, of all adapters: what the active ones learned stays, in merged weights, trained biases, and copies of modules to
    save. A weight that was shared with another module is then one of its own. ValueError if there is no such adapter.
    """
    state = state_of(model)
    have = state.settings
    _require(bool(have), "model", type(model).__name__, "one with adapters", "there is nothing to take out")
    gone = set(have) if name is None else {name}
    _require(gone <= set(have), "name", name, f"one of {', '.join(have)}", "these adapters are attached to the model")
    _require(not merge or name is None, "name", name, "none beside merge=True", "a plain model has no adapters left")
    if gone != set(have):
        refuse_merged(model, "detach")
    changes: Changes = []
    for _, (parent, child, module) in walk(model):
        if isinstance(module, Adapted | Kept):
            inside = module.adapters if isinstance(module, Adapted) else module.copies
            left = {other: part for other, part in inside.items() if other not in gone}
            changes.append((inside.__dict__, {"_modules": left}))
            changes.append((module.__dict__, {"active": tuple(other for other in module.active if other not in gone)}))
            if not left:
                changes.append((parent._modules, {child: _plain(module, merge, changes)}))
    kept = {other: settings for other, settings in have.items() if other not in gone}
    before = {} if merge or any(settings.bias != "none" for settings in kept.values()) else state.biases
    put_at_once(*changes, (model.__dict__, {"lora_attached": Attached(kept, state.trained, {} if before else state.biases)}))
    if before:
        own = [model.get_parameter(path).detach() for path in before]
        copy_at_once(own, [as_own(value, bias) for value, bias in zip(before.values(), own, strict=True)])
    if not kept:
        for path, parameter in named_parameters(model):
            parameter.requires_grad_(path in state.trained)
        del model.lora_attached


def _plain(module: Adapted | Kept, merge: bool, changes: Changes) -> nn.Module:
    """The module that takes the place of the wrapper. What has to change in it is added to the changes."""
    if isinstance(module, Kept):
        return module.at_work() if merge else module.original
    if module.merged and not merge:
        changes += module.unmerging()
    elif merge and not module.merged and module.at_work():
        changes.append((module.pre_trained_weight._parameters, {"weight": module.with_adapters()}))
    return module.pre_trained_weight
