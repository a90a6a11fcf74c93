"""Tells, with proof, whether a LoRA implementation is right. See README.md; the interface is in `subject.py`."""

from conformance.model import Model, ModelConfig
from conformance.subject import Layer, LayerConfig, Subject, Unsupported

__all__ = ["Layer", "LayerConfig", "Model", "ModelConfig", "Subject", "Unsupported", "load"]
__version__ = "0.1.0"


def load(spec: str) -> Subject:
    """The subject that `conformance run` takes for `spec`. Raises conformance.run.loading.LoadError with the reason."""
    from conformance.run import loading  # when it is asked for: a subject needs none of the harness

    return loading.load(spec)
