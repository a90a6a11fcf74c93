"""JAX subjects: a pure function of parameters and x as a Layer.

    class Mine(Subject):
        name, version = "mine", "1.0"
        def build(self, config, weight, bias):
            trained, frozen = my_lora.init(...)  # pytrees
            layer = JaxLayer(apply, None, trained, frozen, W="kernel", b="bias", A="lora.a", B="lora.b", transposed="W")
            layer.set_base(weight, bias)
            return layer

`apply(static, trained, frozen, x, key)` gives y. It is compiled, as its users compile it, once for all layers whose `static`
is equal and whose arrays have the same shapes: so it must be one function for all layers, and read nothing else.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from conformance.subject import Arrays, Layer, Unsupported

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_enable_x64", True)  # without it float64 is float32


@partial(jax.jit, static_argnums=(0, 1))
def _forward(function, static, trained, frozen, x, key):
    return function(static, trained, frozen, x, key)


@partial(jax.jit, static_argnums=(0, 1))
def _backward(function, static, trained, frozen, x, key, dy):
    return jax.vjp(lambda trained, x: function(static, trained, frozen, x, key), trained, x)[1](dy)


@partial(jax.jit, static_argnums=(0, 1))
def _backward_of_trained(function, static, trained, frozen, x, key, dy):
    return jax.vjp(lambda trained: function(static, trained, frozen, x, key), trained)[1](dy)


def to_array(array: jax.Array) -> np.ndarray:
    """A copy as an array of the same dtype."""
    return np.array(array)


def dotted(path: tuple) -> str:
    """The name of a leaf of a pytree: the keys that lead to it, without the attribute in which a variable has its array."""
    keys = [str(getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry)))) for entry in path]
    return ".".join(key for key in keys if key != "value")


def leaves(tree) -> dict[str, jax.Array]:
    """The arrays of a pytree by their dotted names."""
    return {dotted(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def replaced(tree, arrays: dict[str, Any]):
    """The pytree with other arrays under some of its dotted names."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: arrays.get(dotted(path), leaf), tree)


class JaxLayer(Layer):
    """A Layer around `function`. W, b, A and B are the dotted names of their arrays in the pytrees `trained`, which holds all
    that the library says trains, and `frozen`; those named in `transposed` are stored the other way round: W (in, out).

    JAX has no state: gradients are added up here, and a step is p − lr · dp of all that is in `trained`."""

    def __init__(self, function: Callable, static, trained, frozen, *, W: str, b: str | None, A: str, B: str,
                 transposed: str = ""):
        self.function, self.static, self.trained, self.frozen = function, static, trained, frozen
        self.paths = {"W": W, "A": A, "B": B} | ({} if b is None else {"b": b})
        self.transposed = transposed
        self._x_needs_grad = True
        self._last: tuple | None = None  # the arguments of the last forward pass
        self._gradients: dict[str, jax.Array] = {}

    def array(self, name: str) -> jax.Array:
        """W, b, A or B as it is now, in the layout of the contract."""
        found = (leaves(self.frozen) | leaves(self.trained))[self.paths[name]]
        return found.T if name in self.transposed else found

    def set(self, arrays: Arrays) -> None:
        """Nothing is set if a shape is not the one that is there."""
        changed = {}
        for name, array in arrays.items():
            have = self.array(name)
            if array.shape != have.shape:
                raise ValueError(f"{name} is {array.shape}, expected {have.shape}, the shape that it has")
            changed[self.paths[name]] = jnp.array(array.T if name in self.transposed else array, have.dtype)
        self.trained, self.frozen = replaced(self.trained, changed), replaced(self.frozen, changed)

    def set_base(self, weight: np.ndarray, bias: np.ndarray | None) -> None:
        self.set({"W": weight} | ({} if bias is None else {"b": bias}))

    def key(self):
        """What this forward pass draws its dropout from, or whatever else changes from pass to pass."""
        return None

    def adapter(self) -> Arrays:
        return {name: to_array(self.array(name)) for name in ("A", "B")}

    def stored(self) -> Arrays:
        found = leaves(self.trained)
        return {self.paths[name]: to_array(found[self.paths[name]]) for name in "AB"}

    def set_adapter(self, arrays: Arrays) -> None:
        self.set(arrays)

    def weight(self) -> np.ndarray:
        return to_array(self.array("W"))

    def bias(self) -> np.ndarray | None:
        return to_array(self.array("b")) if "b" in self.paths else None

    def forward(self, x: np.ndarray) -> np.ndarray:
        self._last = self.function, self.static, self.trained, self.frozen, jnp.array(x), self.key()
        return to_array(_forward(*self._last))

    def backward(self, dy: np.ndarray) -> Arrays:
        if self._last is None:
            raise RuntimeError("backward before forward")
        if self._x_needs_grad:
            gradients, dx = _backward(*self._last, jnp.array(dy))
            found = {"x": to_array(dx)}
        else:
            (gradients,), found = _backward_of_trained(*self._last, jnp.array(dy)), {}
        for path, gradient in leaves(gradients).items():
            self._gradients[path] = self._gradients[path] + gradient if path in self._gradients else gradient
        for path, gradient in self._gradients.items():
            name = self._name(path)
            found[name] = to_array(gradient.T if name in self.transposed else gradient)
        return found

    def zero_grad(self) -> None:
        self._gradients = {}

    def input_needs_grad(self, needed: bool = True) -> None:
        self._x_needs_grad = needed

    def trainable(self) -> dict[str, tuple[int, ...]]:
        return {self._name(path): leaf.shape for path, leaf in leaves(self.trained).items()}

    def train(self, mode: bool = True) -> None:
        raise Unsupported("modes: the function is the same in training and in inference")

    def step(self, lr: float) -> None:
        now = leaves(self.trained)
        self.trained = replaced(self.trained, {path: now[path] - lr * dp for path, dp in self._gradients.items()})

    def save(self, directory) -> None:
        """`trained` alone, with Orbax, as Flax's guide to saving and loading does."""
        import orbax.checkpoint

        with orbax.checkpoint.StandardCheckpointer() as checkpointer:
            checkpointer.save(f"{directory}/lora", self.trained)

    def load(self, directory) -> None:
        import orbax.checkpoint

        with orbax.checkpoint.StandardCheckpointer() as checkpointer:
            self.trained = checkpointer.restore(f"{directory}/lora", self.trained)

    def _name(self, path: str) -> str:
        return next((name for name, known in self.paths.items() if known == path), path)
