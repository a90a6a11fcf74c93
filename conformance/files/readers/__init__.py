"""Readers of adapter files, one module each: what a library makes of the file of an adapter.

    NEEDS          the packages that it imports
    ENVIRONMENT    the environment that has them, if this one has not; None if it needs none
    FORMATS        the formats that it reads
    CORPUS         whether it can be given the corpus, whose modules belong to no model that runs
    LOGITS         whether it gives logits, since the library shows no ΔW
    read(place, base)    the folder of the adapter, or its file, and the weights of the base model → ΔW by module, or the logits
                         for llama.TOKENS, up to what is the same in a row; with an empty place those of the base model

A reader that refuses a file raises an exception. What comes out is measured, not read off: see torch_model.py.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from conformance.drivers import environments
from conformance.files.binary import Arrays

READERS = {  # the name on the command line → the module
    "file": "file", "lora_torch": "lora_torch", "peft": "peft", "mlx-lm": "mlx_lm", "torchtune": "torchtune",
    "diffusers": "diffusers", "lycoris": "lycoris", "vllm": "vllm", "llama.cpp": "llama_cpp",
}
Read = Callable[..., Arrays | np.ndarray]  # of the place and the base; a function of the user's may take kinds, too


class NotAvailable(Exception):
    """The library is not installed, or there is no such reader or writer."""


class Reader(NamedTuple):
    formats: tuple[str, ...] | None  # None for any
    read: Read
    corpus: bool = True
    logits: bool = False


def find(name: str) -> Reader:
    """The name is a built-in one, or FILE.py:FUNCTION, or MODULE:FUNCTION. Raises NotAvailable."""
    if name in READERS:
        module = importlib.import_module(f"{__name__}.{READERS[name]}")
        return Reader(module.FORMATS, module.read, module.CORPUS, module.LOGITS)
    path, _, attribute = name.rpartition(":")
    try:
        if path.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(path).stem, path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(path)
        return Reader(None, getattr(module, attribute))
    except (Exception, SystemExit) as error:  # a script may end with sys.exit(main())
        known = ", ".join(READERS)
        raise NotAvailable(f"{name}: {type(error).__name__}: {error}; expected one of {known}, or FILE.py:FUNCTION") from error


def place_of(package: str, known: dict[str, str], name: str) -> str | None:
    """The environment in which the reader or writer of that name runs, None for this one. Raises NotAvailable."""
    if name not in known:
        return None
    module = importlib.import_module(f"{package}.{known[name]}")
    missing = [needed for needed in module.NEEDS if importlib.util.find_spec(needed) is None]
    if not missing:
        return None
    if module.ENVIRONMENT and environments.made(module.ENVIRONMENT):
        return module.ENVIRONMENT
    install = f"; conformance exchange {name} --install" if module.ENVIRONMENT else ""
    raise NotAvailable(f"{', '.join(missing)} is not installed{install}")
