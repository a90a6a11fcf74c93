"""Layers that say "not offered" where an answer would be seen to be wrong."""

import numpy as np

from conformance.mutants import mutant
from conformance.mutants.honest import Honest
from conformance.subject import Unsupported


@mutant(kills="OFFER-01")
class DeclinesOddRows(Honest):
    """An odd number of rows is not offered."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        if x.reshape(-1, x.shape[-1]).shape[0] % 2:
            raise Unsupported("an odd number of rows")
        return super().forward(x)


@mutant(kills="OFFER-01")
class DeclinesTheTenthCall(Honest):
    """The tenth forward pass and those after it are not offered."""

    calls = 0

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.calls += 1
        if self.calls >= 10:
            raise Unsupported("so many calls")
        return super().forward(x)


@mutant(kills="OFFER-01")
class DeclinesLargeNumbers(Honest):
    """An x with a number above 1 is not offered."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        if (np.abs(x.astype(np.float64)) > 1).any():
            raise Unsupported("such large numbers")
        return super().forward(x)
