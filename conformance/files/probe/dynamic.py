"""Changes a server's adapters while it runs, in a random order, and asks after every change.

A model of the server says what each name must mean now. An answer must be that of its adapter as it is now: not that of one
that had the name before, not that of a cache which was filled before (stale), and not another adapter's. A name that was
unloaded must be refused.
"""

import random
from collections.abc import Iterator

from conformance.files.probe.alternatives import ALONE, APPLIED, OTHER, STALE, Adapter, Alternative, among, scaled
from conformance.files.probe.asking import AT_ONCE, Asked, Round, answers, ask, kept_apart
from conformance.files.probe.judge import Noise, judge
from conformance.files.probe.served import Models, Scales
from conformance.files.probe.server import Refused, Who
from conformance.files.probe.truth import Truth

NAMES = ("conformance-probe-1", "conformance-probe-2")
FACTORS = (0.0, 0.5, 1.0, 2.0)
OWN = 2  # sets of scales that requests of a step bring with them


def loads(offer: Models, truth: Truth, noise: Noise, known: dict[str, Adapter], base: Who, steps: int,
          seed: int) -> Iterator[Round]:
    """Loads, reloads and unloads adapters, known by their folders, under two names. In the end none of them is loaded. Raises
    Trouble."""
    rng, length = random.Random(seed), len(truth.prompts[0])
    now: dict[str, str] = {}  # name → folder
    before: dict[str, list[str]] = {name: [] for name in NAMES}
    try:
        for step in range(steps):
            name = rng.choice(NAMES)
            if name in now and rng.random() < 0.5:
                offer.unload(name)
                words = f"{name}: {now[name]} is unloaded"
                before[name].append(now.pop(name))
            else:
                folder = rng.choice([folder for folder in known if folder != now.get(name)])
                offer.load(name, folder, in_place=name in now)
                words = f"{name}: {folder} is loaded" + (f" in the place of {now[name]}" if name in now else "")
                before[name] += [now[name]] if name in now else []
                now[name] = folder
            asked = [Asked("the base model", base, among("", known))]
            for name, folder in now.items():
                found = among(folder, known, before[name])
                stale = [other for other in found if other.kind == STALE]
                asked.append(kept_apart(Asked(name, {"model": name}, found), stale, length))
            round = ask(offer.server, truth, noise, asked, words, AT_ONCE, step)
            for gone in (name for name in NAMES if before[name] and name not in now):
                try:
                    (places, values), = answers(offer.server, truth, [{"model": gone}], 1)
                except Refused:
                    continue
                found = judge(truth, places, values, among("", known, before[gone]), noise)
                round.verdicts[gone] = found._replace(right=False, words=f"it is unloaded, and still answers: {found.words}")
            yield round
    finally:
        for name in now:
            offer.unload(name)


def scales(offer: Scales, truth: Truth, noise: Noise, known: dict[str, Adapter], steps: int, seed: int) -> Iterator[Round]:
    """Sets the scales of adapters, known by their names in the server, for all requests. Asks in one batch without scales, and
    with scales of a request's own. In the end the scales are as they were. Raises Trouble."""
    rng, length = random.Random(seed), len(truth.prompts[0])
    earlier: list[Alternative] = []
    try:
        for step in range(steps):
            drawn = [{name: rng.choice(FACTORS) for name in known} for _ in range(1 + OWN)]
            meant = [_meant(known, factors) for factors in drawn]
            numbered = [{offer.number(name): factor for name, factor in factors.items()} for factors in drawn]
            offer.set(numbered[0])
            whos = [{}, *map(offer.asked, numbered[1:])]
            asked = []
            for number, (who, right) in enumerate(zip(whos, meant, strict=True)):
                others = _apart([right, ALONE, *(other._replace(kind=OTHER) for other in meant), *earlier])
                words = f"requests {f'with scales of their own, {number}' if who else 'without scales'}: {right.words}"
                asked.append(kept_apart(Asked(words, who, others), others, length))
            yield ask(offer.server, truth, noise, asked, f"the scales are set: {meant[0].words}", AT_ONCE, step)
            earlier = [alternative._replace(kind=STALE) for alternative in meant]
    finally:
        offer.set(offer.start)


def _meant(known: dict[str, Adapter], factors: dict[str, float]) -> Alternative:
    """What adapters with these factors mean together."""
    changes = [scaled(known[name], lambda *_, factor=factor: factor) for name, factor in factors.items() if factor]
    words = " + ".join(f"{factor:g} × {name}" for name, factor in factors.items() if factor)
    return Alternative(APPLIED, words, changes) if changes else ALONE


def _apart(alternatives: list[Alternative]) -> list[Alternative]:
    """Those that mean something else than all before them."""
    found: dict[str, Alternative] = {}
    for alternative in alternatives:
        found.setdefault(alternative.words, alternative)
    return list(found.values())
