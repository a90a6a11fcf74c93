"""Runs one consumer: `python -m conformance.files.serve CONSUMER CORPUS OUT`.

It reads folders of cases from its standard input, one a line. For each it writes ΔW to OUT/n.npz, n counting from 0, and a
line of JSON to its own output: {"ok": true, "at": n}, or {"ok": false, "refusal": "…"}. The first line says which formats the
consumer reads.
"""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from conformance.files import consumers, container
from conformance.files.corpus import BASE


def main(name: str, corpus: str, out: str) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer

    def say(answer: dict) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        formats, read = consumers.find(name)
    except consumers.NotAvailable as error:
        say({"not available": str(error)})
        return
    say({"formats": formats})
    for number, line in enumerate(sys.stdin):
        place = Path(corpus) / line.strip()
        own = place / BASE
        base = _arrays(Path(corpus) / BASE) | (_arrays(own) if own.exists() else {})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = read(str(_file_of(place)), base)
            arrays: Any = {module: np.asarray(delta, np.float64) for module, delta in found.items()}
            np.savez(f"{out}/{number}.npz", **arrays)
            say({"ok": True, "at": number})
        except Exception as error:
            say({"ok": False, "refusal": f"{type(error).__name__}: {error}"[:2000]})


def _file_of(place: Path) -> Path:
    """The folder of formats that are folders, else the file."""
    files = [path for path in place.iterdir() if path.name not in (BASE, "truth.safetensors", "adapter_config.json")]
    return place if place.parent.name in ("peft", "mlx-lm") or len(files) != 1 else files[0]


def _arrays(path: Path) -> dict[str, np.ndarray]:
    held, _ = container.read(str(path))
    return {name: held.array(name) for name in held.tensors}


if __name__ == "__main__":
    main(*sys.argv[1:])
