"""What `transformer.py` checks of its arguments before it computes."""

from collections.abc import Collection, Mapping

import numpy as np

from lora_ref.places import Arrays, Config, Methods, shapes, trained_names
from lora_ref.shapes import check_dtype


def checked_arrays(arrays: Mapping[str, np.ndarray], config: Config, methods: Methods) -> Arrays:
    """The arrays as a dict. Raises ValueError for an array that is missing, unknown, or of another shape or dtype."""
    expected, first = shapes(config, methods), next(iter(arrays.values()), None)
    for name in (*expected, *arrays):
        if name not in arrays or name not in expected:
            what = "is missing from" if name in expected else "is unknown among"
            raise ValueError(f"transformer: {name} {what} arrays, expected the names that shapes(config, methods) gives")
    dtype = check_dtype("transformer", next(iter(expected)), first.dtype if isinstance(first, np.ndarray) else object)
    for name, shape in expected.items():
        array = arrays[name]
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
            got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(f"transformer: {name} is {got}, expected {dtype} {shape} because of config and the other arrays")
    return dict(arrays)


def check_tokens(tokens: np.ndarray, mask: np.ndarray | None, config: Config, virtual: int) -> None:
    """Raises ValueError for tokens or a mask of a wrong shape or dtype, unknown tokens, and more positions than there are."""
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 2 or tokens.dtype.kind not in "iu":
        got = f"{tokens.dtype} {tokens.shape}" if isinstance(tokens, np.ndarray) else type(tokens).__name__
        raise ValueError(f"transformer.forward: tokens is {got}, expected integers (batch, T)")
    if tokens.size and not (tokens.min() >= 0 and tokens.max() < config.vocabulary):
        span, top = f"{tokens.min()} … {tokens.max()}", config.vocabulary - 1
        raise ValueError(f"transformer.forward: tokens are {span}, expected 0 … {top} because of the vocabulary")
    if tokens.shape[1] + virtual > config.context:
        got = f"{tokens.shape[1]} tokens and {virtual} virtual ones"
        raise ValueError(f"transformer.forward: there are {got}, expected at most {config.context} because that is the context")
    if mask is not None and not (isinstance(mask, np.ndarray) and mask.dtype == bool and mask.shape == tokens.shape):
        got = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise ValueError(f"transformer.forward: mask is {got}, expected bool {tokens.shape} because tokens is {tokens.shape}")


def check_train(train: Collection[str], arrays: Mapping[str, np.ndarray], config: Config, methods: Methods) -> None:
    """Raises ValueError for a name in `train` that no array has, or that a method keeps frozen."""
    for name in train:
        if name not in arrays:
            raise ValueError(f"transformer.backward: train has {name!r}, expected names of arrays: {', '.join(arrays)}")
    frozen = shapes(config, methods, only=True).keys() - trained_names(config, methods)
    if stray := sorted(frozen.intersection(train)):
        raise ValueError(f"transformer.backward: train has {stray[0]!r}, expected others because its method keeps it frozen")
