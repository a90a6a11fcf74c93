"""A whole probe: finds out what the server offers, measures its noise, and asks for the adapter, alone and beside others."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from conformance.files import reading
from conformance.files.probe import calibrated, dynamic
from conformance.files.probe.alternatives import ALONE, Adapter, among, instead_of
from conformance.files.probe.asking import AT_ONCE, Asked, Round, ask, kept_apart, measured
from conformance.files.probe.judge import Noise
from conformance.files.probe.served import Models, Scales, offered, request
from conformance.files.probe.server import Prompt, Server, Who
from conformance.files.probe.truth import Truth


class Wish(NamedTuple):
    """What the user says. Empty is unknown."""

    model: str = ""  # the adapter's name in the server
    base_model: str = ""  # the base model's
    adapter: str = ""  # folders
    base: str = ""
    others: tuple[tuple[str, str], ...] = ()  # name in the server or empty, folder
    prompts: int = 32
    tokens: int = 16
    seed: int = 0  # of the prompts, and of the dynamic part
    steps: int = 0  # of the dynamic part


class Report(NamedTuple):
    """What was found."""

    model: str
    way: str
    noise: Noise
    rounds: list[Round]


def probe(server: Server, wish: Wish, tell: Callable[[str], None] = lambda words: None) -> Report:
    """Raises Trouble, CannotTell and ValueError."""
    offer = offered(server)
    model = wish.model or offer.only()
    general = wish.base_model or offer.base(model)
    base_who, who = request(offer, model, general)
    base_folder = wish.base or offer.folder(general)
    folder = wish.adapter or offer.folder(model)
    for option, found in (("--base", base_folder), ("--adapter", folder)):
        if not found:
            raise ValueError(f"the server does not tell a folder of this machine: {option} DIR is needed")
    tell("the base model is read")
    truth = Truth(str(base_folder))
    news = new_prompts(truth.vocabulary, wish)
    meaning = reading.read(str(folder))
    known = {str(folder): truth.changes(meaning)} | {place: truth.changes(reading.read(place)) for _, place in wish.others}
    mine = instead_of(known[str(folder)], meaning, {place: known[place] for _, place in wish.others})
    asked = [kept_apart(Asked(model, who, mine), [ALONE], wish.tokens)]
    tell("the base model is asked, to measure the noise")
    truth.prompts = old = next(news)
    server.choose_way(base_who, truth.prompts)
    noise = measured(server, truth, base_who)
    rounds = []
    for prompts, words in ((next(news), "new prompts"), (old, "prompts that the base model was asked before")):
        tell(words)
        truth.prompts = prompts
        rounds.append(ask(server, truth, noise, asked, words, 1))
    truth.prompts = next(news)
    asked = [Asked(model, who, mine), Asked("the base model", base_who, among("", known))]
    asked += [Asked(name, request(offer, name, general)[1], among(place, known)) for name, place in wish.others if name]
    meant = [one.alternatives[0] for one in asked]
    rounds.append(ask(server, truth, noise, [kept_apart(one, meant, wish.tokens) for one in asked],
                      f"new prompts, {AT_ONCE} requests at once", AT_ONCE))
    truth.prompts = next(news)
    for step in changed(offer, truth, noise, wish, known, {model: str(folder), **dict(wish.others)}, base_who):
        rounds.append(step)
        tell(f"step {len(rounds) - 3} of {wish.steps}")
    return Report(model, server.way, noise, rounds)


def new_prompts(vocabulary: int, wish: Wish) -> Iterator[list[Prompt]]:
    """Prompts of random tokens without end. No server has them in a cache."""
    rng = np.random.default_rng(wish.seed)
    while True:
        yield rng.integers(0, vocabulary, (wish.prompts, wish.tokens)).tolist()


def changed(offer: Models | Scales, truth: Truth, noise: Noise, wish: Wish, known: dict[str, Adapter], names: dict[str, str],
            base_who: Who) -> Iterator[Round]:
    """The steps of the dynamic part. A server that loads folders gets two adapters of ours, if only one is known."""
    if not wish.steps:
        return
    if isinstance(offer, Scales):
        served = {name: known[place] for name, place in names.items() if name}
        yield from dynamic.scales(offer, truth, noise, served, wish.steps, wish.seed)
        return
    with tempfile.TemporaryDirectory(prefix="conformance-") as scratch:
        if len(known) < 2:
            made = calibrated.write(truth, Path(scratch) / "calibrated")
            places = [f"{scratch}/calibrated/{name}" for name in list(made)[:2]]
            known = known | {place: truth.changes(reading.read(place)) for place in places}
        yield from dynamic.loads(offer, truth, noise, known, base_who, wish.steps, wish.seed)
