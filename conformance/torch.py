"""Makes any nn.Module a Layer. drivers/torch_module.py recognises a bare nn.Module class.

    class Mine(Subject):
        name, version = "mine", "1.0"
        def build(self, config, weight, bias):
            if config.dropout or config.scaling != "standard" or not config.bias:
                raise Unsupported("dropout, rslora and layers without a bias")
            module = MyLoRA(config.in_features, config.out_features, r=config.rank, lora_alpha=config.alpha)
            module = module.to(getattr(torch, config.dtype))
            layer = TorchLayer(module, W="base.weight", b="base.bias", A="lora_A", B="lora_B", transposed="AB")
            layer.set_base(weight, bias)
            return layer
        def script(self, calls, spec):  # optional: with it, the script of a failure does not need this package
            return script(calls, ["from mine import MyLoRA"], lambda config, name: [
                f"{name} = MyLoRA({config.in_features}, {config.out_features}, r={config.rank}, lora_alpha={config.alpha})"])

The group TORCH looks at the module among others: copies, hooks, optimisers, modes, transforms. Its experiments call the
module by `through`, which such a class overrides where a forward pass is more than module(x). `around` says how to make a
module around an nn.Linear that the user has.
"""

import inspect
import warnings
from operator import attrgetter
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from conformance import torch_experiments
from conformance.model import ModelConfig
from conformance.subject import Arrays, Layer, LayerConfig, Unsupported

torch.set_num_threads(1)  # cases are tiny: more threads are slower, and they change the order of sums


def set_seed(config: LayerConfig | ModelConfig) -> None:
    """Seeds torch's random generators for the configuration: the CPU's, and CUDA's if the device is not the CPU.

    torch.manual_seed also looks for every other kind of accelerator, which takes longer than building a small layer."""
    torch.default_generator.manual_seed(config.seed)
    if config.device != "cpu":
        torch.cuda.manual_seed(config.seed)


