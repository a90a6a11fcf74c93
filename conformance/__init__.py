"""Checks LoRA implementations, and shows each failure. README.md shows how to use it; `subject.py` has the interface."""

from conformance.model import Model, ModelConfig
from conformance.subject import Layer, LayerConfig, Subject, Unsupported

__all__ = ["Layer", "LayerConfig", "Model", "ModelConfig", "Subject", "Unsupported", "load"]
__version__ = "0.1.0"


def load(spec: str) -> Subject:
    """The subject that `conformance run SPEC` checks. Raises conformance.run.loading.LoadError with the reason."""
    from conformance.run import loading  # imported here, because a subject needs none of the harness

    return loading.load(spec)
