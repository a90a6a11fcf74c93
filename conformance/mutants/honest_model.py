"""The honest model that the mutants of MODEL, ADAPT, PREFIX and PTUNE are made of, and honest ways to compute it otherwise."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar
from unittest import mock

import numpy as np

from conformance.model import Model, places
from conformance.subject import Arrays
from conformance.subjects.lora_ref import RefModel
from lora_ref import transformer


class HonestModel(RefModel):
    """`lora_ref.transformer`. A mutant swaps one of its functions, for as long as it computes, or overrides a method."""

    swaps: ClassVar[dict[tuple[Any, str], Callable]] = {}  # (module, name of a function) → what stands in its place

    @contextmanager
    def swapped(self) -> Iterator[None]:
        with ExitStack() as stack:
            for (module, name), function in self.swaps.items():
                stack.enter_context(mock.patch.object(module, name, function))
            yield

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        with self.swapped():
            return super().forward(tokens, mask)

    def with_arrays(self, tokens: np.ndarray, mask: np.ndarray | None, base: Arrays | None = None,
                    trained: Arrays | None = None) -> np.ndarray:
        """The forward pass of this class with some of its arrays replaced, for this once."""
        kept = self.W, self.p
        self.W, self.p = self.W | (base or {}), self.p | (trained or {})
        logits = HonestModel.forward(self, tokens, mask)
        self.W, self.p = kept
        return logits

    def backward(self, dlogits: np.ndarray) -> Arrays:
        with self.swapped():
            return super().backward(dlogits)

    def folded(self) -> None:
        with self.swapped():
            super().folded()

    @property
    def adapted(self) -> tuple[str, ...]:
        """The places of the method."""
        return places(self.config)


class SampleBySample(HonestModel):
    """Every sample goes through the model alone, and the gradients are added up."""

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        self.caches, logits = [], []
        for i in range(len(tokens)):
            logits.append(super().forward(tokens[i : i + 1], None if mask is None else mask[i : i + 1]))
            self.caches.append(self.cache)
        return np.concatenate(logits)

    def backward(self, dlogits: np.ndarray) -> Arrays:
        for i, cache in enumerate(self.caches):
            self.cache = cache
            super().backward(dlogits[i : i + 1])
        return dict(self.dp)


class AddsIntoTheWeights(HonestModel):
    """LoRA is added into W in every forward pass; at the start that is W + 0. It gives no gradients."""

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        arrays, methods = self.W | self.p, self.methods
        if self.config.method == "lora" and self.on:
            arrays, methods = transformer.merge(arrays, self.reference, methods)
            return transformer.forward(tokens, arrays, self.reference, methods, mask)[0]
        return super().forward(tokens, mask)

    backward = Model.backward  # type: ignore[assignment]


class RoundsAtTheEnd(HonestModel):
    """Everything is computed in a wider format and rounded once. It gives no gradients."""

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        wide = {name: array.astype(np.longdouble) for name, array in (self.W | (self.p if self.on else {})).items()}
        dtype = next(iter(self.W.values())).dtype
        return transformer.forward(tokens, wide, self.reference, self.methods if self.on else {}, mask)[0].astype(dtype)

    backward = Model.backward  # type: ignore[assignment]
