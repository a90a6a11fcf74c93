"""How a class or function is called, and the value of each argument for a configuration."""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from conformance.drivers.look.names import AROUND, ROLES
from conformance.subject import LayerConfig, Unsupported

PLACE = "q_proj"  # where the linear layer is in a model that a function changes
FIXED: dict[str, Any] = {"false": False, "zero": 0.0, "true": True, "one": 1.0, "multiplier": 1.0,
                         "name": "default", "none": None}
SHOWN = {"linear": "nn.Linear(in, out)", "weight": "W", "turned weight": "W (in, out)", "convolution": "a Conv1D of GPT-2",
         "model": "a model", "false": "False", "true": "True", "zero": "0", "one": "1", "multiplier": "1", "name": "a name",
         "targets": "the name of the layer", "switches": "[True]", "down": "nn.Linear(in, rank)", "up": "nn.Linear(rank, out)",
         "width": "in = out"}


class Configuration:
    """An object that has whatever a configuration calls for, under any name that is in use for it, as attribute or as item."""

    def __init__(self, values: dict[str, Any]):
        self._values = values

    def __getattr__(self, name: str) -> Any:
        role = ROLES.get(name)
        if name.startswith("_") or role not in self._values:
            raise AttributeError(f"a configuration of no class has no {name}")
        return self._values[role]

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self, name)
        except AttributeError:
            raise KeyError(name) from None

    def get(self, name: str, default: Any = None) -> Any:
        return getattr(self, name, default)


