"""JAX subjects: a pure function of parameters and x as a Layer.

    class Mine(Subject):
        name, version = "mine", "1.0"
        def build(self, config, weight, bias):
            draw = partial(my_lora.init, jax.random.key(config.seed), ...)  # of a pytree of all that trains
            layer = JaxLayer(apply, None, draw, jax.eval_shape(draw), {"kernel": weight.T, "bias": bias},
                             W="kernel", b="bias", A="lora.a", B="lora.b", transposed="W")
            layer.set_base(weight, bias)
            return layer

`apply(static, trained, frozen, x, key)` gives y. Compiling takes longer than all else by far. So it is compiled, as its users
compile it, once for all layers whose `static` is equal and whose arrays have the same shapes (it must be one function for all
layers, and read nothing else); and what a layer starts from, a pure function of its seed, is drawn when it is looked at, which
it is not if the factors are set first.
"""
# Where JAX is not installed, a stub that knows little of it stands in.
# pyright: reportAttributeAccessIssue=false

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import jax
import numpy as np

from conformance.subject import Arrays, Layer, Unsupported

# Of the machine code alone, which runs once or twice for each shape: compiling takes two thirds of the time without it.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
jax.config.update("jax_platforms", "cpu")
if os.path.exists(os.path.join(sys.prefix, "made.json")):  # an environment of ours: what was compiled is kept for the next run
    jax.config.update("jax_compilation_cache_dir", os.path.join(sys.prefix, "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    with suppress(AttributeError):  # an old JAX does not have it
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
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


def to_jax(array: np.ndarray, dtype=None) -> jax.Array:
    """A copy, of another dtype if one is given."""
    return jax.device_put(np.array(array, dtype))  # which compiles nothing, as jnp.array does


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
    Both may hold shapes (jax.ShapeDtypeStruct) at first; `draw()` gives what `trained` starts from.

    JAX has no state: gradients are added up here, and a step is p − lr · dp of all that is in `trained`, in NumPy, which
    compiles nothing."""

    def __init__(self, function: Callable, static, draw: Callable, trained, frozen, *, W: str, b: str | None, A: str, B: str,
                 transposed: str = ""):
        self.function, self.static, self.draw, self.frozen = function, static, draw, frozen
        self._trained = trained
        self.paths = {"W": W, "A": A, "B": B} | ({} if b is None else {"b": b})
        self.transposed = transposed
        self._x_needs_grad = True
        self._last: Any = None  # the arguments of the last forward pass
        self.gradients: dict[str, np.ndarray] = {}  # of what is in `trained`, added up, by its dotted names

    @property
    def trained(self):
        drawn = None
        for path, leaf in leaves(self._trained).items():
            if isinstance(leaf, jax.ShapeDtypeStruct):
                drawn = drawn or leaves(self.draw())
                self._trained = replaced(self._trained, {path: drawn[path]})
        return self._trained

    @trained.setter
    def trained(self, tree) -> None:
        self._trained = tree

    def array(self, name: str) -> np.ndarray:
        """W, b, A or B as it is now, in the layout of the contract."""
        trained = self._trained if name in "Wb" else self.trained
        found = to_array((leaves(trained) | leaves(self.frozen))[self.paths[name]])
        return found.T if name in self.transposed else found

    def set(self, arrays: Arrays) -> None:
        """Nothing is set if a shape is not the one that is there."""
        changed, now = {}, leaves(self.frozen) | leaves(self._trained)
        for name, array in arrays.items():
            have, array = now[self.paths[name]], array.T if name in self.transposed else array
            if array.shape != have.shape:
                raise ValueError(f"{name} is {array.shape} in its place, expected {have.shape}, the shape that it has")
            changed[self.paths[name]] = to_jax(array, have.dtype)
        self._trained, self.frozen = replaced(self._trained, changed), replaced(self.frozen, changed)

    def set_base(self, weight: np.ndarray, bias: np.ndarray | None) -> None:
        self.set({"W": weight} | ({} if bias is None else {"b": bias}))

    def key(self):
        """What this forward pass draws its dropout from, or whatever else changes from pass to pass."""
        return None

    def adapter(self) -> Arrays:
        return {name: self.array(name) for name in ("A", "B")}

    def stored(self) -> Arrays:
        found = leaves(self.trained)
        return {self.paths[name]: to_array(found[self.paths[name]]) for name in "AB"}

    def set_adapter(self, arrays: Arrays) -> None:
        self.set(arrays)

    def weight(self) -> np.ndarray:
        return self.array("W")

    def bias(self) -> np.ndarray | None:
        return self.array("b") if "b" in self.paths else None

    def forward(self, x: np.ndarray) -> np.ndarray:
        self._last = self.function, self.static, self.trained, self.frozen, to_jax(x), self.key()
        return to_array(_forward(*self._last))

    def backward(self, dy: np.ndarray) -> Arrays:
        if self._last is None:
            raise RuntimeError("backward before forward")
        if self._x_needs_grad:
            gradients, dx = _backward(*self._last, dy=to_jax(dy))
            found = {"x": to_array(dx)}
        else:
            (gradients,), found = _backward_of_trained(*self._last, dy=to_jax(dy)), {}
        for path, leaf in leaves(gradients).items():
            self.gradients[path] = self.gradients.get(path, 0) + to_array(leaf)
        for path, gradient in self.gradients.items():
            name = self._name(path)
            found[name] = np.array(gradient.T if name in self.transposed else gradient)
        return found

    def zero_grad(self) -> None:
        self.gradients = {}

    def input_needs_grad(self, needed: bool = True) -> None:
        self._x_needs_grad = needed

    def trainable(self) -> dict[str, tuple[int, ...]]:
        return {self._name(path): leaf.shape for path, leaf in leaves(self._trained).items()}

    def train(self, mode: bool = True) -> None:
        raise Unsupported("modes: the function is the same in training and in inference")

    def step(self, lr: float) -> None:
        now = leaves(self.trained)
        stepped = {path: to_array(now[path]) - dp.dtype.type(lr) * dp for path, dp in self.gradients.items()}
        self.trained = replaced(self.trained, {path: to_jax(array) for path, array in stepped.items()})

    def save(self, directory) -> None:
        """`trained` alone, with Orbax, as Flax's guide to saving and loading does."""
        import orbax.checkpoint

        with orbax.checkpoint.StandardCheckpointer() as checkpointer:
            checkpointer.save(f"{directory}/lora", self.trained)

    def load(self, directory) -> None:
        import orbax.checkpoint

        with orbax.checkpoint.StandardCheckpointer() as checkpointer:
            self.trained = checkpointer.restore(f"{directory}/lora", self._trained)

    def _name(self, path: str) -> str:
        return next((name for name, known in self.paths.items() if known == path), path)
