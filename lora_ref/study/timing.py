"""Times of training steps and of inference, taken in rounds in which every method has its turn.

What disturbs the machine then disturbs all methods alike. Times are compared as ratios within a round.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from lora_ref import optim, transformer
from lora_ref.places import Arrays
from lora_ref.study.fine_tuning import BATCH, CONFIG, LENGTH, Method, start, step

ROUNDS = 60
RATE = 1e-2  # of the timed steps, whose time does not depend on it


def latency(methods: list[Method], base: Arrays) -> list[dict[int, tuple[float, ...]]]:
    """The time of a forward pass of each method in each round, merged where that is possible, for batches of 1 and 16."""
    rng = np.random.default_rng(1)
    forms = []
    for method in methods:
        arrays, _ = start(base, method, rng)
        forms.append((*transformer.merge(arrays, method.config, method.methods), method.config))
    found: list[dict[int, tuple[float, ...]]] = [{} for _ in methods]
    for batch in 1, 16:
        words = rng.integers(0, CONFIG.vocabulary, (batch, LENGTH))
        calls = [partial(transformer.forward, words, config=config, methods=left) for _, left, config in forms]
        for its, times in zip(found, in_turns(calls, [arrays for arrays, _, _ in forms], rng), strict=True):
            its[batch] = times
    return found


def step_times(methods: list[Method], base: Arrays) -> list[tuple[float, ...]]:
    """The time of a training step of each method in each round."""
    rng = np.random.default_rng(2)
    words, calls, every = rng.integers(0, CONFIG.vocabulary, (BATCH, LENGTH + 1)), [], []
    for method in methods:
        arrays, names = start(base, method, rng)
        state = optim.adamw_init({name: arrays[name] for name in names})
        calls.append(partial(
            step, names=names, config=method.config, methods=method.methods, words=words, rate=RATE, state=state))
        every.append(arrays)
    return in_turns(calls, every, rng)


def in_turns(calls: Sequence[Callable], arrays: list[Arrays], rng: np.random.Generator) -> list[tuple[float, ...]]:
    """The time of each call with its arrays, in each round.

    In a round every call has its turn, in a random order. It works on copies of its arrays, because the address of an array
    changes the time by a few percent. It runs twice and the second run counts, because the first brings the arrays into the
    caches. Each answer lives until the next one, as in a loop, so that its memory does not go back to the system.
    """
    times: list[list[float]] = [[] for _ in calls]
    answer = None
    for turn in range(ROUNDS + 2):
        for i in rng.permutation(len(calls)):
            copies = {name: array.copy() for name, array in arrays[i].items()}
            for _ in range(2):
                started = time.perf_counter()
                answer = calls[i](arrays=copies)
            if turn >= 2:  # the code is warm, too
                times[i].append(time.perf_counter() - started)
    del answer
    return [tuple(its) for its in times]
