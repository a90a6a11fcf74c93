"""Checks LoRA implementations, and shows each failure. README.md shows how to use it; `subject.py` has the interface."""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

# `python -m conformance` puts the current folder before all others. A random.py there would take the place of Python's own.
if sys.argv[:1] == ["-m"] and sys.path[:1] == [os.getcwd()] and not __file__.startswith(os.path.join(os.getcwd(), "")):
    del sys.path[0]

if TYPE_CHECKING:
    from conformance.loader import Loader
    from conformance.model import Model, ModelConfig
    from conformance.subject import Layer, LayerConfig, Subject, Unsupported

__all__ = ["Layer", "LayerConfig", "Loader", "Model", "ModelConfig", "Subject", "Unsupported", "load"]
__version__ = "0.3.0"
HOMES = {"Loader": "loader"} | dict.fromkeys(("Model", "ModelConfig"), "model") | dict.fromkeys(
    ("Layer", "LayerConfig", "Subject", "Unsupported"), "subject")


def __getattr__(name: str) -> Any:
    """The names of the interface, imported when they are first asked for. Every pytest of an environment loads
    `conformance.plugin`, and NumPy would cost it a tenth of a second."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{HOMES[name]}"), name)


def load(spec: str) -> "Subject":
    """The subject that `conformance run SPEC` checks. Raises conformance.run.loading.LoadError with the reason."""
    from conformance.run import loading  # imported here, because a subject needs none of the harness

    return loading.load(spec)
