"""Finds out how a LoRA layer is built, where its arrays are, what its scale is, and who freezes the base."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from conformance.drivers.look import arrays
from conformance.drivers.look.arguments import PLACE, Plan
from conformance.drivers.look.arrays import SEEN, SIZES, Places
from conformance.drivers.look.names import ROLES
from conformance.drivers.look.plans import more_steps, plans, turned
from conformance.drivers.look.ways import BESIDE, PARAMETRISED, REPLACED, Model, ways
from conformance.subject import LayerConfig, Unsupported
from conformance.torch import set_seed
from conformance.truth.compare import same_number
from conformance.truth.rules import SCALES

PLACES = 12  # names of layers that are tried for a function that changes a model
PROBE = LayerConfig(SIZES[0], SIZES[1], SIZES[2], 6.0, dtype="float64")


class NotRecognised(TypeError):
    """No LoRA layer was found. The message says what was tried, what happened, and what would settle it."""


@dataclass
class Found:
    """What recognition found out about a class or function."""

    plan: Plan
    way: str  # in words, which module computes y; "" for the one that the call gives
    places: Places
    place: str = PLACE  # of the linear layer in a model that is changed
    bias: tuple[bool, ...] = ()  # whether a layer may have a bias
    rule: str = ""  # of the scale: one of SCALES, "always …", or what was measured
    direct: str = ""  # the argument that is the scale itself, and is called so
    rank: int | None = None  # if no other can be chosen
    probe: LayerConfig = PROBE  # a configuration that it takes
    base_trains: tuple[str, ...] = ()  # of W and b, those that are not frozen
    freezer: str = ""  # the function beside the class that freezes them

    @property
    def given(self) -> bool:
        """Whether W is the caller's: the class gets it, or does not hold it at all. Then the caller freezes it."""
        return self.plan.around in ("linear", "weight", "turned weight", "convolution", "model") or self.way in (
            BESIDE, REPLACED, PARAMETRISED)

    def module(self, config: LayerConfig) -> nn.Module:
        """The module that computes y, for this configuration."""
        return _made(self.plan, config, self.way, self.place)


def recognised(call: Callable[..., Any]) -> Found:
    """What it is. Raises NotRecognised."""
    tried: list[str] = []
    best: Found | None = None
    first: Plan | None = None
    for plan in plans(call):
        first = first or plan
        found = _best(plan, tried)
        if found is not None and (best is None or len(found.places.seen) > len(best.places.seen)):
            best = found
        if best is not None and len(best.places.seen) >= len(SEEN) - 1:
            break
    for plan in more_steps(best.plan if best else first) if first is not None else ():
        found = _best(plan, tried)
        if found is not None and (best is None or len(found.places.seen) >= len(best.places.seen)):
            best = found
            break
    if best is not None and len(best.places.seen) < len(SEEN):
        found = _best(turned(best.plan), tried)  # those who think of W as (in, out) call its first size in
        best = found if found is not None and len(found.places.seen) > len(best.places.seen) else best
    if best is None:
        raise NotRecognised(_message(call, tried))
    _settle(best)
    return best


def _best(plan: Plan, tried: list[str]) -> Found | None:
    """What was found with this plan, with a bias if it can have one. What happened otherwise is added to `tried`."""
    places = (PLACE, *_words(plan.call)) if plan.around == "model" else (PLACE,)
    probe = replace(PROBE, out_features=SIZES[0]) if plan.square else PROBE
    happened = ""
    for place in places:
        for bias in (True, False):
            found, said = _looked(plan, replace(probe, bias=bias), place)
            if found is not None:
                return found
            happened = happened or said
    tried.append(f"{plan.words}: {happened}")
    return None


def _words(call: Callable[..., Any]) -> list[str]:
    """The names in the text of a function, and of the lists beside it, that may be those of the layers that it changes."""
    found: list[str] = []

    def add(constants: tuple) -> None:
        for one in constants:
            if isinstance(one, str) and one.isidentifier() and one not in ROLES:
                found.append(one)
            elif isinstance(one, tuple | frozenset | list | set):
                add(tuple(one))
            elif inspect.iscode(one):
                add(one.co_consts)

    function = call.__init__ if isinstance(call, type) else call
    if inspect.isfunction(function):
        add(function.__code__.co_consts)
        add(tuple(value for value in function.__globals__.values() if isinstance(value, tuple | list | set)))
    return list(dict.fromkeys(found))[:PLACES]


def _message(call: Callable[..., Any], tried: list[str]) -> str:
    name = getattr(call, "__name__", type(call).__name__)
    shown = "; ".join(dict.fromkeys(tried[:3])) or "its arguments allow no call"
    return (f"{name} is no LoRA layer that is recognised. Tried: {shown}. A function that returns the module is enough: "
            f"def made(in_features, out_features, rank, alpha): return {name}(…)")


@contextmanager
def _default(dtype: torch.dtype):
    usual = torch.get_default_dtype()
    if dtype == torch.float64:  # a buffer made in float32 would lose digits before .to()
        torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(usual)


def _each(plan: Plan, config: LayerConfig, place: str = PLACE) -> Iterator[tuple[str, nn.Module]]:
    """The modules that may compute y after one call: see ways.py. Raises Unsupported, and whatever the call raises."""
    set_seed(config)
    dtype, device = getattr(torch, config.dtype), torch.device(config.device)
    with _default(dtype):
        linear = nn.Linear(config.in_features, config.out_features, config.bias, device=device, dtype=dtype)
        model = Model(linear, place)
        made = plan.built(config, linear, model)
    for words, module in ways(made, linear, model):
        yield words, module.to(device=device, dtype=dtype)


