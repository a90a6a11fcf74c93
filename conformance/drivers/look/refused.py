"""Says why a class or function is not judged as a LoRA layer although something was found, and what would settle it."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from conformance.drivers.look import arrays, building
from conformance.drivers.look.arguments import Plan
from conformance.drivers.look.arrays import SEEN
from conformance.drivers.look.steps import needed_besides_x
from conformance.drivers.look.ways import Patched
from conformance.subject import LayerConfig

if TYPE_CHECKING:
    from conformance.drivers.look.recognised import Found

FUSED = 3  # parts of a fused layer: query, key and value


class NotRecognised(TypeError):
    """No LoRA layer was found. The message says what was tried, what happened, and what would settle it."""


def reason(call: Callable[..., Any], one: "Found") -> str:
    """Why what was found is not judged: a sentence, and what would settle it. "" if it is judged."""
    why, remedy = _reason(one.module(one.probe), one)
    name = getattr(call, "__name__", type(call).__name__)
    return why and (f"{one.plan.words} is built, and {why}. What would settle it: def made(in_features, out_features, rank, "
                    f"alpha): {remedy.format(made=f'{name}(…)')}")


def _reason(module: nn.Module, one: "Found") -> tuple[str, str]:
    """What is in the way, and what a function should do about it. "" if nothing is."""
    seen, error, paths = one.places.seen, one.places.error, one.places.paths
    if SEEN[0] not in seen:
        if needed := needed_besides_x(module.lora if isinstance(module, Patched) and module.lora is not None else module):
            given = ", ".join(f"{name}=…" for name in needed)
            return (f"its forward() needs {' and '.join(needed)} besides x, and 1, 0, True, None or a name there does not do",
                    f"layer = {{made}}; layer.forward = functools.partial(layer.forward, {given}); return layer")
        if not _is_of_shapes(error) or not one.plan.is_named:
            return (f"its forward pass raises {type(error).__name__}: {str(error)[:120]}. None of its methods and flags that "
                    "were tried changes this", "layer = {made}; …; return layer  # with what makes it ready in the middle")
    elif pairs := several(module, one):
        return (f"holds {len(pairs)} pairs of factors ({', '.join(pairs)}), and what they add to y is no multiple of one "
                "product (x A) B: this is no single LoRA", "return …  # a module with one pair")
    elif SEEN[2] not in seen and SEEN[3] not in seen:
        return (f"neither A ({paths['A']}) nor B ({paths['B']}) moves y: either it adds no LoRA part, or it is switched off, "
                "and none of its methods and flags that were tried switches it on",
                "layer = {made}; …; return layer  # with what switches it on in the middle")
    return "", ""


def _is_of_shapes(error: Exception | None) -> bool:
    """Whether the shapes of two arrays do not fit: that is a fault of the layer, which lacks nothing."""
    frames = traceback.extract_tb(error.__traceback__) if error else []
    on_purpose = bool(frames) and (frames[-1].line or "").startswith(("raise", "assert"))
    return any(word in str(error) for word in ("shape", "size", "expected (")) and not on_purpose


def several(module: nn.Module, one: "Found") -> list[str]:
    """The pairs of factors of a module whose LoRA part is no multiple of (x A) B, if it has more than one pair."""
    if SEEN[5] in one.places.seen:
        return []
    r, config = one.places.rank, one.probe
    return _pairs(module, (config.in_features, r), (r, config.out_features))


def _pairs(module: nn.Module, A: tuple[int, int], B: tuple[int, int]) -> list[str]:
    """Pairs of paths of arrays of these shapes, in either layout, if there are two or more."""
    have = {path: tuple(tensor.shape) for path, tensor in arrays.tensors(module).items()}
    first, second = ([path for path, shape in have.items() if shape in (wanted, wanted[::-1])] for wanted in (A, B))
    if A[::-1] == B:  # of a square layer
        first, second = first[::2], first[1::2]
    pairs = [f"{a} with {b}" for a, b in zip(first, second, strict=False)]
    return pairs if len(pairs) > 1 else []


def fused(every: Iterator[Plan], probe: LayerConfig) -> str:
    """What a layer is that has factors for parts of a fused linear layer, such as query, key and value. "" if it is none."""
    for plan in every:
        with suppress(Exception):
            config = replace(probe, out_features=FUSED * probe.in_features)
            _, module = next(building.each(plan, config))
            n, r = probe.in_features, probe.rank
            if pairs := _pairs(module, (n, r), (r, n)):
                return (f"{plan.words} is built around a fused layer with out = {FUSED} · in, and holds {len(pairs)} pairs of "
                        f"factors, each for a part of y ({', '.join(pairs)}): this is no single LoRA. A function that returns "
                        "one part as a module would settle it; conformance/subjects/litgpt_qkv.py shows how a part is judged")
    return ""
