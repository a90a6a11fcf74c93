"""All faults: this file imports those that enter them, in the order in which they are told."""

from . import gradients, passes, start, states  # noqa: F401
from .catalogue import FAULTS, NOTHING, plant

__all__ = ["FAULTS", "NOTHING", "plant"]
