"""Tells, with proof, whether a LoRA implementation is right. See README.md; the interface is in `subject.py`."""

from conformance.loading import load
from conformance.subject import Layer, LayerConfig, Subject, Unsupported

__all__ = ["Layer", "LayerConfig", "Subject", "Unsupported", "load"]
__version__ = "0.1.0"