class Conv1D(nn.Module):
    """A linear layer whose weight is stored as (in, out), as in the GPT-2 of transformers."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.nx, self.nf = linear.in_features, linear.out_features
        self.weight = nn.Parameter(linear.weight.detach().t().clone())
        self.bias = nn.Parameter(torch.zeros(self.nf, dtype=linear.weight.dtype, device=linear.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


@dataclasses.dataclass(frozen=True)
class Beside:
    """A number that a class reads from an entry of a dict beside it, or from an attribute of its own."""

    place: Any
    name: str
    role: str

    @property
    def words(self) -> str:
        return f"{self.name} = {self.role}" if self._in_dict else f"{self.place.__name__}.{self.name} = {self.role}"

    @property
    def _in_dict(self) -> bool:
        return isinstance(self.place, dict)

    @contextlib.contextmanager
    def set(self, value: Any) -> Iterator[None]:
        """Sets it while a layer is made."""
        before = self.place[self.name] if self._in_dict else getattr(self.place, self.name)
        self._write(value)
        try:
            yield
        finally:
            self._write(before)

    def _write(self, value: Any) -> None:
        if self._in_dict:
            self.place[self.name] = value
        else:
            setattr(self.place, self.name, value)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a class or function is called: what each argument stands for. Arguments that are left out keep their default.

    `beside` says what is set before the call: entries of dicts that stand beside the class, or attributes of the class. `then`
    is the plan of a method that is called on the result."""

    call: Callable[..., Any]
    roles: dict[str, str]
    positional: tuple[str, ...] = ()  # those that are given by place, since the call takes *args
    kind: type | None = None  # the dataclass of the configuration, if it has one
    beside: tuple[Beside, ...] = ()
    then: "Plan | None" = None

    @property
    def around(self) -> str:
        """What gives the sizes: in and out, or one of AROUND."""
        return next((role for role in AROUND if role in self.roles.values()), "sizes")

    @property
    def square(self) -> bool:
        """Whether one argument stands for in and for out."""
        return "width" in self.roles.values()

    def offers(self, role: str) -> bool:
        """Whether something of the call stands for it."""
        if self.then is not None and self.then.offers(role) or any(one.role == role for one in self.beside):
            return True
        in_class = self.kind is not None and any(ROLES.get(field.name) == role for field in dataclasses.fields(self.kind))
        in_any = self.around == "configuration" and self.kind is None and role in ("rank", "alpha")
        return role in self.roles.values() or in_class or in_any

    def built(self, config: LayerConfig, linear: nn.Linear, model: nn.Module | None = None) -> Any:
        """What all calls together give. `linear` is the base layer, and `model` holds it. Raises Unsupported for an option that
        they do not take."""
        self.check(config)
        known = known_values(config, linear, model)
        with contextlib.ExitStack() as kept:
            for one in self.beside:
                kept.enter_context(one.set(known[one.role]))
            values = self.values(config, linear, model)
            first = [values.pop(name) for name in self.positional]
            made = self.call(*first, **values)
            for one in self.beside:
                if one.place is type(made):
                    setattr(made, one.name, known[one.role])  # it may look there again when it computes
            if self.then is not None:
                self.then.call(made, **self.then.values(config, linear, model))
        return made

    def check(self, config: LayerConfig) -> None:
        """Raises Unsupported for an option that nothing stands for."""
        if config.dropout and not self.offers("dropout"):
            raise Unsupported("dropout")
        if config.scaling != "standard" and not (self.offers("scaling") or self.offers("rslora")):
            raise Unsupported(f"{config.scaling} scaling")
        if self.square and config.in_features != config.out_features:
            raise Unsupported("in other than out")

    def values(self, config: LayerConfig, linear: nn.Linear, model: nn.Module | None = None) -> dict[str, Any]:
        """The arguments for this configuration."""
        known = known_values(config, linear, model)
        if self.kind is not None:
            fields = {field.name: known.get(ROLES.get(field.name, "")) for field in dataclasses.fields(self.kind)}
            known["configuration"] = self.kind(**{name: value for name, value in fields.items() if value is not None})
        else:
            known["configuration"] = Configuration(known)
        if self._text("dtype"):
            known["dtype"] = config.dtype
        known |= {role: known[role]() for role in ("down", "up") if role in self.roles.values()}
        return {name: known[role] if role in known else FIXED[role] for name, role in self.roles.items()}

    def _text(self, role: str) -> bool:
        """Whether the argument for this has a text as its default."""
        have = inspect.signature(self.call).parameters
        return any(isinstance(have[name].default, str) for name, r in self.roles.items() if r == role and name in have)

    @property
    def words(self) -> str:
        name = getattr(self.call, "__name__", type(self.call).__name__)
        shown = SHOWN | {"configuration": self.kind.__name__ if self.kind else "a configuration"}
        text = f"{name}({', '.join(f'{argument}={shown.get(role, role)}' for argument, role in self.roles.items())})"
        text += f".{self.then.words}" if self.then else ""
        return "".join(f"{one.words}; " for one in self.beside) + text


def known_values(config: LayerConfig, linear: nn.Linear, model: nn.Module | None) -> dict[str, Any]:
    """The value of each role."""
    return {
        "in": config.in_features, "width": config.in_features, "out": config.out_features, "rank": config.rank,
        "alpha": config.alpha, "bias": config.bias, "dropout": config.dropout, "dtype": getattr(torch, config.dtype),
        "device": torch.device(config.device), "scaling": config.scaling, "rslora": config.scaling == "rslora",
        "seed": config.seed, "linear": linear, "weight": linear.weight, "b": linear.bias, "model": model,
        "turned weight": nn.Parameter(linear.weight.detach().t().clone()), "convolution": Conv1D(linear),
        "targets": [getattr(model, "place", PLACE)], "switches": [True],
        "down": lambda: _factor(config.in_features, config.rank, linear),
        "up": lambda: _factor(config.rank, config.out_features, linear, zero=True),
    }


def _factor(n_in: int, n_out: int, like: nn.Linear, zero: bool = False) -> nn.Linear:
    """A linear layer that a caller makes for a factor."""
    made = nn.Linear(n_in, n_out, bias=False, device=like.weight.device, dtype=like.weight.dtype)
    if zero:
        nn.init.zeros_(made.weight)
    return made
