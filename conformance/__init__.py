"""Tells, with proof, whether a LoRA implementation is right. See README.md; the interface is in `subject.py`."""

from conformance.loading import load
from conformance.model import Model, ModelConfig
from conformance.subject import Layer, LayerConfig, Subject, Unsupported

__all__ = ["Layer", "LayerConfig", "Model", "ModelConfig", "Subject", "Unsupported", "load"]
__version__ = "0.1.0"