def to_tensor(array: np.ndarray, device: str | torch.device = "cpu") -> Tensor:
    """The array as a tensor. It shares the array's memory where torch can do that. Otherwise it is a copy with the same
    strides, if torch has such strides: strides are part of what is tested."""
    if any(stride < 0 for stride in array.strides):
        array = array.copy()  # torch has no negative strides
    bits, owner = array.view(np.int16) if array.dtype == ml_dtypes.bfloat16 else array, array.base
    beside = isinstance(owner, np.ndarray) and owner.dtype == array.dtype and owner.flags.c_contiguous
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the array is read-only; a requirement tests whether it is written to
        tensor = torch.from_numpy(bits)
        if isinstance(owner, np.ndarray) and beside and array.size:
            # So that the tensor has the array's offset in its memory, and what lies beside it.
            whole = torch.from_numpy(owner.reshape(-1).view(bits.dtype))
            tensor = whole.as_strided(tensor.shape, tensor.stride(), (tensor.data_ptr() - whole.data_ptr()) // tensor.itemsize)
    tensor = tensor.view(torch.bfloat16) if bits is not array else tensor
    return tensor if torch.device(device).type == "cpu" else placed(tensor, device)


def placed(tensor: Tensor, device: str | torch.device) -> Tensor:
    """A copy on the device, with the strides of the tensor, including gaps and repetitions. `.to(device)` drops those."""
    if not tensor.numel():
        return tensor.to(device, copy=True)
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    memory = tensor.as_strided((span,), (1,)).to(device, copy=True)
    return memory.as_strided(tensor.shape, tensor.stride())


def to_array(tensor: Tensor) -> np.ndarray:
    """A copy as an array of the same dtype."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16).copy()
    return tensor.numpy().copy()


class Lent:
    """An array of the caller, and the tensor that a module gets for it.

    On the CPU the two share memory. On a GPU they do not, and a write of the module to the tensor would stay unseen: `show`
    copies it into the array."""

    def __init__(self, array: np.ndarray, device: torch.device):
        self.array, self.tensor = array, to_tensor(array, device)
        self._known = to_array(self.tensor)

    def show(self) -> None:
        """Copies the tensor into the array, if the module has written to the tensor."""
        now = to_array(self.tensor)
        if now.tobytes() != self._known.tobytes() and self.array.flags.writeable:
            self.array[...] = now
        self._known = now

    def renew(self) -> None:
        """Copies the array into the tensor, at the same address, if the caller has written to the array."""
        if to_array(self.tensor).tobytes() != self.array.tobytes():
            with torch.no_grad():
                self.tensor.copy_(to_tensor(self.array))
        self._known = to_array(self.tensor)


class TorchLayer(Layer):
    """A Layer around an nn.Module. W, b, A and B are the dotted paths of its tensors, from the module on. `transposed` names
    those that are stored transposed: W (in, out), A (rank, in), B (out, rank).

    The script of a failure repeats the statements of the methods that were called. A method whose statements cannot stand
    outside this class has a twin named `<method>_source`. The twin takes the name of the module and the arguments of the
    method. It returns lines of Python that do the same, or None."""

    def __init__(self, module: nn.Module, *, W: str, b: str | None, A: str, B: str, transposed: str = ""):
        self.module = module
        self.paths = {"W": W, "A": A, "B": B} | ({} if b is None else {"b": b})
        self.transposed = transposed
        # Whether train() only sets the mode, and the mode is already training: a script can then leave out train(True).
        self.plain_modes = all(part.training and type(part).train is nn.Module.train for part in module.modules())
        self._x_needs_grad = True
        self._x: Tensor | None = None
        self._lent: Lent | None = None  # x of the last forward pass
        self._y: Tensor | None = None
        self._kept: dict[str, Any] = {}  # what an experiment keeps for a later one

    def through(self, module: nn.Module, x: Tensor) -> Tensor:
        """y of x. `module` is the layer's, or a copy of it. Overridden where a forward pass is more than module(x)."""
        return module(x)

    def around(self, linear: nn.Linear) -> nn.Module:
        """A new module around a layer that the user has. Raises Unsupported unless it is overridden."""
        raise Unsupported("a layer around a given nn.Linear")

    def tensor(self, name: str) -> Tensor:
        """W, b, A or B of the module, in the layout of conformance/subject.py. It shares the module's memory."""
        found = attrgetter(self.paths[name])(self.module)
        return found.t() if name in self.transposed else found

    @property
    def measured(self) -> nn.Module:
        """The module that `conformance bench` calls. A subclass whose module holds more than the layer gives the layer."""
        return self.module

    def check(self, name: str, array: np.ndarray) -> None:
        have = tuple(self.tensor(name).shape)
        if array.shape != have:  # copy_ would broadcast
            raise ValueError(f"{name} is {array.shape}, expected {have}, the shape that it has")

    def set(self, name: str, array: np.ndarray) -> None:
        self.check(name, array)
        with torch.no_grad():
            self.tensor(name).copy_(to_tensor(array.copy()))

    def set_base(self, weight: np.ndarray, bias: np.ndarray | None) -> None:
        """Give the module its frozen weight and bias. Raises Unsupported if it has a bias where it should have none."""
        if bias is None and "b" in self.paths:
            raise Unsupported("a layer without a bias")
        self.set("W", weight)
        if bias is not None:
            self.set("b", bias)

    def adapter(self) -> Arrays:
        return {name: to_array(self.tensor(name)) for name in ("A", "B")}

    def stored(self) -> Arrays:
        return {self.paths[name]: to_array(attrgetter(self.paths[name])(self.module)) for name in "AB"}

    def set_adapter(self, arrays: Arrays) -> None:
        for name, array in arrays.items():
            self.check(name, array)
        for name, array in arrays.items():
            self.set(name, array)

    def weight(self) -> np.ndarray:
        return to_array(self.tensor("W"))

    def bias(self) -> np.ndarray | None:
        return to_array(self.tensor("b")) if "b" in self.paths else None

    def forward(self, x: np.ndarray) -> np.ndarray:
        if self._lent is not None and self._lent.array is x:
            self._lent.renew()
        else:
            self._lent = Lent(x, self.tensor("W").device)
        self._x = self._lent.tensor.detach().requires_grad_(self._x_needs_grad)
        y = self.through(self.module, self._x)
        self._y = y
        self._lent.show()
        return to_array(y) if isinstance(y, Tensor) else y

    def backward(self, dy: np.ndarray) -> Arrays:
        if self._y is None or self._x is None:
            raise RuntimeError("backward before forward")
        if self._y.requires_grad:
            lent = Lent(dy, self._y.device)
            self._y.backward(lent.tensor)
            lent.show()
            if self._lent is not None:  # a subclass may have made its x itself
                self._lent.show()
        found = {} if self._x.grad is None else {"x": to_array(self._x.grad)}
        for path, parameter in self.module.named_parameters():
            if parameter.grad is not None:
                name = self._name(path)
                found[name] = to_array(parameter.grad.t() if name in self.transposed else parameter.grad)
        return found

    def zero_grad(self) -> None:
        self.module.zero_grad()

    def input_needs_grad(self, needed: bool = True) -> None:
        self._x_needs_grad = needed

    def factor_needs_grad(self, name: str, needed: bool = True) -> None:
        attrgetter(self.paths[name])(self.module).requires_grad_(needed)

    def factor_needs_grad_source(self, module: str, name: str, needed: bool = True) -> list[str]:
        return [f"{module}.{self.paths[name]}.requires_grad_({needed})"]

    def trainable(self) -> dict[str, tuple[int, ...]]:
        return {self._name(path): tuple(p.shape) for path, p in self.module.named_parameters() if p.requires_grad}

    def train(self, mode: bool = True) -> None:
        self.module.train(mode)

    def merge(self) -> None:
        self._call("merge")

    def unmerge(self) -> None:
        self._call("unmerge")

    def step(self, lr: float) -> None:
        with torch.no_grad():
            for parameter in self.module.parameters():
                if parameter.requires_grad and parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=lr)

    def save(self, directory) -> None:
        torch.save(self.module.state_dict(), f"{directory}/state.pt")

    def load(self, directory) -> None:
        self.module.load_state_dict(torch.load(f"{directory}/state.pt", weights_only=True))

    def as_module(self, experiment: str, given: dict[str, Any]) -> dict[str, Any]:
        """Gradients are cleared first. Facts that are tensors become arrays, in the layout of conformance/subject.py."""
        if type(self).forward is not TorchLayer.forward and type(self).through is TorchLayer.through:
            raise Unsupported(f"{type(self).__name__} has a forward() of its own, and no through()")
        if experiment in ("hooked", "copied_with_a_hook") and type(self).through is not TorchLayer.through:
            raise Unsupported("hooks on a module that is not called itself")
        needed = torch_experiments.needed(experiment)
        factors = {name: self._parameter(name) for name in "AB" if name in needed}
        base = {name: self._parameter(name) for name in "Wb" if name in self.paths and "base" in needed}
        for parameter in self.module.parameters():
            parameter.grad = None
        device = self.tensor("W").device
        if experiment in ("replaced", "handled"):  # a deep copy must not hold a graph
            self._x, self._y, self._lent, self._kept = None, None, None, {}
        known = {"layer": self, "module": self.module, "call": self.through, "kept": self._kept, "around": self.around,
                 "base": base} | factors
        try:
            facts = torch_experiments.perform(experiment, known, {
                name: to_tensor(value.copy(), device) if isinstance(value, np.ndarray) else value
                for name, value in given.items()})
        except torch_experiments.Impossible as reason:
            raise Unsupported(str(reason)) from None
        return {name: self._fact(name, fact) for name, fact in facts.items()}

    def _parameter(self, name: str) -> nn.Parameter:
        try:
            found = attrgetter(self.paths[name])(self.module)
        except (KeyError, AttributeError):
            raise Unsupported(f"{name}, in the state that the layer is in") from None
        if not isinstance(found, nn.Parameter):
            raise Unsupported(f"an {name} that is a Parameter")
        return found

    def _fact(self, name: str, fact: Any) -> Any:
        if not isinstance(fact, Tensor):
            return fact
        turned = name.split()[-1] in set("WAB") & set(self.transposed) and fact.dim() >= 2
        return to_array(fact.mT if turned else fact)

    def _name(self, path: str) -> str:
        return next((name for name, known in self.paths.items() if known == path), path)

    def _call(self, method: str) -> None:
        name, bound = type(self.module).__name__, getattr(self.module, method, None)
        if not callable(bound):
            raise Unsupported(f"{name} has no {method}()")
        if any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
               for p in inspect.signature(bound).parameters.values()):
            raise Unsupported(f"{name}.{method}() needs arguments; a TorchLayer of your own can give them")
        result = bound()
        if isinstance(result, nn.Module) and result is not self.module:
            raise Unsupported(f"{name}.{method}() gives another module; a TorchLayer of your own can go on with it")
