"""What a server may do instead of applying an adapter: serve the base model, leave out modules, use another strength …"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

from conformance.files.meaning import Meaning
from conformance.files.peft_settings import DEFAULT
from conformance.files.probe.truth import Cache, Change, Changes
from conformance.truth.compare import same_number

APPLIED, PARTLY, STRENGTH, OTHER, STALE, BASE = (
    "applied", "partly applied", "wrong strength", "another adapter", "stale", "base model")

Adapter = dict[str, Change]


class Alternative(NamedTuple):
    """One thing that a server may compute."""

    kind: str  # APPLIED, PARTLY …
    words: str
    changes: Changes
    cache: Cache | None = None


ALONE = Alternative(BASE, "the base model alone", [])


def instead_of(adapter: Adapter, meaning: Meaning, others: dict[str, Adapter]) -> list[Alternative]:
    """The adapter itself, and what is known to happen in its place. `others` are adapters by name."""
    found = [Alternative(APPLIED, "the adapter as its file says", [adapter]), ALONE]
    for partition in (kinds(adapter), layers(adapter)):
        if len(partition) > 1:
            found += [Alternative(PARTLY, f"without {group}", [{name: adapter[name] for name in adapter if name not in left}])
                      for group, left in partition.items()]
    strengths = [(words, scaled(adapter, factor)) for words, factor in _strengths(meaning)]
    found += [Alternative(STRENGTH, words, [other]) for words, other in strengths
              if not all(same_number(change.scale, adapter[name].scale) for name, change in other.items())]
    turned = {name: Change(B.T, A.T, scale) if A.shape[0] == B.shape[1] else Change(A, B, scale)
              for name, (A, B, scale) in adapter.items()}
    square = sorted({kind_of(name) for name, (A, B, _) in adapter.items() if A.shape[0] == B.shape[1]})
    if square:
        found.append(Alternative(OTHER, f"ΔW transposed in {', '.join(square)}, which are square", [turned]))
    return found + [Alternative(OTHER, name, [other]) for name, other in others.items()]


def among(right: str, adapters: dict[str, Adapter], before: Iterable[str] = ()) -> list[Alternative]:
    """The adapter of this name, or the base model if it is empty; the base model; and the other adapters, of which those that
    had the name before are stale."""
    others = [Alternative(STALE if name in before else OTHER, name, [adapter])
              for name, adapter in adapters.items() if name != right]
    return [Alternative(APPLIED, right, [adapters[right]]), ALONE, *others] if right else [ALONE, *others]


def after(cached: Alternative, right: Alternative, length: int) -> list[Alternative]:
    """What comes of prompts of this length whose first tokens were kept from another time: all but the last token, or whole
    blocks of 16 or 128."""
    kept = {(length - 1) // block * block for block in (1, 16, 128)} - {0}
    return [Alternative(STALE, f"{right.words}, after {count} tokens in a cache of: {cached.words}", right.changes,
                        Cache(cached.changes, count)) for count in sorted(kept, reverse=True)]


def _strengths(meaning: Meaning) -> list[tuple[str, Callable[[str, Change], float]]]:
    """Factors by which servers and converters get the strength of a module wrong."""
    alpha, rank = (meaning.settings.get(name, DEFAULT) for name in ("lora_alpha", "r"))

    def over(scale: Callable[[str, Change], float]) -> Callable[[str, Change], float]:
        return lambda name, change: scale(name, change) / change.scale if change.scale else 1.0

    found = [
        ("√rank times its strength", lambda name, change: math.sqrt(change.A.shape[1])),
        ("its strength over √rank", lambda name, change: 1 / math.sqrt(change.A.shape[1])),
        ("rank times its strength", lambda name, change: change.A.shape[1]),
        ("its strength over the rank", lambda name, change: 1 / change.A.shape[1]),
        ("half its strength", lambda name, change: 0.5),
        ("twice its strength", lambda name, change: 2.0),
        ("against its direction", lambda name, change: -1.0),
        ("scale 1 in every module", over(lambda name, change: 1.0)),
    ]
    if meaning.format == "PEFT":
        found += [
            ("scale lora_alpha / rank, without rslora and alpha_pattern", over(lambda name, change: alpha / change.A.shape[1])),
            ("scale lora_alpha / r, without rslora and patterns", over(lambda name, change: alpha / rank)),
        ]
    return found


def scaled(adapter: Adapter, factor: Callable[[str, Change], float]) -> Adapter:
    return {name: change._replace(scale=change.scale * factor(name, change)) for name, change in adapter.items()}


def kind_of(module: str) -> str:
    """The last part of its name: q_proj."""
    return module.rpartition(".")[2]


def kinds(adapter: Adapter) -> dict[str, list[str]]:
    """The modules by the last part of their names."""
    return _grouped(adapter, kind_of)


def layers(adapter: Adapter) -> dict[str, list[str]]:
    """The modules by the first number in their names."""
    return _grouped(adapter, lambda module: next((f"layer {part}" for part in module.split(".") if part.isdigit()), module))


def _grouped(adapter: Adapter, group: Callable[[str], str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for module in adapter:
        found.setdefault(group(module), []).append(module)
    return found
