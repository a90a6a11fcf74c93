"""Makes a bare nn.Module class, or a function that returns a module, a Subject. It finds W, b, A and B in the module."""

import copy
import inspect
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from conformance.record.torch_script import script, written
from conformance.subject import Call, Layer, LayerConfig, Subject, Unsupported
from conformance.torch import TorchLayer, set_seed


class ModuleLayer(TorchLayer):
    """The layer of a bare module. Its file holds the whole state_dict."""

    wrap: Callable[[nn.Linear], nn.Module] | None = None  # how its class makes one around a given nn.Linear, if it does

    def around(self, linear: nn.Linear) -> nn.Module:
        return super().around(linear) if self.wrap is None else self.wrap(linear)

    def load(self, directory) -> None:
        state, have = torch.load(f"{directory}/state.pt", weights_only=True), self.module.state_dict()
        for name, tensor in state.items():  # torch itself copies what fits before it complains
            if isinstance(tensor, Tensor) and name in have and tensor.shape != have[name].shape:
                raise RuntimeError(f"{name} is {tuple(tensor.shape)} in the file, expected {tuple(have[name].shape)}")
        self.module.load_state_dict(state)

    def load_source(self, name: str, directory: str) -> list[str]:
        return [f"{name}.load_state_dict(torch.load({directory} + '/state.pt', weights_only=True))"]


_NAMES = {  # names that are in use for each constructor argument
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
    """The Subject of a bare nn.Module class, or of a function that returns a module.

    The class or function takes (in_features, out_features, rank | r, alpha | lora_alpha), or an nn.Linear in the place of the
    sizes. A, B, W and b are found by their shapes. Where shapes leave a choice, names decide the order in which candidates are
    tried, and a trial shows whether the module computes with them."""

    def __init__(self, cls: Callable[..., nn.Module]):
        self.cls, self.name = cls, getattr(cls, "__name__", type(cls).__name__)
        self.version = getattr(inspect.getmodule(cls), "__version__", "")
        self.arguments = list(inspect.signature(cls).parameters.values())
        self._places: dict[tuple[bool, str], dict] = {}

    def build(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None) -> Layer:
        places = self._found(config)
        module = self._constructed(config)
        layer = ModuleLayer(module, **places)
        if any(argument.name in _BASE for argument in self.arguments):
            layer.wrap = lambda linear: self.cls(**self._arguments(config, linear))
        if config.bias and layer.paths.get("b") is None:
            raise Unsupported("a bias")
        if not config.bias and layer.paths.get("b") is not None:
            raise Unsupported("a layer without a bias")
        layer.set_base(weight, bias)
        return layer

    def script(self, calls: list[Call], spec: str) -> str | None:
        place, _, name = spec.rpartition(":")
        if name != getattr(self.cls, "__qualname__", ""):  # the user did not name the class itself
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
        set_seed(config)
        dtype, device, usual = getattr(torch, config.dtype), torch.device(config.device), torch.get_default_dtype()
        if dtype == torch.float64:  # a buffer made in float32 would lose digits before .to()
            torch.set_default_dtype(dtype)
        try:
            module = self.cls(**self._arguments(config))
        finally:
            torch.set_default_dtype(usual)
        if not isinstance(module, nn.Module):
            raise TypeError(f"{self.name} gave {type(module).__name__}, expected a torch.nn.Module")
        return module.to(device=device, dtype=dtype)

    def _arguments(self, config: LayerConfig, linear: nn.Linear | None = None) -> dict:
        """The arguments for the constructor. A layer around an nn.Linear gets `linear`, or a new one. Raises TypeError if an
        argument that it needs is unknown, Unsupported for an option that it does not take."""
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
                continue  # says which biases train, as in PEFT
            if key == "dtype" and isinstance(argument.default, str):
                wanted["dtype"] = config.dtype
            if key is not None:
                given[argument.name] = wanted[key]
                used.add(key)
            elif argument.name in _BASE:
                given[argument.name] = linear if linear is not None else nn.Linear(
                    config.in_features, config.out_features, config.bias, device=device, dtype=dtype)
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
        """Where the arrays are. They are found once, on a layer whose sizes all differ."""
        key = (config.bias, config.dtype)
        if key not in self._places:
            probe = LayerConfig(7, 5, 3, 6.0, bias=config.bias, dtype=config.dtype)
            self._places[key] = places_in(self._constructed(probe), in_features=7, out_features=5, rank=3)
        return self._places[key]


def places_in(module: nn.Module, in_features: int, out_features: int, rank: int) -> dict:
    """The arguments of TorchLayer for a module of these sizes, which must all differ. Of several arrays with a fitting shape it
    takes those that the module computes with. It tries the likeliest names first."""
    fitting = _fitting(module, in_features, out_features, rank)
    candidates = [dict(zip("WABb", places, strict=True)) for places in product(*fitting)]
    shapes = {"W": (out_features, in_features), "A": (in_features, rank), "B": (rank, out_features)}
    tensors = dict([*module.named_parameters(), *module.named_buffers()])
    for places in candidates:
        turned = [name for name, shape in shapes.items() if tuple(tensors[places[name] or ""].shape) != shape]
        places["transposed"] = "".join(turned)
    if len(candidates) == 1:
        return candidates[0]
    return next((places for places in candidates[:64] if _computes_with(module, places, shapes)), candidates[0])


def _computes_with(module: nn.Module, places: dict, shapes: dict) -> bool:
    """Whether y is x Wᵀ + b when these arrays hold some W and b and B = 0, and differs from that when B is not 0."""
    rng = np.random.default_rng(0)
    try:
        layer = TorchLayer(copy.deepcopy(module), **places)
        dtype = layer.weight().dtype
        W, A, B = (rng.integers(1, 4, shapes[name]).astype(dtype) for name in "WAB")
        b, x = (np.arange(len(W)).astype(dtype) if places["b"] else None), np.eye(W.shape[1]).astype(dtype)
        layer.set_base(W, b)
        layer.set_adapter({"A": A, "B": 0 * B})
        base = layer.forward(x)
        layer.set_adapter({"A": A, "B": B})
        y = layer.forward(x)
    except Exception:  # it cannot be copied, or fails: the requirements will show that
        return False
    return np.array_equal(base, W.T if b is None else W.T + b) and not np.array_equal(y, base)


def _fitting(module: nn.Module, in_features: int, out_features: int, rank: int) -> list[list[str | None]]:
    """For each of W, A, B and b, the paths of all arrays of its shape, those with a fitting name first."""
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
