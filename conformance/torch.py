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

import copy
import inspect
import warnings
from collections.abc import Callable
from itertools import product
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
        name, bound = type(self.module).__name__, getattr(self.module, method, None)
        if not callable(bound):
            raise Unsupported(f"{name} has no {method}()")
        if any(p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
               for p in inspect.signature(bound).parameters.values()):
            raise Unsupported(f"{name}.{method}() needs arguments; a TorchLayer of your own can give them")
        result = bound()
        if isinstance(result, nn.Module) and result is not self.module:
            raise Unsupported(f"{name}.{method}() gives another module; a TorchLayer of your own can go on with it")


class ModuleLayer(TorchLayer):
    """The layer of a bare module, of which a file holds the whole state."""

    def load(self, directory) -> None:
        state, have = torch.load(f"{directory}/state.pt", weights_only=True), self.module.state_dict()
        for name, tensor in state.items():  # torch itself copies what fits before it complains
            if isinstance(tensor, Tensor) and name in have and tensor.shape != have[name].shape:
                raise RuntimeError(f"{name} is {tuple(tensor.shape)} in the file, expected {tuple(have[name].shape)}")
        self.module.load_state_dict(state)

    def load_source(self, name: str, directory: str) -> list[str]:
        return [f"{name}.load_state_dict(torch.load({directory} + '/state.pt', weights_only=True))"]


_NAMES = {  # of constructor arguments, as they are in use
    "in_features": ("in_features", "in_dim", "d_in", "input_dim", "in_channels", "features_in", "n_in", "fan_in", "in_size"),
    "out_features": (
        "out_features", "out_dim", "d_out", "output_dim", "out_channels", "features_out", "n_out", "fan_out", "out_size",
    ),
    "rank": ("rank", "r", "lora_rank", "lora_r", "lora_dim"),
    "alpha": ("alpha", "lora_alpha", "network_alpha"),
    "bias": ("bias", "use_bias"),
    "dropout": ("dropout", "lora_dropout", "dropout_p", "lora_dropout_p", "dropout_rate", "drop", "p"),
    "rslora": ("use_rslora", "rslora"),
    "scaling": ("scaling",),
    "dtype": ("dtype",),
    "device": ("device",),
    "seed": ("seed",),
}
_ELSE = "; a conformance.torch.TorchLayer, about ten lines, takes any module"
_BASE = ("linear", "base_layer", "base", "layer", "module", "original_layer", "original_module", "linear_layer")


