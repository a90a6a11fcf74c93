"""Recognition: how a LoRA layer that somebody wrote is built, and where its arrays are, found by trial."""
