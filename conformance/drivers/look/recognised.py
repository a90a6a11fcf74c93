"""Finds out how a LoRA layer is built and where its arrays are. settled.py finds out what it has chosen."""

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from conformance.drivers.look import arrays, building
from conformance.drivers.look.arguments import PLACE, Plan
from conformance.drivers.look.arrays import SEEN, SIZES, Places
from conformance.drivers.look.choices import chosen, without_fields
from conformance.drivers.look.names import ROLES
from conformance.drivers.look.plans import plans, turned
from conformance.drivers.look.refused import NotRecognised, fused, reason
from conformance.drivers.look.steps import completed, constructors, switched
from conformance.drivers.look.ways import BESIDE, PARAMETRISED, REPLACED
from conformance.subject import LayerConfig, Unsupported

PLACES = 12  # names of layers that are tried for a function that changes a model
FUSED_PLANS = 6  # of a layer that nothing was found in, that are tried around a fused layer
ROUNDS = 3  # in which something is added to a plan, such as a switch
FIELDS = 6  # names that a configuration is asked for beyond those that are known
PROBE = LayerConfig(SIZES[0], SIZES[1], SIZES[2], 6.0, dtype="float64")


@dataclass
class Found:
    """What recognition found out about a class or function."""

    plan: Plan
    way: str  # in words, which module computes y; "" for the one that the call gives
    places: Places
    probe: LayerConfig  # a configuration that it takes
    place: str = PLACE  # of the linear layer in a model that is changed
    bias: tuple[bool, ...] = ()  # whether a layer may have a bias
    rule: str = ""  # of the scale: one of SCALES, "always …", "… / rank", or what was measured
    direct: str = ""  # the argument that is the scale itself, and is called so
    limited: bool = False  # whether that argument takes small numbers alone
    moves_base: bool = False  # whether the call takes the LoRA part of the start away from the W that it is given
    rank: int | None = None  # if no other can be chosen
    base_trains: tuple[str, ...] = ()  # of W and b, those that are not frozen
    unreached: tuple[str, ...] = ()  # of those, the ones that no gradient reaches
    thawed: tuple[str, ...] = ()  # of those, the ones that the call makes trainable although they were given frozen
    also_trains: tuple[str, ...] = ()  # the paths of parameters that train and are none of W, b, A and B
    freezer: str = ""  # the function beside the class that freezes them
    formats: dict[str, str] | None = None  # number formats that it does not take → what happens

    @property
    def given(self) -> bool:
        """Whether W is the caller's: the class gets it, or does not hold it at all. Then the caller freezes it."""
        return self.plan.around in ("linear", "weight", "turned weight", "convolution", "model") or self.way in (
            BESIDE, REPLACED, PARAMETRISED)

    @property
    def mixed(self) -> bool:
        """Whether the LoRA part is computed in float32, over a base of any format."""
        return self.probe.dtype == "float32"

    def module(self, config: LayerConfig, frozen: bool = False, base: building.Base | None = None) -> nn.Module:
        """The module that computes y, for this configuration. `frozen` freezes the layer that the call gets beforehand, and
        `base` are its W and b."""
        if not self.mixed or config.dtype == "float32":
            return building.module_of(self.plan, config, self.way, self.place, frozen, base)
        module = building.module_of(self.plan, replace(config, dtype="float32"), self.way, self.place, frozen, base)
        have = arrays.tensors(module)
        for name in "Wb":
            tensor = have.get(self.places.paths.get(name, ""))
            if tensor is not None:
                tensor.data = tensor.data.to(getattr(torch, config.dtype))
        return module


def found(call: Callable[..., Any]) -> Found:
    """How it is built, and where its arrays are. Raises NotRecognised."""
    search = Search(call, "float64")
    if not search.complete and search.needs_float32:
        single = Search(call, "float32")
        search = single if len(single.seen) > len(search.seen) else search
    if search.best is None or (why := reason(call, search.best)):
        raise NotRecognised(search.message(why if search.best else ""))
    return search.best


