"""Makes a pure JAX function of parameters and x a Layer.

    class Mine(Subject):
        name, version = "mine", "1.0"
        def build(self, config, weight, bias):
            draw = partial(my_lora.init, jax.random.key(config.seed), ...)  # draws a pytree of all that trains
            layer = JaxLayer(apply, None, draw, jax.eval_shape(draw), {"kernel": weight.T, "bias": bias},
                             W="kernel", b="bias", A="lora.a", B="lora.b", transposed="W")
            layer.set_base(weight, bias)
            return layer

`apply(static, trained, frozen, x, key)` gives y. Compiling takes by far the most time. So `apply` is compiled once for all
layers whose `static` is equal and whose arrays have the same shapes. For this it must be one function for all layers, and
depend on its arguments alone. The initial values of a layer are drawn when they are first read. They are never drawn if the
factors are set before.
"""
# Where JAX is not installed, pyright reads a stub of it that lacks most names.
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

# Without optimisation of the machine code, compiling takes two thirds of the time. The code runs only once or twice per shape.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
jax.config.update("jax_platforms", "cpu")
if os.path.exists(os.path.join(sys.prefix, "made.json")):  # made by environments.py: keep compiled code
    jax.config.update("jax_compilation_cache_dir", os.path.join(sys.prefix, "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    with suppress(AttributeError):  # an old JAX does not have it
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_enable_x64", True)  # without it float64 is float32


COMPILED = 300  # functions that are kept


@partial(jax.jit, static_argnums=(0, 1))
def _forward(function, static, trained, frozen, x, key):
    return function(static, trained, frozen, x, key)


@partial(jax.jit, static_argnums=(0, 1))
def _backward(function, static, trained, frozen, x, key, dy):
    return jax.vjp(lambda trained, x: function(static, trained, frozen, x, key), trained, x)[1](dy)


@partial(jax.jit, static_argnums=(0, 1))
def _backward_of_trained(function, static, trained, frozen, x, key, dy):
    return jax.vjp(lambda trained: function(static, trained, frozen, x, key), trained)[1](dy)


def forget_compiled() -> None:
    """Lets JAX forget what it has compiled, if that is a lot: code of many shapes takes gigabytes."""
    if sum(function._cache_size() for function in (_forward, _backward, _backward_of_trained)) > COMPILED:
        jax.clear_caches()


def to_jax(array: np.ndarray, dtype=None) -> jax.Array:
    """A copy of the array on JAX's side, with another dtype if one is given."""
    return jax.device_put(np.array(array, dtype))  # jnp.array would compile something


def to_array(array: jax.Array) -> np.ndarray:
    """A copy as an array of the same dtype."""
    return np.array(array)


def dotted(path: tuple) -> str:
    """The name of a leaf of a pytree: the keys that lead to it, joined by dots. The key "value", which variables have, is left
    out."""
    keys = [str(getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry)))) for entry in path]
    return ".".join(key for key in keys if key != "value")


def leaves(tree) -> dict[str, jax.Array]:
    """The arrays of a pytree by their dotted names."""
    return {dotted(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def replaced(tree, arrays: dict[str, Any]):
    """A copy of the pytree with `arrays` in the place of the leaves of these dotted names."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: arrays.get(dotted(path), leaf), tree)


class JaxLayer(Layer):
    """A Layer around `function`. W, b, A and B are the dotted names of its arrays in two pytrees: `trained`, which holds all
    that the library says trains, and `frozen`. `transposed` names the arrays that are stored transposed: W (in, out). Both
    pytrees may hold shapes (jax.ShapeDtypeStruct) at first. `draw()` gives the initial values of `trained`.

    A JAX function has no state, so the gradients are added up here. A step is p − lr · dp for every array in `trained`, in
    NumPy, which compiles nothing."""

    def __init__(self, function: Callable, static, draw: Callable, trained, frozen, *, W: str, b: str | None, A: str, B: str,
                 transposed: str = ""):
        self.function, self.static, self.draw, self.frozen = function, static, draw, frozen
        self._trained = trained
        self.paths = {"W": W, "A": A, "B": B} | ({} if b is None else {"b": b})
        self.transposed = transposed
        self._x_needs_grad = True
        self._last: Any = None  # the arguments of the last forward pass
        self.gradients: dict[str, np.ndarray] = {}  # for `trained`, added up, by dotted name

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
        """The current W, b, A or B, in the layout of conformance/subject.py."""
        trained = self._trained if name in "Wb" else self.trained
        found = to_array((leaves(trained) | leaves(self.frozen))[self.paths[name]])
        return found.T if name in self.transposed else found

    def set(self, arrays: Arrays) -> None:
        """Overwrites W, b, A or B. Raises ValueError for another shape, and then changes nothing."""
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
        """The key for the random numbers of this forward pass, for instance of its dropout. None if it draws nothing."""
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
        forget_compiled()
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
        """Saves only `trained`, with Orbax, as Flax's guide to saving and loading does."""
        import orbax.checkpoint

        with orbax.checkpoint.StandardCheckpointer() as checkpointer:
            checkpointer.save(f"{directory}/lora", self.trained)

    def load(self, directory) -> None:
        import orbax.checkpoint

        with orbax.checkpoint.StandardCheckpointer() as checkpointer:
            self.trained = checkpointer.restore(f"{directory}/lora", self._trained)

    def _name(self, path: str) -> str:
        return next((name for name, known in self.paths.items() if known == path), path)
