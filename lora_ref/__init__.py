"""LoRA and its relatives in plain NumPy, with hand-written gradients: the ground truth that others are held against.

One file per method, each with the same five functions (`init`, `forward`, `backward`, `merge`, `parameter_count`);
`derivations/` proves the gradients. Nothing but NumPy is imported.
"""