class Search:
    """Tries ways to build a layer in this number format. `best` is what was found, or None."""

    def __init__(self, call: Callable[..., Any], dtype: str):
        self.call, self.probe = call, replace(PROBE, dtype=dtype)
        self.tried: list[str] = []
        self.best: Found | None = None
        self.first: Plan | None = None  # the likeliest plan, and then the first that gives something
        self._gave = False
        for each in constructors(call):
            for plan in plans(each):
                self.first = self.first or plan
                if self.better(plan) and len(self.seen) >= len(SEEN) - (plan.part is None):
                    break
            if self.complete:
                break
        if self.best is not None and not self.best.plan.offers("rank"):
            any(self.better(plan, as_good=True) for plan in completed(self.best.plan) if plan.offers("rank"))
        if not self.complete and self.first is not None:
            self._add()

    @property
    def seen(self) -> tuple[str, ...]:
        return self.best.places.seen if self.best else ()

    @property
    def complete(self) -> bool:
        return len(self.seen) == len(SEEN)

    @property
    def needs_float32(self) -> bool:
        """Whether something failed because two number formats met, or because the code checks the format where it adds the
        LoRA part."""
        if self.best is not None and self.seen and "B moves y" not in self.seen:
            return True
        errors = [*self.tried, str(self.best.places.error) if self.best else ""]
        return any(word in error for error in errors for word in ("dtype", "Double", "Float"))

    def _add(self) -> None:
        """Adds to the best plan what completes it or switches the layer on, as long as more is seen with it. What was seen
        before must be seen again."""
        for _ in range(ROUNDS):
            base = self.best.plan if self.best else self.first
            assert base is not None
            if not any(self.better(plan) for plan in self._further(base)) or self.complete:
                break

    def _further(self, plan: Plan) -> Iterator[Plan]:
        if self.best is not None:
            yield turned(plan)  # those who think of W as (in, out) call its first size in
        if not self.seen:
            yield from chosen(plan)
        if not self.seen or not plan.offers("rank"):
            yield from completed(plan)
        for one in (plan, *without_fields(plan)):
            with suppress(Exception):
                made = one.built(self.probe_of(one), nn.Linear(*SIZES[:2], dtype=getattr(torch, self.probe.dtype)))
                yield from switched(one, made)

    def probe_of(self, plan: Plan) -> LayerConfig:
        return replace(self.probe, out_features=SIZES[0]) if plan.square else self.probe

    def better(self, plan: Plan, as_good: bool = False) -> bool:
        """Whether more is found with this plan than before, or as much is good enough; then it is kept. What happened otherwise
        is added to `tried`."""
        places = (PLACE, *_words(plan.call)) if plan.around == "model" else (PLACE,)
        happened = ""
        for place in places:
            for bias in (True, False):
                one, said, plan = self.filled(plan, replace(self.probe_of(plan), bias=bias), place)
                if one is not None:
                    seen = set(one.places.seen)
                    more = self.best is None or seen > set(self.seen) or as_good and seen == set(self.seen)
                    lost = self.best is not None and bool(self.seen) and "b" in self.best.places.paths
                    lost = lost and "b" not in one.places.paths
                    if more and not lost:
                        self.best = one
                    return more and not lost
                happened = happened or said
        if happened.startswith("with ") and not self._gave:
            self.first, self._gave = plan, True
        self.tried.append(f"{plan.words}: {happened}")
        return False

    def filled(self, plan: Plan, config: LayerConfig, place: str) -> tuple[Found | None, str, Plan]:
        """What is found with the plan. A name that its configuration lacks is added to it, as False, then as 1."""
        one, said = _looked(plan, config, place)
        for _ in range(FIELDS):
            lacking = re.search(r"no class has no (\w+)|^KeyError: '(\w+)'", said)
            known = "configuration" not in plan.roles.values() or plan.kind is not None
            if one is not None or lacking is None or known:
                break
            name = lacking[1] or lacking[2]
            plan = replace(plan, fields=plan.fields | {name: False})
            one, said = _looked(plan, config, place)
        return one, said, plan

    def message(self, why: str) -> str:
        name = getattr(self.call, "__name__", type(self.call).__name__)
        why = why or fused(islice(plans(self.call), FUSED_PLANS), self.probe)
        if why:
            return f"{name} is no LoRA layer that is recognised. {why}"
        shown = "; ".join(dict.fromkeys(self.tried[:3])) or "its arguments allow no call"
        return (f"{name} is no LoRA layer that is recognised. Tried: {shown}. A function that returns the module is enough: "
                f"def made(in_features, out_features, rank, alpha): return {name}(…)")


def _words(call: Callable[..., Any]) -> list[str]:
    """The names in the text of a function, and of the lists beside it, that may be those of the layers that it changes."""
    words: list[str] = []

    def add(constants: tuple) -> None:
        for one in constants:
            if isinstance(one, str) and one.isidentifier() and one not in ROLES:
                words.append(one)
            elif isinstance(one, tuple | frozenset | list | set):
                add(tuple(one))
            elif inspect.iscode(one):
                add(one.co_consts)

    function = call.__init__ if isinstance(call, type) else call
    if inspect.isfunction(function):
        add(function.__defaults__ or ())
        add(function.__code__.co_consts)
        add(tuple(value for value in function.__globals__.values() if isinstance(value, tuple | list | set)))
    return list(dict.fromkeys(words))[:PLACES]


def _looked(plan: Plan, config: LayerConfig, place: str) -> tuple[Found | None, str]:
    """What was found with this plan. If nothing, what happened, in words."""
    try:
        every = [words for words, _ in building.each(plan, config, place)]
    except Unsupported as lacking:
        return None, f"no {lacking}"
    except Exception as error:
        return None, f"{type(error).__name__}: {str(error)[:120]}"
    best: Found | None = None
    for words in every:
        def make(words: str = words) -> nn.Module:
            return building.module_of(plan, config, words, place)

        with suppress(Exception):
            rank = SIZES[2] if plan.offers("rank") else None
            places = arrays.found(make, config.in_features, config.out_features, rank)
            if places is not None and (best is None or len(places.seen) > len(best.places.seen)):
                best = Found(plan, words, places, replace(config, bias="b" in places.paths, rank=places.rank), place)
                if len(places.seen) == len(SEEN):
                    break
    if best is None:
        there = arrays.tensors(building.module_of(plan, config, every[0], place)) if every else {}
        have = ", ".join(f"{path} {tuple(tensor.shape)}" for path, tensor in there.items())
        sizes = f"in = {config.in_features}, out = {config.out_features}, rank = {config.rank}"
        return None, f"with {sizes} it has {have or 'no arrays'}"
    return best, ""
