"""conformance file: the meaning by the clauses of FILES.md."""

from pathlib import Path

import numpy as np

from conformance.files import container, reading
from conformance.files.binary import Arrays
from conformance.files.meaning import Meaning
from conformance.files.peft import WEIGHTS

NEEDS, ENVIRONMENT = (), None
CORPUS, LOGITS = True, False
FORMATS = ("peft", "kohya", "diffusers", "torchtune", "mlx-lm", "gguf")


def read(place: str, base: Arrays) -> Arrays:
    meaning = reading.read(place)
    if meaning.format == "PEFT":
        reading.compare(meaning, {name: weight.shape for name, weight in base.items()})
    if not meaning.right:
        raise ValueError("; ".join(f"{issue.code} {issue.where}: {issue.words}" for issue in meaning.issues))
    return deltas(meaning, base)


def deltas(meaning: Meaning, base: Arrays) -> Arrays:
    """ΔW of every module that the meaning changes, and under "{module}.bias" what is added to its output. Raises ValueError for
    DoRA without W."""
    found = {part.module: part.delta(base.get(f"{part.module}.weight")) for part in meaning.parts}
    for part in meaning.parts:
        if part.bias and part.scale.value is not None:
            found[f"{part.module}.bias"] = part.scale.value * part.A.container.array(part.bias).astype(np.float64)
    for other in meaning.others:
        held, _ = container.read(str(Path(meaning.path) / WEIGHTS))
        change = held.array(other.name).astype(np.float64) - base.get(other.place, 0.0)
        if change.any():
            found[other.place.removesuffix(".weight")] = change
    return found