def _looked(plan: Plan, config: LayerConfig, place: str) -> tuple[Found | None, str]:
    """What was found with this plan. If nothing, what happened, in words."""
    try:
        every = [words for words, _ in _each(plan, config, place)]
    except Unsupported as reason:
        return None, f"no {reason}"
    except Exception as error:
        return None, f"{type(error).__name__}: {str(error)[:120]}"
    best: Found | None = None
    for words in every:
        def make(words: str = words) -> nn.Module:
            return _made(plan, config, words, place)

        with suppress(Exception):
            rank = SIZES[2] if plan.offers("rank") else None
            places = arrays.found(make, config.in_features, config.out_features, rank)
            if places is not None and (best is None or len(places.seen) > len(best.places.seen)):
                best = Found(plan, words, places, place)
                if len(places.seen) == len(SEEN):
                    break
    if best is None:
        there = arrays.tensors(_made(plan, config, every[0], place)) if every else {}
        have = ", ".join(f"{path} {tuple(tensor.shape)}" for path, tensor in there.items())
        sizes = f"in = {config.in_features}, out = {config.out_features}, rank = {config.rank}"
        return None, f"with {sizes} it has {have or 'no arrays'}"
    return best, ""


def _made(plan: Plan, config: LayerConfig, way: str, place: str = PLACE) -> nn.Module:
    """The module that computes y in this way; the ways after it are not tried."""
    for words, module in _each(plan, config, place):
        if words == way:
            return module
    raise RuntimeError(f"{plan.words} no longer gives {way or 'a module'}")


# --- what it has chosen ------------------------------------------------------------------------------------------------

OTHERS = ((3, 6.0), (3, 9.0), (2, 8.0), (5, 20.0))  # rank and alpha


def _settle(found: Found) -> None:
    """Finds out its scale, the ranks and biases that it offers, and who freezes W and b."""
    paths, bias = found.places.paths, "b" in found.places.paths
    if not found.plan.offers("rank"):
        found.rank = found.places.rank
    probe = replace(PROBE, bias=bias, out_features=SIZES[0] if found.plan.square else SIZES[1])
    found.bias = (bias,) if not _fits(found, replace(probe, bias=not bias)) else (True, False)
    found.rule = _rule(found, probe)
    if found.rule == "alpha":
        named = [name for name, role in found.plan.roles.items() if role == "alpha"]
        found.direct = next((name for name in named if "alpha" not in name.lower()), "")
    found.probe = replace(probe, rank=found.places.rank)
    module = found.module(found.probe)
    trains = dict(module.named_parameters())
    found.base_trains = tuple(name for name in "Wb" if paths.get(name) in trains and trains[paths[name]].requires_grad)
    if found.base_trains:
        found.freezer = _freezer(found, found.probe)


def _fits(found: Found, config: LayerConfig) -> bool:
    """Whether the layer of this configuration has the arrays that it should have."""
    with suppress(Exception):
        have = arrays.tensors(found.module(config))
        b = found.places.paths.get("b")
        return (b in have if config.bias and b else not config.bias and len(have) > 2 and (b is None or b not in have))
    return False


def _rule(found: Found, config: LayerConfig) -> str:
    """The rule of the scale: the name of one of SCALES, "always …", or what was measured."""
    seen: list[tuple[float, int, float]] = []
    for rank, alpha in OTHERS:
        with suppress(Exception):
            tried = replace(config, rank=rank if found.rank is None else found.rank, alpha=alpha)
            places = arrays.tried(lambda config=tried: found.module(config), found.places.paths, found.places.transposed,
                                  (tried.in_features, tried.out_features, tried.rank))
            if places.scale is not None:
                seen.append((alpha, tried.rank, places.scale))
    if not seen:
        return ""
    rules = [name for name, rule in SCALES.items() if all(same_number(scale, rule(alpha, rank)) for alpha, rank, scale in seen)]
    if len({scale for *_, scale in seen}) == 1 and len(seen) > 1:
        return f"always {seen[0][2]:.17g}"  # every digit: it becomes Subject.scale
    return rules[0] if rules else "; ".join(f"{scale:.5g} for alpha {alpha:g}, rank {rank}" for alpha, rank, scale in seen)


FREEZES = ("freeze", "only_lora", "lora_only", "trainable", "requires_grad", "frozen")


def _freezer(found: Found, config: LayerConfig) -> str:
    """The name of the function beside the class, or after a point that of its method, that freezes most of W and b and leaves A
    and B. "" if there is none."""
    def wanted(name: str) -> bool:
        return any(word in name.lower() for word in FREEZES) and not name.startswith("__")

    beside = vars(inspect.getmodule(found.plan.call) or object).items()
    functions = [name for name, value in beside if wanted(name) and inspect.isfunction(value)]
    methods = [name for name in dir(type(found.module(config))) if wanted(name) and not hasattr(nn.Module, name)]
    best, fewest = "", len(found.base_trains)
    for name in (*functions, *(f".{name}" for name in methods)):
        module = found.module(config)
        with suppress(Exception):
            call_freezer(found.plan.call, module, name)
            left = still_train(module, found.places.paths)
            if left is not None and left < fewest:
                best, fewest = name, left
    return best


def call_freezer(call: Callable[..., Any], module: nn.Module, name: str) -> None:
    """Calls the function beside the class, or after a point the method, of this name."""
    if name.startswith("."):
        getattr(module, name[1:])()
    else:
        vars(inspect.getmodule(call))[name](module)


def still_train(module: nn.Module, paths: dict[str, str]) -> int | None:
    """How many of W and b train in the module. None if A or B does not."""
    trains = {path: parameter.requires_grad for path, parameter in module.named_parameters()}
    if not all(trains.get(paths[name]) for name in "AB"):
        return None
    return sum(trains.get(paths.get(name, ""), False) for name in "Wb")
