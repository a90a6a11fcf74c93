"""Finds out what a layer that was found has chosen: its scale, the ranks, biases and number formats that it offers, and who
freezes the base."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from conformance.drivers.look import arrays
from conformance.drivers.look.arguments import Plan, beside
from conformance.drivers.look.building import GIVEN
from conformance.drivers.look.names import harmless, role_of
from conformance.drivers.look.plans import methods, parameters_of, signature
from conformance.drivers.look.recognised import Found, found
from conformance.subject import LayerConfig
from conformance.truth.case import DTYPES
from conformance.truth.compare import same_number
from conformance.truth.rules import SCALES

OTHERS = ((3, 6.0), (3, 9.0), (2, 8.0), (5, 20.0))  # rank and alpha
SMALL = ((3, 0.75), (3, 0.5), (2, 1.0), (5, 0.25))  # where all of those are refused
ROOT = "alpha / √rank"
OF_ALPHA = ("alpha / rank", ROOT, "alpha")
FREEZES = ("freeze", "only_lora", "lora_only", "trainable", "requires_grad", "frozen", "init", "prepare", "setup")
STARTS = ("reset", "init", "initialize", "initialise")  # in the names of methods that draw factors


def recognised(call: Callable[..., Any]) -> Found:
    """What the class or function is. Raises NotRecognised."""
    one = found(call)
    if not one.plan.offers("rank"):
        one.rank = one.places.rank
    one.bias = _biases(one)
    _draw_factors(one)
    one.rule = _rule(one)
    if one.rule == "alpha":
        named = [name for name, role in one.plan.roles.items() if role == "alpha"]
        one.direct = next((name for name in named if "alpha" not in name.lower()), "")
    elif not one.plan.takes("alpha"):
        _take_a_factor_for_the_scale(one)
    trains = {path for path, parameter in one.module(one.probe).named_parameters() if parameter.requires_grad}
    one.base_trains = tuple(name for name in "Wb" if one.places.paths.get(name) in trains)
    one.also_trains = tuple(sorted(trains - set(one.places.paths.values())))
    if one.base_trains:
        one.unreached = _unreached(one)
        one.freezer = _freezer(one)
        one.thawed = _thawed(one) if one.given else ()
    one.formats = _refused_formats(one)
    one.moves_base = one.given and _moves_base(one)
    return one


def _draw_factors(one: Found) -> None:
    """If neither factor is zero at the start, a method of the class may have to be called that draws them."""
    if one.way or _zero_factors(one) == 1:
        return
    for name, method in methods(type(one.module(one.probe))).items():
        needed = [p for p in parameters_of(method)[1:] if p.default is p.empty]
        if set(STARTS) & set(name.lower().strip("_").split("_")) and not needed and (
                harmless(name) and not name.startswith("__")):
            tried = replace(one, plan=replace(one.plan, then=(*one.plan.then, Plan(method, {}))))
            with suppress(Exception):
                if _zero_factors(tried) == 1:
                    one.plan = tried.plan
                    return


def _zero_factors(one: Found) -> int:
    """How many of A and B are zero in a fresh layer."""
    have = arrays.tensors(one.module(one.probe))
    return sum(not bool(have[one.places.paths[name]].any()) for name in "AB")


# --- bias and formats ------------------------------------------------------------------------------------------------------


def _biases(one: Found) -> tuple[bool, ...]:
    """Whether a layer may have a bias, or lack it. If the plan leaves no choice, another argument for the bias is tried."""
    has = "b" in one.places.paths
    for plan in (one.plan, *_other_biases(one.plan)):
        tried = replace(one, plan=plan)
        if _fits(tried, replace(one.probe, bias=not has)) and (plan is one.plan or _fits(tried, one.probe)):
            one.plan = plan
            return True, False
    return (has,)


def _other_biases(plan: Plan) -> Iterator[Plan]:
    named = [a.name for a in signature(plan.call)[0] if role_of(a.name) in ("bias", "b")]
    passed_on = any(p.kind is p.VAR_KEYWORD for p in parameters_of(plan.call))
    for name in named or ["bias"] * passed_on:
        for role in ("b", "bias"):
            if plan.roles.get(name) != role:
                yield replace(plan, roles=plan.roles | {name: role})


def _fits(one: Found, config: LayerConfig) -> bool:
    """Whether the layer of this configuration has the arrays that it should have, and computes y."""
    with suppress(Exception):
        module = one.module(config)
        have, b = arrays.tensors(module), one.places.paths.get("b")
        there = b in have if config.bias and b else not config.bias and len(have) > 2 and (b is None or b not in have)
        x = torch.ones(1, 2, config.in_features, dtype=getattr(torch, config.dtype))
        return there and (module(x) is not None or True)
    return False


def _refused_formats(one: Found) -> dict[str, str]:
    """Number formats in which no layer can be built, or that the LoRA part does not follow → what happens."""
    refused = {}
    for dtype in DTYPES:
        config = replace(one.probe, dtype=dtype)
        try:
            module = one.module(config)
            if one.mixed and dtype != "float32":
                x = torch.ones(1, 2, config.in_features, dtype=getattr(torch, dtype))
                module(x)
        except Exception as error:
            refused[dtype] = f"{type(error).__name__}: {str(error)[:120]}"
    if one.mixed and "float64" not in refused:
        refused["float64"] = "the LoRA part is computed in float32"
    return refused if len(refused) < len(DTYPES) else {}


def _moves_base(one: Found) -> bool:
    """Whether a fresh layer holds another W than the one that it was given, and computes y with that one all the same. The
    numbers are whole, so that rint() takes the rounding errors away."""
    with suppress(Exception):
        n_in, n_out = one.probe.in_features, one.probe.out_features
        W, b, x = np.arange(n_in * n_out).reshape(n_out, n_in) % 8, np.arange(n_out), np.eye(n_in)
        W, b, x = (array.astype(one.probe.dtype) for array in (W, b, x))
        layer = one.places.layer(arrays.Tried, one.module(one.probe, base=(W, b)), one.probe.bias)
        layer.dimensions = one.places.dimensions
        y = np.rint(layer.forward(x))
        return not np.array_equal(np.rint(layer.weight()), W) and np.array_equal(y, W.T + b if one.probe.bias else W.T)
    return False


# --- scale -----------------------------------------------------------------------------------------------------------------


def _rule(one: Found) -> str:
    """The rule of the scale: the name of one of SCALES, "always …", "… / rank", or what was measured."""
    seen = _scales(one, OTHERS) or _scales(one, SMALL)
    if not seen:
        return ""

    def holds(rule: Callable[[float, int], float]) -> bool:
        return all(same_number(scale, rule(alpha, rank), one.probe.dtype) for alpha, rank, scale in seen)

    constant = seen[0][2] * seen[0][1]
    if holds(lambda alpha, rank: seen[0][2]) and len(seen) > 1:
        return f"always {seen[0][2]:.17g}"  # every digit: it becomes Subject.scale
    if holds(lambda alpha, rank: constant / rank) and len({rank for _, rank, _ in seen}) > 1:
        return f"{round(constant) if same_number(constant, round(constant), one.probe.dtype) else constant:.17g} / rank"
    rules = [name for name, rule in SCALES.items() if holds(rule)]
    return rules[0] if rules else "; ".join(f"{scale:.5g} for alpha {alpha:g}, rank {rank}" for alpha, rank, scale in seen)


def _scales(one: Found, others: tuple[tuple[int, float], ...]) -> list[tuple[float, int, float]]:
    """alpha, rank and the measured scale of the layers that can be made with these."""
    seen = []
    for rank, alpha in others:
        with suppress(Exception):
            tried = replace(one.probe, rank=rank if one.rank is None else one.rank, alpha=alpha)
            places = arrays.tried(lambda config=tried: one.module(config), one.places.paths, one.places.transposed,
                                  (tried.in_features, tried.out_features, tried.rank))
            if places.scale is not None:
                seen.append((alpha, tried.rank, places.scale))
    return seen


def _take_a_factor_for_the_scale(one: Found) -> None:
    """A layer without alpha may have a number of its own: as in LoRALinear(…, scale=1.0) it is the scale itself, and divided by
    the rank it is alpha. It is called a scale, or its default is what was measured; a trial decides."""
    measured = one.rule.removeprefix("always ").removesuffix(" / rank")
    for argument in signature(one.plan.call)[0]:
        role, default = role_of(argument.name), argument.default
        if isinstance(default, str | bool):
            continue
        measures = role is None and isinstance(default, int | float) and f"{default:.17g}" == measured
        if role in ("multiplier", "scaling") or measures:
            plan = replace(one.plan, roles=one.plan.roles | {argument.name: "alpha"})
            rule = _rule(replace(one, plan=plan))
            if rule in OF_ALPHA:
                one.plan, one.rule, one.direct = plan, rule, argument.name if rule == "alpha" else ""
                if not _scales(one, OTHERS):
                    one.limited, one.probe = True, replace(one.probe, alpha=SMALL[0][1])
                return


# --- freezing ----------------------------------------------------------------------------------------------------------------


def _unreached(one: Found) -> tuple[str, ...]:
    """Of W and b, those that are marked as trainable, and get no gradient."""
    with suppress(Exception):
        module = one.module(one.probe)
        x = torch.ones(2, one.probe.in_features, dtype=getattr(torch, one.probe.dtype))
        dimensions = one.places.dimensions
        y = arrays.with_dimensions(module, x, dimensions) if dimensions else module(x)
        y.sum().backward()
        have = dict(module.named_parameters())
        return tuple(name for name in one.base_trains if have[one.places.paths[name]].grad is None)
    return ()


def _thawed(one: Found) -> tuple[str, ...]:
    """Of W and b, those that train although they were given frozen, and are not copies that the class made."""
    with suppress(Exception):
        have = dict(one.module(one.probe, frozen=True).named_parameters())
        there = {name: have[one.places.paths[name]] for name in one.base_trains}
        return tuple(name for name, parameter in there.items() if parameter.requires_grad and hasattr(parameter, GIVEN))
    return ()


def _freezer(one: Found) -> str:
    """The name of the function beside the class, or after a point that of its method, that freezes most of W and b and leaves A
    and B. "" if there is none."""
    def wanted(name: str) -> bool:
        return any(word in name.lower() for word in FREEZES) and not name.startswith("__")

    functions = [name for name, value in beside(one.plan.call).items() if wanted(name) and inspect.isfunction(value)]
    methods = [name for name in dir(type(one.module(one.probe))) if wanted(name) and not hasattr(nn.Module, name)]
    best, fewest = "", len(one.base_trains)
    for name in (*functions, *(f".{name}" for name in methods)):
        module = one.module(one.probe)
        with suppress(Exception):
            call_freezer(one.plan.call, module, name)
            left = still_train(module, one.places.paths)
            if left is not None and left < fewest:
                best, fewest = name, left
    return best


def call_freezer(call: Callable[..., Any], module: nn.Module, name: str) -> None:
    """Calls the function beside the class, or after a point the method, of this name."""
    if name.startswith("."):
        getattr(module, name[1:])()
    else:
        beside(call)[name](module)


def still_train(module: nn.Module, paths: dict[str, str]) -> int | None:
    """How many of W and b train in the module. None if A or B does not."""
    trains = {path: parameter.requires_grad for path, parameter in module.named_parameters()}
    if not all(trains.get(paths[name]) for name in "AB"):
        return None
    return sum(trains.get(paths.get(name, ""), False) for name in "Wb")
