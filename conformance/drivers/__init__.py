"""Adapts implementations to the interface: torch modules, JAX functions, Hugging Face models, programs, other environments."""
