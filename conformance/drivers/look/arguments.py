"""How a class or function is called, and the value of each argument for a configuration."""

import contextlib
import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from conformance.drivers.look import configurations
from conformance.drivers.look.actions import Attribute
from conformance.drivers.look.configurations import Configuration
from conformance.drivers.look.names import AROUND, role_of
from conformance.subject import LayerConfig, Unsupported

PLACE = "q_proj"  # where the linear layer is in a model that a function changes
FIXED: dict[str, Any] = {"false": False, "zero": 0.0, "true": True, "one": 1.0, "single": 1, "multiplier": 1.0,
                         "name": "default", "none": None}
SHOWN = {"linear": "nn.Linear(in, out)", "weight": "W", "turned weight": "W (in, out)", "convolution": "a Conv1D of GPT-2",
         "model": "a model", "false": "False", "true": "True", "zero": "0", "one": "1", "single": "1", "multiplier": "1",
         "name": "a name", "targets": "the name of the layer", "switches": "[True]", "down": "nn.Linear(in, rank)",
         "up": "nn.Linear(rank, out)", "width": "in = out", "sizes": "(in, out)", "turned sizes": "(out, in)", "none": "None"}


class Conv1D(nn.Module):
    """A linear layer whose weight is stored as (in, out), as in the GPT-2 of transformers."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.nx, self.nf = linear.in_features, linear.out_features
        self.weight = nn.Parameter(linear.weight.detach().t().clone(), requires_grad=linear.weight.requires_grad)
        zeros = torch.zeros(self.nf, dtype=linear.weight.dtype, device=linear.weight.device)
        self.bias = nn.Parameter(zeros, requires_grad=linear.weight.requires_grad)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def convolution(call: Callable[..., Any], linear: nn.Linear) -> nn.Module:
    """A Conv1D with the sizes of the linear layer: of the class of this name that the author has imported, or else of ours."""
    theirs = vars(inspect.getmodule(call) or object).get("Conv1D")
    if not (isinstance(theirs, type) and issubclass(theirs, nn.Module)):
        return Conv1D(linear)
    made = theirs(linear.out_features, linear.in_features).to(linear.weight)
    return made.requires_grad_(linear.weight.requires_grad)


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
    holds what is done with the result: see steps.py. `part` makes the LoRA part that the class is given."""

    call: Callable[..., Any]
    roles: dict[str, str]
    positional: tuple[str, ...] = ()  # those that are given by place, since the call takes *args
    kind: type | None = None  # the class of the configuration, if it has one
    beside: tuple[Beside, ...] = ()
    then: "tuple[Plan, ...]" = ()
    part: "Plan | None" = None
    literals: dict[str, Any] = dataclasses.field(default_factory=dict)  # arguments that are given as they stand here
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)  # and fields of the configuration

    @property
    def around(self) -> str:
        """What gives the sizes: in and out, or one of AROUND."""
        return next((role for role in AROUND if role in self.roles.values()), "sizes")

    @property
    def square(self) -> bool:
        """Whether one argument stands for in and for out."""
        return "width" in self.roles.values() or self.part is not None and self.part.square

    def offers(self, role: str) -> bool:
        """Whether something of the call stands for it."""
        further = [*self.then, *([] if self.part is None else [self.part])]
        if any(one.offers(role) for one in further) or any(one.role == role for one in self.beside):
            return True
        in_class = self.kind is not None and any(role_of(name) == role for name in configurations.fields_of(self.kind))
        in_any = "configuration" in self.roles.values() and self.kind is None and role in ("rank", "alpha")
        in_factors = role == "rank" and "down" in self.roles.values()
        return role in self.roles.values() or in_class or in_any or in_factors

    def takes(self, role: str) -> bool:
        """Whether an argument, or a field of the class of the configuration, is there for it by its name. A configuration of no
        class has whatever it is asked for."""
        further = [*self.then, *([] if self.part is None else [self.part])]
        own = any(given == role == role_of(name) for name, given in self.roles.items())
        in_class = self.kind is not None and any(role_of(name) == role for name in configurations.fields_of(self.kind))
        return own or in_class or any(one.takes(role) for one in further)

    @property
    def is_named(self) -> bool:
        """Whether every argument is called what it stands for, and nothing further is done. If not, the plan is a guess."""
        other_names = ("convolution", "b", "turned weight")
        named = all(role == role_of(name) or role in other_names for name, role in self.roles.items())
        return named and not (self.then or self.literals or self.fields or self.part)

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
            for step in self.then:
                made = stepped(made, step.call(made, **step.values(config, linear, model)))
        return made

    def check(self, config: LayerConfig) -> None:
        """Raises Unsupported for an option that nothing stands for."""
        if config.scaling != "standard" and not (self.offers("scaling") or self.offers("rslora")):
            raise Unsupported(f"{config.scaling} scaling")
        if self.square and config.in_features != config.out_features:
            raise Unsupported("in other than out")

    def values(self, config: LayerConfig, linear: nn.Linear, model: nn.Module | None = None) -> dict[str, Any]:
        """The arguments for this configuration."""
        known = known_values(config, linear, model)
        if self.kind is not None:
            known["configuration"] = configurations.made(self.kind, known, self.fields)
        else:
            known["configuration"] = Configuration(known, self.fields)
        if self._text("dtype"):
            known["dtype"] = config.dtype
        if self.part is not None:
            known["part"] = self.part.built(config, linear, model)
        known |= {role: known[role]() for role in ("down", "up") if role in self.roles.values()}
        if "convolution" in self.roles.values():
            known["convolution"] = convolution(self.call, linear)
        return {name: known[role] if role in known else FIXED[role] for name, role in self.roles.items()} | self.literals

    def _text(self, role: str) -> bool:
        """Whether the argument for this has a text as its default."""
        have = inspect.signature(self.call).parameters
        return any(isinstance(have[name].default, str) for name, r in self.roles.items() if r == role and name in have)

    @property
    def words(self) -> str:
        shown = SHOWN | {"configuration": self.kind.__name__ if self.kind else "a configuration"}
        fields = ", ".join(f"{name}={value!r}" for name, value in self.fields.items())
        shown["configuration"] += f"({fields})" if fields else ""
        shown["part"] = self.part.words if self.part else "a LoRA module"
        given = [f"{argument}={shown.get(role, role)}" for argument, role in self.roles.items()]
        given += [f"{argument}={value!r}" for argument, value in self.literals.items()]
        own = self.call
        text = own.words if isinstance(own, Attribute) else f"{name_of(own)}({', '.join(given)})"
        for step in self.then:
            text += f"{'.' if is_method(step.call) else '; '}{step.words}"
        return "".join(f"{one.words}; " for one in self.beside) + text


