"""PyTorch subjects: any nn.Module as a Layer, and a bare nn.Module class as a Subject.

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
        def script(self, calls, spec):  # not needed; with it a failure is shown as a script without this package
            return script(calls, ["from mine import MyLoRA"], lambda config, name: [
                f"{name} = MyLoRA({config.in_features}, {config.out_features}, r={config.rank}, lora_alpha={config.alpha})"])
"""

import inspect
import warnings
from operator import attrgetter
from pathlib import Path

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from conformance.subject import Arrays, Call, Layer, LayerConfig, Subject, Unsupported
from conformance.torch_script import script, written

torch.set_num_threads(1)  # cases are tiny: threads cost more than they give, and order sums at random


def to_tensor(array: np.ndarray, device: str | torch.device = "cpu") -> Tensor:
    """The same memory as a tensor where torch can have it so: its strides and its base are part of what is tested."""
    if any(stride < 0 for stride in array.strides):
        array = array.copy()  # torch has no negative strides
    bits = array.view(np.int16) if array.dtype == ml_dtypes.bfloat16 else array
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the array is read-only: whether it is written to is a test
        tensor = torch.from_numpy(bits)
    return (tensor.view(torch.bfloat16) if bits is not array else tensor).to(device)


def to_array(tensor: Tensor) -> np.ndarray:
    """A copy as an array of the same dtype."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16).copy()
    return tensor.numpy().copy()


class TorchLayer(Layer):
    """A Layer around an nn.Module. W, b, A and B are the dotted paths of its tensors, seen from the module; those
    named in `transposed` are stored the other way round: W (in, out), A (rank, in), B (out, rank).

    Of a method whose statements make no script outside of this class, a method of the same name and `_source` says what it
    does: given the name of the module and the arguments, it returns lines of Python, or None."""

    def __init__(self, module: nn.Module, *, W: str, b: str | None, A: str, B: str, transposed: str = ""):
        self.module = module
        self.paths = {"W": W, "A": A, "B": B} | ({} if b is None else {"b": b})
        self.transposed = transposed
        # Whether train() does nothing but change the mode, and was as good as called when the module was built.
        self.plain_modes = all(part.training and type(part).train is nn.Module.train for part in module.modules())
        self._x_needs_grad = True
        self._x: Tensor | None = None
        self._y: Tensor | None = None

    def tensor(self, name: str) -> Tensor:
        """W, b, A or B as the module has it now, in the layout of the contract; shares its memory."""
        found = attrgetter(self.paths[name])(self.module)
        return found.t() if name in self.transposed else found

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
        self._x = to_tensor(x, self.tensor("W").device).requires_grad_(self._x_needs_grad)
        y = self.module(self._x)
        self._y = y
        return to_array(y) if isinstance(y, Tensor) else y

    def backward(self, dy: np.ndarray) -> Arrays:
        if self._y is None or self._x is None:
            raise RuntimeError("backward before forward")
        if self._y.requires_grad:
            self._y.backward(to_tensor(dy, self._y.device))
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

    def _name(self, path: str) -> str:
        return next((name for name, known in self.paths.items() if known == path), path)

    def _call(self, method: str) -> None:
        if not callable(getattr(self.module, method, None)):
            raise Unsupported(f"{type(self.module).__name__} has no {method}()")
        getattr(self.module, method)()


_NAMES = {  # of constructor arguments, as they are in use
    "in_features": ("in_features", "in_dim", "d_in", "input_dim", "in_channels"),
    "out_features": ("out_features", "out_dim", "d_out", "output_dim", "out_channels"),
    "rank": ("rank", "r", "lora_rank", "lora_r", "lora_dim"),
    "alpha": ("alpha", "lora_alpha"),
    "bias": ("bias", "use_bias"),
    "dropout": ("dropout", "lora_dropout", "dropout_p", "dropout_rate"),
    "rslora": ("use_rslora", "rslora"),
    "scaling": ("scaling",),
    "dtype": ("dtype",),
    "device": ("device",),
}
_BASE = ("linear", "base_layer", "base", "layer", "module", "original_layer", "original_module", "linear_layer")


class ModuleSubject(Subject):
    """A bare nn.Module class whose constructor takes (in_features, out_features, rank | r, alpha | lora_alpha), or an
    nn.Linear in the place of the sizes. A, B, W and b are found by their shapes, and by name where shapes leave a choice."""

    def __init__(self, cls: type[nn.Module]):
        self.cls, self.name = cls, cls.__name__
        self.version = getattr(inspect.getmodule(cls), "__version__", "")
        self.arguments = list(inspect.signature(cls.__init__).parameters.values())[1:]
        self._places: dict[tuple[bool, str], dict] = {}

    def build(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None) -> Layer:
        places = self._found(config)
        module = self._constructed(config)
        layer = TorchLayer(module, **places)
        if config.bias and layer.paths.get("b") is None:
            raise Unsupported("a bias")
        if not config.bias and layer.paths.get("b") is not None:
            raise Unsupported("a layer without a bias")
        layer.set_base(weight, bias)
        return layer

    def script(self, calls: list[Call], spec: str) -> str | None:
        place, _, name = spec.rpartition(":")
        if name != self.cls.__qualname__:  # not the class as it stands
            return None
        outer = name.split(".")[0]
        imports = [f"from {place} import {outer}"]
        if place.endswith(".py"):
            path = Path(place)
            imports = [f"import sys; sys.path.insert(0, {str(path.parent)!r})", f"from {path.stem} import {outer}"]
            if not path.stem.isidentifier():
                imports[1] = f"{outer} = __import__({path.stem!r}).{outer}"

        def construction(config: LayerConfig, name: str) -> list[str]:
            moved = [] if config.device == "cpu" else [repr(config.device)]
            moved += [] if config.dtype == "float32" else [f"torch.{config.dtype}"]
            made = written(self.cls.__qualname__, self.cls, **self._arguments(config))
            return [f"{name} = {made}" + (f".to({', '.join(moved)})" if moved else "")]

        return script(calls, imports, construction)

    def _constructed(self, config: LayerConfig) -> nn.Module:
        torch.manual_seed(config.seed)
        dtype, device = getattr(torch, config.dtype), torch.device(config.device)
        return self.cls(**self._arguments(config)).to(device=device, dtype=dtype)

    def _arguments(self, config: LayerConfig) -> dict:
        """What the constructor is given."""
        dtype, device = getattr(torch, config.dtype), torch.device(config.device)
        wanted = {
            "in_features": config.in_features, "out_features": config.out_features, "rank": config.rank,
            "alpha": config.alpha, "bias": config.bias, "dropout": config.dropout, "dtype": dtype, "device": device,
            "scaling": config.scaling, "rslora": config.scaling == "rslora",
        }
        given, used = {}, set()
        for argument in self.arguments:
            key = next((key for key, names in _NAMES.items() if argument.name in names), None)
            if key == "scaling" and not isinstance(argument.default, str):
                continue  # a number that overrides alpha / rank, not the name of a rule
            if key is not None:
                given[argument.name] = wanted[key]
                used.add(key)
            elif argument.name in _BASE:
                base = nn.Linear(config.in_features, config.out_features, config.bias, device=device, dtype=dtype)
                given[argument.name] = base
                used |= {"in_features", "out_features", "bias"}
        missing = {"in_features", "out_features", "rank", "alpha"} - used
        if missing:
            have = ", ".join(argument.name for argument in self.arguments)
            raise TypeError(f"{self.name}({have}) takes nothing that is known as {', '.join(sorted(missing))}")
        if config.dropout and "dropout" not in used:
            raise Unsupported("dropout")
        if config.scaling != "standard" and not {"scaling", "rslora"} & used:
            raise Unsupported(f"{config.scaling} scaling")
        return given

    def _found(self, config: LayerConfig) -> dict:
        """Where the arrays are, found once on a layer whose sizes are all different."""
        key = (config.bias, config.dtype)
        if key not in self._places:
            probe = LayerConfig(7, 5, 3, 6.0, bias=config.bias, dtype=config.dtype)
            self._places[key] = places_in(self._constructed(probe), in_features=7, out_features=5, rank=3)
        return self._places[key]


def places_in(module: nn.Module, in_features: int, out_features: int, rank: int) -> dict:
    """The arguments of TorchLayer for a module of these sizes, which must be different from each other."""
    shapes = {"W": (out_features, in_features), "A": (in_features, rank), "B": (rank, out_features), "b": (out_features,)}
    hints = {"W": ("weight", "base", "linear"), "b": ("bias",), "A": ("a", "down"), "B": ("b", "up")}
    tensors = [*module.named_parameters(), *module.named_buffers()]
    places: dict[str, str | None] = {}
    transposed = ""
    for name, shape in shapes.items():
        fitting = [path for path, tensor in tensors if tuple(tensor.shape) in (shape, shape[::-1])]
        if len(fitting) > 1:  # by name, then a parameter before a buffer
            words = hints[name]
            named = [path for path in fitting if any(word in path.lower().replace(".", "_").split("_") for word in words)]
            fitting = (named or fitting)[:1]
        if not fitting and name != "b":
            have = ", ".join(f"{path} {tuple(tensor.shape)}" for path, tensor in tensors) or "none"
            raise TypeError(
                f"no parameter of {type(module).__name__} is {name} {shape} or {shape[::-1]} "
                f"when in = {in_features}, out = {out_features}, rank = {rank}; it has: {have}"
            )
        places[name] = fitting[0] if fitting else None
        if fitting and name != "b" and tuple(dict(tensors)[fitting[0]].shape) != shape:
            transposed += name
    return {**places, "transposed": transposed}
