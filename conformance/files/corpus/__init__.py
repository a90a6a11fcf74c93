"""Small adapter files, valid and invalid, each about one clause, with the right answer: `conformance corpus DIR`.

The numbers are sixteenths between −1 and 1, from a hash of the name of the case. So every format holds them exactly, every sum
of them is exact in float64, and the files are the same to the byte on every machine. The right answer is computed here, from
the numbers and a scale that is written out, and not by what reads the files.

`base.safetensors` is the base model of the cases in PEFT's format; a case may have other weights of its own. `index.json` lists
the cases. `truth.safetensors` of a valid case holds ΔW of each module in float64, as the base model stores W. `power` is the
smallest distance, in units of ‖ΔW‖, by which a known fault moves ΔW of some module: a reader that is off by less than half of
it has none of these faults.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from conformance.files.binary import safetensors
from conformance.files.corpus import containers, others, peft
from conformance.files.corpus.made import Case, base_model

BASE = "base.safetensors"


def cases() -> Iterator[Case]:
    """All cases, in the order of the index."""
    for some in (peft.valid, peft.invalid, containers.cases, others.kohya, others.diffusers, others.others, others.gguf_files):
        yield from some()


def write(folder: Path) -> list[Case]:
    """Writes all cases, their truth, and the index. The folder must be empty or not be there."""
    made = list(cases())
    for case in made:
        place = folder / case.folder
        place.mkdir(parents=True)
        for name, content in case.files.items():
            (place / name).write_bytes(content)
        if case.base:
            (place / BASE).write_bytes(safetensors(case.base))
        if case.valid:
            (place / "truth.safetensors").write_bytes(
                safetensors({name: np.ascontiguousarray(delta) for name, delta in case.truth.items()})
            )
    (folder / BASE).write_bytes(safetensors(base_model()))
    index = [
        {
            "folder": case.folder,
            "format": case.format,
            "clause": case.clause,
            "valid": case.valid,
            "issues": list(case.codes),
            "power": round(case.power, 6),
        }
        for case in made
    ]
    (folder / "index.json").write_text(json.dumps({"schema": 1, "cases": index}, indent=1) + "\n", encoding="utf-8")
    return made