def beside(call: Callable[..., Any]) -> dict[str, Any]:
    """What stands beside a class or function: in its module, and in the package that it belongs to."""
    module = inspect.getmodule(call)
    package = sys.modules.get(module.__name__.partition(".")[0]) if module else None
    return {**vars(package or object), **vars(module or object)}


def name_of(call: Callable[..., Any]) -> str:
    name = getattr(call, "__qualname__" if inspect.ismethod(call) else "__name__", "")  # a constructor beside __init__
    return str(name) or str(type(call).__name__)


def is_method(call: Callable[..., Any]) -> bool:
    """Whether a function stands in a class."""
    outer = getattr(call, "__qualname__", "").rpartition(".")[0]
    return inspect.isfunction(call) and bool(outer) and not outer.endswith("<locals>")


def stepped(made: Any, result: Any) -> Any:
    """What goes on after a step: its result, if that is a module and what was made is none."""
    return result if isinstance(result, nn.Module) and not isinstance(made, nn.Module) else made


def known_values(config: LayerConfig, linear: nn.Linear, model: nn.Module | None) -> dict[str, Any]:
    """The value of each role."""
    return {
        "in": config.in_features, "width": config.in_features, "out": config.out_features, "rank": config.rank,
        "alpha": config.alpha, "bias": config.bias, "dropout": config.dropout, "dtype": getattr(torch, config.dtype),
        "device": torch.device(config.device), "scaling": config.scaling, "rslora": config.scaling == "rslora",
        "seed": config.seed, "linear": linear, "weight": linear.weight, "b": linear.bias, "model": model,
        "sizes": (config.in_features, config.out_features),
        "turned sizes": (config.out_features, config.in_features), "x": linear.weight.new_ones(2, config.in_features),
        "turned weight": nn.Parameter(linear.weight.detach().t().clone(), requires_grad=linear.weight.requires_grad),
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
