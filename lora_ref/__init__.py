"""LoRA and its relatives in plain NumPy, with hand-written gradients: the ground truth that others are held against.

One file per method, each with the same functions: `init`, `forward`, `backward`, `parameter_count`, and `merge` or `fold` where
that is possible; `derivations/` proves the gradients. Nothing but NumPy is imported (`picture.py`, when asked to draw, has
matplotlib do it).
"""
