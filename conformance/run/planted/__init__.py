"""Faults that are planted in honest layers: what triggers them, and what is wrong then."""
