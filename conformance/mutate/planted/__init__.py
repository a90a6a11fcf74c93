"""Faults that are planted into the LoRA layer of somebody else, in the process of its tests.

This folder is loaded by itself, also by a Python that does not have conformance: it imports torch alone, and only once the
layer is imported. `hook.py` plants one fault, `patch.py` has what a fault may do to a layer, `catalogue.py` the faults by name,
and the other files the faults.
"""
