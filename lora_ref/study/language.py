"""A made-up language whose entropy is known, to train small models on: a word depends on the two before it.

    the next word ~ T[class of the word before the last, last word]        T (classes, vocabulary, vocabulary)

`shifted` draws half of the rows of T anew, so half of what a model has learned still holds. The entropy is the lowest loss that
a model can have.
"""

from typing import NamedTuple

import numpy as np


class Language(NamedTuple):
    """T (classes, vocabulary, vocabulary): each row is the distribution of the next word."""

    T: np.ndarray

    @property
    def vocabulary(self) -> int:
        return self.T.shape[-1]


def language(rng: np.random.Generator, vocabulary: int = 32, classes: int = 2, sharpness: float = 3.0) -> Language:
    """Rows are softmax(sharpness · N(0, 1)): about five words in 32 carry most of each."""
    return Language(_rows(rng, (classes, vocabulary), vocabulary, sharpness))


def shifted(rng: np.random.Generator, old: Language, share: float = 0.5, sharpness: float = 3.0) -> Language:
    """The same language with that share of its rows drawn anew."""
    T = old.T.copy()
    again = rng.permutation(T.shape[0] * T.shape[1])[: round(share * T.shape[0] * T.shape[1])]
    T.reshape(-1, old.vocabulary)[again] = _rows(rng, (len(again),), old.vocabulary, sharpness)
    return Language(T)


def sample(rng: np.random.Generator, source: Language, batch: int, length: int) -> np.ndarray:
    """Words (batch, length), as int64."""
    words = np.empty((batch, length), np.int64)
    words[:, :2] = rng.integers(0, source.vocabulary, (batch, min(2, length)))
    cumulative = source.T.cumsum(-1)
    for t in range(2, length):
        rows = cumulative[words[:, t - 2] % len(source.T), words[:, t - 1]]                  # (batch, vocabulary)
        words[:, t] = np.minimum((rows < rng.random((batch, 1))).sum(-1), source.vocabulary - 1)
    return words


def entropy(source: Language, words: np.ndarray) -> float:
    """The mean of −log(probability) over the words from the third on: the loss of the best model."""
    p = source.T[words[:, :-2] % len(source.T), words[:, 1:-1], words[:, 2:]]
    return float(-np.log(p).mean())


def _rows(rng: np.random.Generator, shape: tuple[int, ...], vocabulary: int, sharpness: float) -> np.ndarray:
    T = np.exp(sharpness * rng.standard_normal((*shape, vocabulary)))
    return T / T.sum(-1, keepdims=True)