class ModuleSubject(Subject):
    """A bare nn.Module class whose constructor takes (in_features, out_features, rank | r, alpha | lora_alpha), or an
    nn.Linear in the place of the sizes; or a function that does, and returns a module. A, B, W and b are found by their
    shapes, by name where shapes leave a choice, and by whether the module computes with them."""

    def __init__(self, cls: Callable[..., nn.Module]):
        self.cls, self.name = cls, getattr(cls, "__name__", type(cls).__name__)
        self.version = getattr(inspect.getmodule(cls), "__version__", "")
        self.arguments = list(inspect.signature(cls).parameters.values())
        self._places: dict[tuple[bool, str], dict] = {}

    def build(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None) -> Layer:
        places = self._found(config)
        module = self._constructed(config)
        layer = ModuleLayer(module, **places)
        if config.bias and layer.paths.get("b") is None:
            raise Unsupported("a bias")
        if not config.bias and layer.paths.get("b") is not None:
            raise Unsupported("a layer without a bias")
        layer.set_base(weight, bias)
        return layer

    def script(self, calls: list[Call], spec: str) -> str | None:
        place, _, name = spec.rpartition(":")
        if name != getattr(self.cls, "__qualname__", ""):  # not the class as it stands
            return None
        outer = name.split(".")[0]
        imports = [f"from {place} import {outer}"]
        if place.endswith(".py"):
            path = Path(place)
            imports = [f"import sys; sys.path.insert(0, {str(path.parent)!r})", f"from {path.stem} import {outer}"]
            if not path.stem.isidentifier():
                imports[1] = f"{outer} = __import__({path.stem!r}).{outer}"

        name_of_class = name

        def construction(config: LayerConfig, name: str) -> list[str]:
            moved = [] if config.device == "cpu" else [repr(config.device)]
            moved += [] if config.dtype == "float32" else [f"torch.{config.dtype}"]
            made = written(name_of_class, self.cls, **self._arguments(config))
            line = f"{name} = {made}" + (f".to({', '.join(moved)})" if moved else "")
            if config.dtype != "float64":
                return [line]
            return ["torch.set_default_dtype(torch.float64)", line, "torch.set_default_dtype(torch.float32)"]

        return script(calls, imports, construction)

    def _constructed(self, config: LayerConfig) -> nn.Module:
        torch.manual_seed(config.seed)
        dtype, device, usual = getattr(torch, config.dtype), torch.device(config.device), torch.get_default_dtype()
        if dtype == torch.float64:  # a buffer that is made in float32 would have lost its digits before .to()
            torch.set_default_dtype(dtype)
        try:
            module = self.cls(**self._arguments(config))
        finally:
            torch.set_default_dtype(usual)
        if not isinstance(module, nn.Module):
            raise TypeError(f"{self.name} gave {type(module).__name__}, expected a torch.nn.Module")
        return module.to(device=device, dtype=dtype)

    def _arguments(self, config: LayerConfig) -> dict:
        """What the constructor is given."""
        dtype, device = getattr(torch, config.dtype), torch.device(config.device)
        wanted = {
            "in_features": config.in_features, "out_features": config.out_features, "rank": config.rank,
            "alpha": config.alpha, "bias": config.bias, "dropout": config.dropout, "dtype": dtype, "device": device,
            "scaling": config.scaling, "rslora": config.scaling == "rslora", "seed": config.seed,
        }
        given, used = {}, set()
        for argument in self.arguments:
            key = next((key for key, names in _NAMES.items() if argument.name in names), None)
            if key == "scaling" and not isinstance(argument.default, str):
                continue  # a number that overrides alpha / rank, not the name of a rule
            if key == "bias" and isinstance(argument.default, str):
                continue  # which biases train, as PEFT has it
            if key == "dtype" and isinstance(argument.default, str):
                wanted["dtype"] = config.dtype
            if key is not None:
                given[argument.name] = wanted[key]
                used.add(key)
            elif argument.name in _BASE:
                base = nn.Linear(config.in_features, config.out_features, config.bias, device=device, dtype=dtype)
                given[argument.name] = base
                used |= {"in_features", "out_features", "bias"}
            elif argument.kind is argument.VAR_KEYWORD and isinstance(self.cls, type) and issubclass(self.cls, nn.Linear):
                given |= {"bias": config.bias, "dtype": dtype, "device": device}
                used |= {"bias"}
        missing = {"in_features", "out_features", "rank", "alpha"} - used
        have = ", ".join(argument.name for argument in self.arguments)
        if missing:
            known = "; ".join(f"{key} ({', '.join(_NAMES[key])})" for key in sorted(missing))
            raise TypeError(f"{self.name}({have}) takes nothing that is known as {known}{_ELSE}")
        needed = [a.name for a in self.arguments if a.default is a.empty and a.kind not in (a.VAR_KEYWORD, a.VAR_POSITIONAL)]
        if set(needed) - set(given):
            unknown = ", ".join(sorted(set(needed) - set(given)))
            raise TypeError(f"{self.name}({have}) needs {unknown}, and what that is to be is not known{_ELSE}")
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
    """The arguments of TorchLayer for a module of these sizes, which must be different from each other: of all arrays that
    have the shapes, those with which the module computes, the likeliest names first."""
    fitting = _fitting(module, in_features, out_features, rank)
    candidates = [dict(zip("WABb", places, strict=True)) for places in product(*fitting)]
    shapes = {"W": (out_features, in_features), "A": (in_features, rank), "B": (rank, out_features)}
    tensors = dict([*module.named_parameters(), *module.named_buffers()])
    for places in candidates:
        turned = [name for name, shape in shapes.items() if tuple(tensors[places[name] or ""].shape) != shape]
        places["transposed"] = "".join(turned)
    return next((places for places in candidates[:64] if _computes_with(module, places, shapes)), candidates[0])


def _computes_with(module: nn.Module, places: dict, shapes: dict) -> bool:
    """Whether y is x Wᵀ + b with those W and b and with a B of zeros, and another one with another B."""
    layer, rng = TorchLayer(copy.deepcopy(module), **places), np.random.default_rng(0)
    dtype = to_array(layer.tensor("W")).dtype
    W, A, B = (rng.integers(1, 4, shapes[name]).astype(dtype) for name in "WAB")
    b, x = (np.arange(len(W), dtype=dtype) if places["b"] else None), np.eye(W.shape[1], dtype=dtype)
    try:
        layer.set_base(W, b)
        layer.set_adapter({"A": A, "B": 0 * B})
        base = layer.forward(x)
        layer.set_adapter({"A": A, "B": B})
        y = layer.forward(x)
    except Exception:  # that it does not work is for the requirements to find
        return False
    return np.array_equal(base, W.T if b is None else W.T + b) and not np.array_equal(y, base)


def _fitting(module: nn.Module, in_features: int, out_features: int, rank: int) -> list[list[str | None]]:
    """The paths of all arrays of the shapes of W, A, B and b, those with a fitting name first."""
    shapes = {"W": (out_features, in_features), "A": (in_features, rank), "B": (rank, out_features), "b": (out_features,)}
    hints = {"W": ("weight", "base", "linear"), "b": ("bias",), "A": ("a", "down"), "B": ("b", "up")}
    tensors, found = [*module.named_parameters(), *module.named_buffers()], []
    for name, shape in shapes.items():
        fitting: list[str | None] = [path for path, tensor in tensors if tuple(tensor.shape) in (shape, shape[::-1])]
        if not fitting and name != "b":
            have = ", ".join(f"{path} {tuple(tensor.shape)}" for path, tensor in tensors) or "none"
            raise TypeError(
                f"no parameter of {type(module).__name__} is {name} {shape} or {shape[::-1]} "
                f"when in = {in_features}, out = {out_features}, rank = {rank}; it has: {have}{_ELSE}"
            )
        named = [path for path in fitting if path and set(hints[name]) & set(path.lower().replace(".", "_").split("_"))]
        found.append([*named, *(path for path in fitting if path not in named)] or [None])
    return found
