"""How a subject is reached: torch modules, JAX functions, Hugging Face models, programs, other environments."""
