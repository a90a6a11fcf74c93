"""Asks a server for what it offers, alone and in mixed batches, and judges what it says."""

import random
from typing import NamedTuple

import numpy as np

from conformance.files.probe.alternatives import Alternative, after
from conformance.files.probe.judge import Noise, Verdict, judge, noise_of
from conformance.files.probe.server import Server, Who
from conformance.files.probe.truth import Places, Truth, together

AT_ONCE = 8  # requests in flight, in a mixed batch


class Asked(NamedTuple):
    """Something that a request can choose, and what it may be. The first alternative is the right one."""

    name: str
    who: Who
    alternatives: list[Alternative]


def kept_apart(asked: Asked, others: list[Alternative], length: int) -> Asked:
    """The same, where the prompts of this length may have been kept in a cache while one of `others` was meant."""
    right = asked.alternatives[0]
    return asked._replace(alternatives=asked.alternatives + [
        stale for other in others if other.words != right.words for stale in after(other, right, length)])


class Round(NamedTuple):
    """What the server answered at one time."""

    words: str
    verdicts: dict[str, Verdict]  # by the name of what was asked


def answers(server: Server, truth: Truth, whos: list[Who], at_once: int, seed: int = 0) -> list[tuple[Places, np.ndarray]]:
    """What the server says for each of `whos`, over all prompts. Where several requests are in flight, their order is drawn.
    Raises Trouble."""
    pairs = [(i, j) for i in range(len(whos)) for j in range(len(truth.prompts))]
    if at_once > 1:
        random.Random(seed).shuffle(pairs)
    said = dict(zip(pairs, server.ask_all([(whos[i], truth.prompts[j]) for i, j in pairs], at_once), strict=True))
    return [together([said[i, j] for j in range(len(truth.prompts))], truth.vocabulary) for i in range(len(whos))]


def measured(server: Server, truth: Truth, base: Who) -> Noise:
    """The noise, from two answers of the base model to every prompt: alone, and in a batch. Raises Trouble."""
    first, second = (answers(server, truth, [base], at_once)[0] for at_once in (1, AT_ONCE))
    places = Places(*map(np.concatenate, zip(first[0], second[0], strict=True)))
    return noise_of(truth, places, np.concatenate([first[1], second[1]]))


def ask(server: Server, truth: Truth, noise: Noise, asked: list[Asked], words: str, at_once: int, seed: int = 0) -> Round:
    """The verdict on each of what is asked, in one batch. Raises Trouble."""
    found = answers(server, truth, [one.who for one in asked], at_once, seed)
    return Round(words, {one.name: judge(truth, places, values, one.alternatives, noise)
                         for one, (places, values) in zip(asked, found, strict=True)})
