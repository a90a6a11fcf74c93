"""Runs one reader or writer of adapter files in a process of its own: `python -m conformance.files.serve KIND NAME FOLDER OUT`.

It reads questions from its standard input, one a line, and answers each with a line of JSON. Arrays go to OUT/n.npz, n counting
from 0. The first line, before any question, says what is there: {"formats": […]}, or {"not available": "why"}.

    KIND    question               answer
    read    a folder in FOLDER     {"ok": true, "at": n}, ΔW by module, or {"ok": false, "refusal": "…"}, or, for
                                   what is no ΔW, {"ok": false, "broken": "…"}
    write   a feature              the same; the adapter is in FOLDER/OUT/n
"""

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from conformance.files import consumers, container, mlx, producers
from conformance.files.corpus import BASE
from conformance.files.peft import CONFIG, PICKLE, WEIGHTS

Work = Callable[[str, int], dict[str, np.ndarray]]  # a question and its number → ΔW by module


def main(kind: str, name: str, folder: str, out: str) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer

    def say(answer: dict) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        formats, work = _reader(name, Path(folder)) if kind == "read" else (None, _writer(name, Path(folder), out))
    except consumers.NotAvailable as error:
        say({"not available": str(error)})
        return
    say({"formats": formats})
    for number, line in enumerate(sys.stdin):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = work(line.rstrip("\n"), number)
            if not isinstance(found, dict):
                say({"ok": False, "broken": f"it gave {type(found).__name__}, expected ΔW by module"})
                continue
            arrays: Any = {module: np.asarray(delta, np.float64) for module, delta in found.items()}
            np.savez(f"{out}/{number}.npz", **arrays)
            say({"ok": True, "at": number})
        except Exception as error:
            say({"ok": False, "refusal": f"{type(error).__name__}: {error}"[:2000]})


def _reader(name: str, folder: Path) -> tuple[tuple[str, ...] | None, Work]:
    formats, read = consumers.find(name)
    return formats, lambda case, number: read(str(_adapter(folder / case)), _base(folder, case))


def _writer(name: str, folder: Path, out: str) -> Work:
    write = producers.find(name)
    return lambda feature, number: write(producers.settings(feature), f"{out}/{number}", _base(folder))


def _adapter(place: Path) -> Path:
    """The folder, in formats that are folders, else the file in it."""
    files = [path for path in place.iterdir() if path.name not in (BASE, "truth.safetensors", CONFIG)]
    return place if len(files) != 1 or files[0].name in (WEIGHTS, PICKLE, mlx.WEIGHTS) else files[0]


def _base(folder: Path, case: str = "") -> dict[str, np.ndarray]:
    """The weights of the base model. A case may have some of its own."""
    own = folder / case / BASE
    return _arrays(folder / BASE) | (_arrays(own) if case and own.exists() else {})


def _arrays(path: Path) -> dict[str, np.ndarray]:
    held, _ = container.read(str(path))
    return {name: held.array(name) for name in held.tensors}


if __name__ == "__main__":
    main(*sys.argv[1:])
