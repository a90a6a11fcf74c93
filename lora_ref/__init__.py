"""LoRA and its relatives in plain NumPy, with hand-written gradients: the ground truth that others are held against.

Each method is one file with the same functions: `init`, `forward`, `backward`, `parameter_count`, and `merge` where that is
possible. `places.py` says what a further method needs. `derivations/` proves the gradients. The package imports NumPy alone;
only `study/picture.py` imports matplotlib, when it draws.
"""
