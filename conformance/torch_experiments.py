"""What a layer goes through as a torch module among others. Each public function is one experiment.

An experiment gets the module, `call(module, x)`, which gives y of x, and the Parameters A and B as the module stores them. x,
dy and v are tensors of the requirement. `kept` is a dict that lasts as long as the layer. An experiment returns facts: tensors,
truth values and names. A tensor whose name ends in " A" or " B" has the layout of that Parameter. The requirement judges the
facts, in another process. The functions use torch alone, since the script of a failure holds their text.
"""

import copy
import hashlib
import inspect
import io
import pickle
import random
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint

Own = nn.Parameter
Through = Callable[[nn.Module, Tensor], Tensor]
Facts = dict[str, Any]


class Impossible(Exception):
    """The module cannot take part in the experiment, through no fault of its own."""


def experiment(name: str) -> Callable[..., Facts]:
    """The experiment of that name. Raises KeyError."""
    return {f.__name__: f for f in EXPERIMENTS}[name]


def needed(name: str) -> tuple[str, ...]:
    """The names of its parameters."""
    return tuple(inspect.signature(experiment(name)).parameters)


def perform(name: str, known: dict[str, Any], given: dict[str, Any]) -> Facts:
    """The facts of the experiment. It takes from `known` what it names among its parameters, and all of `given`."""
    return experiment(name)(**{key: known[key] for key in needed(name) if key in known}, **given)


def now(tensor: Tensor) -> Tensor:
    """A copy, since what a layer gave may change later."""
    return tensor.detach().clone()


def leaf(tensor: Tensor) -> Tensor:
    """A copy that gets a gradient."""
    return tensor.detach().clone().requires_grad_()


def gradients_of(**leaves: Tensor) -> Facts:
    """Copies of the gradients, under "d" and the name. One that has none is left out."""
    return {f"d {name}": tensor.grad.clone() for name, tensor in leaves.items() if tensor.grad is not None}


def twin(module: nn.Module, other: nn.Module, own: Own) -> Own:
    """The Parameter of a copy of the module that stands where `own` stands in the module."""
    return list(other.parameters())[[parameter is own for parameter in module.parameters()].index(True)]


def negate(parameter: Tensor) -> None:
    with torch.no_grad():
        parameter.neg_()


def found_by_name(kind: type) -> bool:
    """Whether pickle finds the class, or the class has a way of its own to be pickled."""
    found: Any = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is kind or kind.__reduce_ex__ is not object.__reduce_ex__


def copied(module: nn.Module, call: Through, A: Own, B: Own, x: Tensor, how: str) -> Facts:
    """A copy of the module, made by copy.deepcopy or torch.save. Then A of the copy is negated, and then A of the module. The
    same is done with B."""
    if how == "deepcopy":
        other = copy.deepcopy(module)
    else:
        if not all(found_by_name(type(part)) for part in module.modules()):
            raise Impossible("pickle: it does not find a class under its name, such as one that was made inside a function")
        if any(hasattr(part, "parametrizations") for part in module.modules()):
            raise Impossible("pickle: torch refuses a module with parametrizations")
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    facts = {"y of the copy": now(call(other, x)), **part_modes(other)}
    for name, own in (("A", A), ("B", B)):
        theirs = twin(module, other, own)
        negate(theirs)
        facts |= {f"{name}: y": now(call(module, x)), f"{name}: y of the changed copy": now(call(other, x))}
        negate(theirs)
        negate(own)
        facts |= {f"{name}: y of the changed module": now(call(module, x)), f"{name}: y of the copy": now(call(other, x))}
        negate(own)
    return facts


def copied_with_a_hook(module: nn.Module, call: Through, x: Tensor) -> Facts:
    """y of a deep copy of the module, which has a forward hook that negates y."""
    if isinstance(module, torch.fx.GraphModule):
        raise Impossible("a hook of a torch.fx.GraphModule, which copies none")
    handle = module.register_forward_hook(lambda module, args, y: -y)
    try:
        return {"y": now(call(copy.deepcopy(module), x))}
    finally:
        handle.remove()


def replaced(layer: Any) -> Facts:
    """From now on a deep copy of the module stands in its place, with whatever the layer has noted beside it. The first module
    holds NaN, so that the copy shows it if it still uses that."""
    first, memo = layer.module, {}
    other = copy.deepcopy(first, memo)
    for name, value in list(vars(layer).items()):
        with suppress(Exception):  # of what cannot be copied, such as a Python module
            setattr(layer, name, other if value is first else copy.deepcopy(value, memo))
    with torch.no_grad():
        for tensor in first.state_dict().values():
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                tensor.fill_(torch.nan)
    return {}


def reloaded(module: nn.Module, call: Through, A: Own, B: Own, x: Tensor) -> Facts:
    """The state_dict is kept, A and B are overwritten, and the state_dict is loaded strictly: without A, without B, and whole.
    "lenient" names those without which it was loaded all the same."""
    state = module.state_dict()
    keys = {name: [key for key, value in state.items() if isinstance(value, Tensor) and value.data_ptr() == own.data_ptr()]
            for name, own in (("A", A), ("B", B))}
    state = {key: value.clone() if isinstance(value, Tensor) else value for key, value in state.items()}
    negate(A)
    with torch.no_grad():
        B.zero_()
    lenient = []
    for name, found in keys.items():
        try:
            module.load_state_dict({key: value for key, value in state.items() if key not in found}, strict=True)
        except RuntimeError:
            continue
        lenient += [name] * bool(found)
    module.load_state_dict(state, strict=True)
    return {f"state_dict holds {name}": bool(found) for name, found in keys.items()} | {
        "lenient": lenient, "y": call(module, x)}


def hold(module: nn.Module, call: Through, A: Own, B: Own, kept: dict, x: Tensor, frozen: str = "") -> Facts:
    """Somebody takes the output, and an optimiser the Parameters. `frozen` names one that is to have no gradient."""
    for name, parameter in (("A", A), ("B", B)):
        if name == frozen:
            parameter.requires_grad_(False)
    kept.update(A=A, B=B, y=call(module, leaf(x)))
    return {"y": now(kept["y"]), "keys": sorted(module.state_dict()), "trains": trains(module)}


def held(module: nn.Module, A: Own, B: Own, kept: dict) -> Facts:
    """What has become of what was held."""
    return {"y": kept["y"], "A is the same": A is kept["A"], "B is the same": B is kept["B"],
            "keys": sorted(module.state_dict()), "trains": trains(module)}


def trains(module: nn.Module) -> list[str]:
    return sorted(name for name, parameter in module.named_parameters() if parameter.requires_grad)


def used_twice(module: nn.Module, call: Through, A: Own, B: Own, x: Tensor, dy: Tensor, x2: Tensor,
               dy2: Tensor, together: bool) -> Facts:
    """Two forward passes, then the backward passes: of both together, or of one after the other."""
    x, x2 = leaf(x), leaf(x2)
    y, y2 = call(module, x), call(module, x2)
    facts = {"y": now(y), "y2": now(y2)}
    if together:
        torch.autograd.backward([y, y2], [dy, dy2])
    else:
        y.backward(dy)
        y2.backward(dy2)
    return facts | gradients_of(x=x, x2=x2, A=A, B=B)


def retained(module: nn.Module, call: Through, A: Own, B: Own, x: Tensor, dy: Tensor) -> Facts:
    """Two backward passes through one graph."""
    x = leaf(x)
    y = call(module, x)
    y.backward(dy, retain_graph=True)
    first = {f"first {name}": gradient for name, gradient in gradients_of(x=x, A=A, B=B).items()}
    y.backward(dy)
    return gradients_of(x=x, A=A, B=B) | first


def second_through(module: nn.Module, call: Through, A: Own, B: Own, x: Tensor, dy: Tensor, name: str) -> Facts:
    """The gradients of Σ dA, or of Σ dB, where dA and dB are the gradients of A and B. An error is a refusal."""
    x, dy = leaf(x), leaf(dy)
    y = call(module, x)
    try:
        gradient, = torch.autograd.grad(y, A if name == "A" else B, dy, create_graph=True)
        gradient.sum().backward()
    except RuntimeError as error:
        return {"refused": str(error)}
    return gradients_of(x=x, dy=dy, A=A, B=B)


def second(module: nn.Module, call: Through, A: Own, B: Own, x: Tensor, dy: Tensor, v: Tensor) -> Facts:
    """The gradients of Σ v · dx, where dx is the gradient of x. An error is a refusal."""
    x, dy = leaf(x), leaf(dy)
    y = call(module, x)
    try:
        dx, = torch.autograd.grad(y, x, dy, create_graph=True)
        dx.backward(v)
    except RuntimeError as error:
        return {"refused": str(error)}
    return {"y": now(y), "dx": dx} | gradients_of(dy=dy, A=A, B=B)


def in_modes(module: nn.Module, call: Through, x: Tensor) -> Facts:
    """The same x under inference_mode, under no_grad, without a gradient, and with one. Before each pass there is one of more
    rows that are NaN."""
    facts, lost = {}, torch.full_like(torch.stack([x, x]), torch.nan)
    for name, mode, given in (
        ("inference_mode", torch.inference_mode(), x.clone()), ("no_grad", torch.no_grad(), leaf(x)),
        ("grad mode, dx not wanted", torch.enable_grad(), x.clone()), ("grad mode", torch.enable_grad(), leaf(x)),
    ):
        with mode:
            call(module, lost)
            y = call(module, given)
        facts |= {f"y in {name}": now(y), f"x after {name}": now(given), f"graph in {name}": y.requires_grad}
    return facts


def autocast(module: nn.Module, call: Through, A: Own, B: Own, x: Tensor, dy: Tensor, dtype: str, half: bool = False) -> Facts:
    """A forward pass under autocast, and a backward pass after it. With `half` x comes in the format of autocast, as from a
    layer before."""
    x = leaf(x.to(getattr(torch, dtype)) if half else x)
    with torch.autocast(x.device.type, getattr(torch, dtype)):
        y = call(module, x)
    y.backward(dy.to(y.dtype))
    return {"y": y} | gradients_of(x=x, A=A, B=B)


def modes(module: nn.Module) -> Facts:
    """What train() and eval() return, and the mode that they set."""
    facts = {}
    for name, method, arguments, mode in (
        ("eval()", module.eval, (), False), ("train()", module.train, (), True),
        ("train(False)", module.train, (False,), False), ("train(True)", module.train, (True,), True),
    ):
        facts |= {f"{name} returns the module": method(*arguments) is module, f"{name} sets the mode": module.training == mode}
    return facts


def part_modes(module: nn.Module) -> Facts:
    """The modes of the module, which comes first, and of its parts."""
    return {"modes": [f"{path or 'the layer'}: {part.training}" for path, part in module.named_modules()]}


def context(where: str, device: str) -> Any:
    """What stands after `with`."""
    if where == "in grad mode":
        return torch.enable_grad()
    if where == "under no_grad":
        return torch.no_grad()
    return torch.inference_mode() if where == "under inference_mode" else torch.autocast(device, torch.bfloat16)


def held_under(module: nn.Module, call: Through, x: Tensor, x2: Tensor, where: str) -> Facts:
    """An output of a pass under no_grad or inference_mode, before and after another pass."""
    with torch.inference_mode() if where == "under inference_mode" else torch.no_grad():
        y = call(module, x)
        before = now(y)
        call(module, x2)
        return {"y": before, "y later": now(y)}


def passes(module: nn.Module, call: Through, x: Tensor, where: str) -> Tensor:
    """y of a pass in this context. The one of autocast is without a gradient."""
    with context("under no_grad" if where == "under autocast" else where, x.device.type), context(where, x.device.type):
        return now(call(module, x))


def within(module: nn.Module, call: Through, x: Tensor, where: str) -> Facts:
    """A forward pass in training mode and one in inference mode, in this context."""
    module.train()
    y = passes(module, call, x, where)
    module.eval()
    return {"y": y, "y in inference mode": passes(module, call, x, where)}


def served(module: nn.Module, call: Through, x: Tensor, where: str) -> Facts:
    """y in inference mode, in this context, of an x (rows, in) that lies in memory in other ways, and that has other leading
    dimensions. Beside it lies NaN, or in 16 bits 0. "later" is the same output after all other passes."""
    beside = torch.full_like(x, 0.0 if x.element_size() == 2 else torch.nan)
    forms = {
        "plain": x, "transposed": x.t().contiguous().t(), "strided": torch.stack([x, beside], -1)[..., 0],
        "cut out": torch.cat([x, beside], -1)[:, : x.shape[1]],
        "shifted": torch.cat([beside.view(-1)[:1], x.reshape(-1)])[1:].view(x.shape), "one row": x[:1].expand(x.shape),
        "a vector": x[0], "three dimensions": x[None], "four dimensions": x[None, None], "no rows": x[:0],
        "samples and tokens exchanged": torch.stack([x, -x]).transpose(0, 1),
    }
    module.eval()
    facts, outputs = {}, {}
    with context(where, x.device.type):
        for name, given in forms.items():
            outputs[name] = call(module, given)
            facts |= {f"y: {name}": now(outputs[name])}
        return facts | {f"later: {name}": now(y) for name, y in outputs.items()}


def followed(module: nn.Module, call: Through, A: Own, B: Own, base: dict[str, Own], x: Tensor, W: Tensor, what: str,
             where: str, stay: bool) -> Facts:
    """y in inference mode, in this context, after B alone was negated, or W by a load or in place, or b by a load, or after A
    was made larger by a millionth. Unless it is to stay in inference mode, the module is in training mode at that time."""
    module.eval()
    passes(module, call, x, where)
    if not stay:
        module.train()
    if what == "W":
        rebased(module, A, B, W)
    elif what == "W in place":
        negate(base["W"])
    elif what == "b":
        state = {key: value.clone() for key, value in module.state_dict().items()}
        name = name_of(module, base["b"])
        if name not in state:
            raise Impossible("b is not in the state_dict under its name")
        module.load_state_dict(state | {name: -state[name]})
    with torch.no_grad():
        if what == "B":
            B.neg_()
        elif what == "A":
            A.mul_(1 + 2.0**-20)
    if not stay:
        module.eval()
    return {"y": passes(module, call, x, where)}


def entered(kept: dict[str, Any], where: str, device: str) -> Facts:
    """What the layer does from now on, it does in this context."""
    kept["context"] = context(where, device)
    kept["context"].__enter__()
    return {}


def left(kept: dict[str, Any]) -> Facts:
    """The context of `entered` ends."""
    kept.pop("context").__exit__(None, None, None)
    return {}


def in_a_model(module: nn.Module, call: Through, A: Own, x: Tensor) -> Facts:
    """A model that holds the module and a copy of it with −A. Its state_dict is kept, both A are negated, and it is loaded."""
    try:
        other = copy.deepcopy(module)
    except Exception as error:
        raise Impossible(f"deepcopy: {type(error).__name__}") from None
    model = nn.ModuleDict({"first": module, "second": other})
    theirs = twin(module, other, A)
    negate(theirs)
    state = {key: value.clone() if isinstance(value, Tensor) else value for key, value in model.state_dict().items()}
    negate(A)
    negate(theirs)
    model.load_state_dict(state)
    odd = [key for key in state if not key.startswith(("first.", "second."))]
    return {"keys without a prefix": sorted(odd), "y of the first": call(module, x), "y of the second": call(other, x)}


def loaded(module: nn.Module, call: Through, A: Own, B: Own, x: Tensor, W: Tensor, how: str) -> Facts:
    """A state_dict with −A is loaded: in another number format, or with assign=True and with −W, too. Or it is changed after
    it was loaded ("kept by the caller"). An error is a refusal."""
    state = {key: value.clone() for key, value in module.state_dict().items() if isinstance(value, Tensor)}
    name = next((name for name, parameter in module.named_parameters() if parameter is A and name in state), None)
    if name is None:
        raise Impossible("A is not in the state_dict under its name")
    state[name] = -state[name]
    before, turned = A.dtype, []
    if how == "in another format":
        other = torch.float32 if before == torch.float64 else torch.float64
        state = {key: value.to(other) if value.is_floating_point() else value for key, value in state.items()}
    if how == "with assign=True":
        for key, value in state.items():
            if key != name and any(value.shape == known.shape and torch.equal(value, known) for known in (W, W.t())):
                state[key] = -value
                turned.append(key)
    try:
        module.load_state_dict(state, assign=how == "with assign=True")
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    if how == "kept by the caller":
        for value in state.values():
            value.zero_()
    found = dict(module.named_parameters())[name]
    return {"y": call(module, x), "dtype of A stays": found.dtype == before, "W turned": turned}


class Negated(nn.Module):
    """A parametrization: the negative of what is stored."""

    def forward(self, stored: Tensor) -> Tensor:
        return -stored


def reparametrised(module: nn.Module, call: Through, A: Own, B: Own, x: Tensor, how: str, which: str) -> Facts:
    """A or B is parametrized by its negative, or pruned to zero. Then that is removed."""
    own = A if which == "A" else B
    path, _, name = name_of(module, own).rpartition(".")
    if isinstance(module, torch.jit.ScriptModule):
        raise Impossible("a parametrization of TorchScript")
    owner = module.get_submodule(path)
    if parametrize.is_parametrized(owner):
        raise Impossible("a parametrization of what is one already")
    if how == "parametrized":
        parametrize.register_parametrization(owner, name, Negated())
    else:
        prune.custom_from_mask(owner, name, torch.zeros_like(own))
    facts = {"y": now(call(module, x))}
    if how == "parametrized":
        parametrize.remove_parametrizations(owner, name, leave_parametrized=False)
        facts["y after it was removed"] = now(call(module, x))
    return facts


def per_sample(module: nn.Module, call: Through, A: Own, B: Own, x: Tensor, dy: Tensor) -> Facts:
    """The gradients of each row alone, by torch.vmap over torch.func.grad: dA (rows, …) and dB."""
    outer, own = Called(module, call), {"A": A, "B": B}

    def loss(factors: dict[str, Tensor], row: Tensor, d: Tensor) -> Tensor:
        given = {name_of(outer, own[name]): factors[name] for name in own}
        return (torch.func.functional_call(outer, given, (row[None],)) * d).sum()

    names = {name: tensor.detach() for name, tensor in own.items()}
    found = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(names, x, dy)
    return {"d A": found["A"], "d B": found["B"]}


def written(module: nn.Module, call: Through, A: Own, x: Tensor, how: str, where: str, stay: bool) -> Facts:
    """A is negated between forward passes in this context, in training mode, and if `stay` in inference mode, too."""
    def write() -> None:
        if how == "copy_":
            with torch.no_grad():
                A.copy_(-A)
        elif how == "data":
            A.data.neg_()
        elif how == "assigned":
            A.data = -A.data
        else:
            state = {key: value.clone() for key, value in module.state_dict().items()}
            names = [name for name, parameter in module.named_parameters() if parameter is A and name in state]
            if not names:
                raise Impossible("A is not in the state_dict under its name")
            module.load_state_dict(state | {names[0]: -state[names[0]]})

    facts = {}
    for after in ("a write", "two writes"):
        module.train()
        passes(module, call, x, where)
        write()
        facts[f"y after {after}"] = passes(module, call, x, where)
        module.eval()
        facts[f"y after {after}, in inference mode"] = passes(module, call, x, where)
        if stay:
            write()
            facts[f"y after {after} and one more, in inference mode"] = passes(module, call, x, where)
            write()
    return facts


def rebased(module: nn.Module, A: Own, B: Own, W: Tensor) -> Facts:
    """Loads a state_dict in which W is negated, wherever it stands there, transposed or not."""
    state = {key: value.clone() for key, value in module.state_dict().items() if isinstance(value, Tensor)
             and value.data_ptr() not in (A.data_ptr(), B.data_ptr())}
    found = {key: -value for key, value in state.items() if value.dtype == W.dtype
             and any(value.shape == known.shape and torch.equal(value, known) for known in (W, W.t()))}
    if not found or not W.any():  # other tensors may be zeros, too
        raise Impossible("the state_dict does not hold W")
    module.load_state_dict(module.state_dict() | found)
    return {"loaded": sorted(found)}


def seed(number: int) -> Facts:
    """Seeds the three global generators."""
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)
    return surroundings()


def surroundings() -> Facts:
    """The state of the global generators, and the global settings of torch."""
    states = {"torch": torch.get_rng_state().numpy().tobytes(), "NumPy": pickle.dumps(np.random.get_state()),
              "random": pickle.dumps(random.getstate())}
    facts: Facts = {f"state of {name}": hashlib.sha256(state).hexdigest() for name, state in states.items()}
    return facts | {
        "seed of torch": str(torch.initial_seed()), "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()), "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(), "number of threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(), "autocast": torch.is_autocast_enabled("cpu"),
        "detection of anomalies": torch.is_anomaly_enabled(), "precision of matmul": torch.get_float32_matmul_precision(),
    }


def wrapped(around: Callable[[nn.Linear], nn.Module], W: Tensor, b: Tensor | None, training: bool) -> Facts:
    """A new layer around an nn.Linear that was trained elsewhere, and the nn.Linear afterwards."""
    linear = nn.Linear(W.shape[1], W.shape[0], b is not None, W.device, W.dtype).train(training)
    with torch.no_grad():
        linear.weight.copy_(W)
        if b is not None:
            linear.bias.copy_(b)
    around(linear)
    facts = {"W": linear.weight, "mode of the nn.Linear": linear.training}
    return facts | ({} if b is None else {"b": linear.bias})


def wrapped_hook(around: Callable[[nn.Linear], nn.Module], call: Through, x: Tensor, W: Tensor, b: Tensor | None) -> Facts:
    """A new layer around an nn.Linear with a forward hook, and a forward pass."""
    linear, fired = nn.Linear(W.shape[1], W.shape[0], b is not None, W.device, W.dtype), []
    module = around(linear)
    if not any(part is linear for part in module.modules()):
        raise Impossible("the nn.Linear is no part of the layer")
    linear.register_forward_hook(lambda *arguments: fired.append("forward hook"))
    call(module, x)
    return {"fired": fired}


def moved(module: nn.Module, call: Through, A: Own, B: Own, x: Tensor, dy: Tensor, dtype: str, how: str) -> Facts:
    """The module in another dtype, by a method of its own or of a model that holds it."""
    if how == "to":
        module.to(getattr(torch, dtype))
    elif how == "by a model":
        nn.ModuleDict({"layer": module}).to(getattr(torch, dtype))
    else:
        getattr(module, {"float64": "double", "float32": "float"}.get(dtype, how))()
    tensors = [*module.named_parameters(), *module.named_buffers()]
    stayed = sorted(name for name, tensor in tensors  # a single number promotes nothing, and may keep its digits
                    if tensor.is_floating_point() and tensor.dim() and tensor.dtype != getattr(torch, dtype))
    x = leaf(x.to(getattr(torch, dtype)))
    y = call(module, x)
    y.backward(dy.to(y.dtype))
    return {"stayed": stayed, "y": y} | gradients_of(x=x, A=A, B=B)


class Called(nn.Module):
    """The module as a part of another one, whose forward pass is `call`."""

    def __init__(self, module: nn.Module, call: Through):
        super().__init__()
        self.inner, self.through = module, call

    def forward(self, x: Tensor) -> Tensor:
        return self.through(self.inner, x)


def name_of(module: nn.Module, own: Own) -> str:
    return next(name for name, parameter in module.named_parameters() if parameter is own)


def functional(module: nn.Module, call: Through, A: Own, B: Own, x: Tensor, dy: Tensor) -> Facts:
    """torch.func.functional_call with −A in the place of A, and then a plain call."""
    outer, other = Called(module, call), leaf(-A)
    y = torch.func.functional_call(outer, {name_of(outer, A): other}, (x,))
    facts = {"y": now(y)}
    if y.requires_grad:
        y.backward(dy)
    facts |= gradients_of(A=other, B=B) | {"A got a gradient": A.grad is not None}
    return facts | {"y of a plain call": now(call(module, x))}


def checkpointed(module: nn.Module, call: Through, A: Own, B: Own, x: Tensor, dy: Tensor, reentrant: bool) -> Facts:
    """The same forward and backward pass without a checkpoint and with one, each after the same seed."""
    facts = {}
    for name in ("plain", "checkpointed"):
        A.grad = B.grad = None
        x = leaf(x)
        torch.manual_seed(7)
        y = call(module, x) if name == "plain" else checkpoint(lambda x: call(module, x), x, use_reentrant=reentrant)
        y.backward(dy)
        facts |= {f"{name} y": now(y)} | {f"{name} {key}": value for key, value in gradients_of(x=x, A=A, B=B).items()}
    return facts


def hooked(module: nn.Module, x: Tensor, dy: Tensor) -> Facts:
    """Hooks that negate: x, y, and the gradient of x, one after the other; and one that doubles dy."""
    fired, facts = [], {}

    def pre(module, arguments):
        fired.append("forward pre-hook")
        return tuple(-argument for argument in arguments)

    def post(module, arguments, y):
        fired.append("forward hook")
        return -y

    def backward(module, dx, dy):
        fired.append("full backward hook")
        return tuple(None if d is None else -d for d in dx)

    def before(module, dy):
        fired.append("full backward pre-hook")
        return tuple(2 * d for d in dy)

    hooks: dict[Any, Any] = {
        "forward_pre_hook": pre, "forward_hook": post, "full_backward_hook": backward, "full_backward_pre_hook": before,
    }
    for name, hook in hooks.items():
        handle, given = getattr(module, f"register_{name}")(hook), leaf(x)
        y = module(given)
        y.backward(dy)
        handle.remove()
        facts |= {f"{hook.__name__}: y": now(y), f"{hook.__name__}: dx": given.grad}
    return facts | {"fired": fired}


def compiled(module: nn.Module, call: Through, A: Own, B: Own, x: Tensor, dy: Tensor, backend: str) -> Facts:
    """torch.compile of the whole forward pass as one graph."""
    torch.compiler.reset()
    x = leaf(x)
    y = torch.compile(Called(module, call), fullgraph=True, backend=backend)(x)
    y.backward(dy)
    return {"y": y} | gradients_of(x=x, A=A, B=B)


def compiled_pass(module: nn.Module, call: Through, x: Tensor) -> Facts:
    """One pass of the module, compiled. A compiler that refuses the module says nothing about its dropout."""
    torch.compiler.reset()
    try:
        return {"y": now(torch.compile(Called(module, call), backend="eager")(x))}
    except Exception as error:
        raise Impossible(f"torch.compile: {type(error).__name__}") from None


def transformed(module: nn.Module, call: Through, A: Own, B: Own, x: Tensor, dy: Tensor) -> Facts:
    """torch.vmap over the rows of x, and torch.func.grad of Σ y · dy."""
    outer, own = Called(module, call), {"A": A, "B": B}

    def loss(factors: dict[str, Tensor], x: Tensor) -> Tensor:
        return (torch.func.functional_call(outer, {name_of(outer, own[name]): factors[name] for name in own}, (x,)) * dy).sum()

    names = {name: tensor.detach() for name, tensor in own.items()}
    found, dx = torch.func.grad(loss, argnums=(0, 1))(names, x)
    with torch.no_grad():
        y = torch.vmap(lambda row: call(module, row))(x)
    return {"y": y, "d x": dx, "d A": found["A"], "d B": found["B"]}


def zeroed(module: nn.Module, call: Through, A: Own, B: Own, x: Tensor, dy: Tensor, to_none: bool,
           by: str) -> Facts:
    """A backward pass, zero_grad of the module or of an optimiser, and a backward pass again."""
    call(module, x).backward(dy)
    if by == "the module":
        module.zero_grad(set_to_none=to_none)
    else:
        torch.optim.SGD([A, B], lr=1.0).zero_grad(set_to_none=to_none)
    facts = {f"zero {name}": own.grad.clone() for name, own in (("A", A), ("B", B)) if own.grad is not None}
    call(module, x).backward(dy)
    return facts | gradients_of(A=A, B=B)


def frozen(module: nn.Module, call: Through, A: Own, B: Own, x: Tensor, dy: Tensor, name: str) -> Facts:
    """A backward pass while A or B is frozen by requires_grad_(False), or both are."""
    for own in {"A": (A,), "B": (B,)}.get(name, (A, B)):
        own.requires_grad_(False)
    x = leaf(x)
    y = call(module, x)
    y.backward(dy)
    return {"y": y} | gradients_of(x=x, A=A, B=B)


def changed_between(module: nn.Module, call: Through, A: Own, B: Own, x: Tensor, dy: Tensor, what: str) -> Facts:
    """A forward pass, then x, A or B is negated in place, then the backward pass: its gradients, or that it was refused."""
    x = leaf(x)
    held = x * 1  # what is no leaf may be changed in place
    y = call(module, held)
    own = {"x": held, "A": A, "B": B}[what]
    negate(own)
    try:
        y.backward(dy)
    except RuntimeError:
        return {"refused": True}
    finally:
        negate(own)
    return {"refused": False} | gradients_of(x=x, A=A, B=B)


def begun(module: nn.Module, call: Through, x: Tensor, kept: dict[str, Any]) -> Facts:
    """A forward pass, whose backward pass is that of `ended`."""
    x = leaf(x)
    kept["begun"] = x, call(module, x)
    return {"y": now(kept["begun"][1])}


def ended(A: Own, B: Own, dy: Tensor, kept: dict[str, Any]) -> Facts:
    """The backward pass of `begun`: its gradients, or that it was refused."""
    x, y = kept.pop("begun")
    try:
        y.backward(dy)
    except RuntimeError:
        return {"refused": True}
    return {"refused": False} | gradients_of(x=x, A=A, B=B)


def twice_the_same(module: nn.Module, call: Through, A: Own, B: Own, x: Tensor, dy: Tensor) -> Facts:
    """Two uses of one tensor that is no leaf. The gradient of the second output is that of the first, times −2."""
    x = leaf(x)
    held = x * 1
    torch.autograd.backward([call(module, held), call(module, held)], [dy, -2 * dy])
    return gradients_of(x=x, A=A, B=B)


def asked_for(module: nn.Module, call: Through, A: Own, B: Own, x: Tensor, dy: Tensor) -> Facts:
    """torch.autograd.grad while A and B have a gradient of ones, and then a backward pass with hooks on both that negate."""
    for own in (A, B):
        own.grad = torch.ones_like(own)
    x = leaf(x)
    found = torch.autograd.grad(call(module, x), (x, A, B), dy, allow_unused=True)
    facts = {f"d {name}": gradient for name, gradient in zip(("x", "A", "B"), found, strict=True) if gradient is not None}
    facts |= {f"kept {name}": own.grad.clone() for name, own in (("A", A), ("B", B)) if own.grad is not None}
    for own in (A, B):
        own.grad = torch.zeros_like(own)
        own.register_hook(torch.neg)
    call(module, x).backward(dy)
    return facts | {f"hooked {name}": gradient for name, gradient in gradients_of(A=A, B=B).items()}


def unfrozen(module: nn.Module, call: Through, base: dict[str, Own], x: Tensor, dy: Tensor) -> Facts:
    """A backward pass after W and b were made to train."""
    for own in base.values():
        own.requires_grad_(True)
    y = call(module, x)
    y.backward(dy)
    return {"y": now(y)} | gradients_of(**base)


def restrided(module: nn.Module) -> Facts:
    """Each matrix of the module gets the same numbers, which lie in memory column by column, and each vector has gaps."""
    own = [*module.parameters(), *module.buffers()]
    for tensor in own:
        if tensor.dim() == 2:
            tensor.data = tensor.data.t().contiguous().t()
        elif tensor.dim() == 1:
            tensor.data = torch.stack([tensor.data, torch.ones_like(tensor)], 1)[:, 0]
    return {"matrices": sum(tensor.dim() == 2 for tensor in own)}


def without_dropout(module: nn.Module, call: Through, x: Tensor, how: str) -> Facts:
    """y in training mode, after the rate of each nn.Dropout in the module was set to 0, perhaps after a compiled pass, or after
    an nn.Dropout(0) was put in the place of each."""
    parts = [(part, name) for part in module.modules() for name, child in part.named_children()
             if isinstance(child, nn.Dropout)]
    if not parts:
        raise Impossible("no nn.Dropout in the module")
    passed: Any = call
    if how == "compiled":
        torch.compiler.reset()
        try:
            compiled = torch.compile(Called(module, call), backend="eager")
            compiled(x)
        except Exception as error:
            raise Impossible(f"torch.compile: {type(error).__name__}") from None
        passed = lambda _, x: compiled(x)  # noqa: E731
    for part, name in parts:
        if how == "replaced":
            setattr(part, name, nn.Dropout(0.0))
        else:
            getattr(part, name).p = 0.0
    return {"y": now(passed(module, x))}


def pushed_forward(module: nn.Module, call: Through, x: Tensor, v: Tensor) -> Facts:
    """The forward-mode derivative of y at x in the direction of v. An error is a refusal."""
    try:
        with torch.autograd.forward_ad.dual_level():
            y = call(module, torch.autograd.forward_ad.make_dual(x, v))
            moved = torch.autograd.forward_ad.unpack_dual(y).tangent
            return {"tangent": torch.zeros_like(x[..., :0]) if moved is None else now(moved)}
    except (RuntimeError, NotImplementedError) as error:
        return {"refused": str(error)}


def mapped(module: nn.Module, call: Through, x: Tensor, at: int) -> Facts:
    """torch.vmap over a dimension of x and −x, which stands at this place. An error is a refusal."""
    try:
        y = torch.vmap(lambda one: call(module, one), in_dims=at)(torch.stack([x, -x], at))
    except (RuntimeError, NotImplementedError) as error:
        return {"refused": str(error)}
    return {"y": y[0], "y of −x": y[1]}


def part_loaded(module: nn.Module, call: Through, A: Own, base: dict[str, Own], x: Tensor, what: str) -> Facts:
    """A state_dict that holds A alone, or W alone, is loaded with strict=False. Its numbers are the negatives."""
    own = A if what == "A" else base["W"]
    name = name_of(module, own)
    if name not in module.state_dict():
        raise Impossible(f"{what} is not in the state_dict under its name")
    state = {name: -module.state_dict()[name]}
    before = now(state[name])
    module.load_state_dict(state, strict=False)
    return {"y": now(call(module, x)), "the dict stays": torch.equal(state[name], before)}


def state_kept(module: nn.Module, A: Own, kept: dict[str, Any]) -> Facts:
    """The state_dict, with −A, is kept for `loaded_then`."""
    kept["state"] = {key: value.clone() if isinstance(value, Tensor) else value for key, value in module.state_dict().items()}
    kept["name"] = name_of(module, A)
    if kept["name"] not in kept["state"]:
        raise Impossible("A is not in the state_dict under its name")
    kept["state"][kept["name"]] *= -1
    return {}


def loaded_then(module: nn.Module, call: Through, x: Tensor, kept: dict[str, Any], how: str) -> Facts:
    """What was kept is loaded: by the layer, by a model that holds it, or A alone. An error is a refusal."""
    state = {key: value.clone() if isinstance(value, Tensor) else value for key, value in kept["state"].items()}
    before = copy.deepcopy(state)
    try:
        if how == "by a model":
            nn.ModuleDict({"layer": module}).load_state_dict({f"layer.{key}": value for key, value in state.items()})
        elif how == "A alone":
            module.load_state_dict({kept["name"]: state[kept["name"]]}, strict=False)
        else:
            module.load_state_dict(state)
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    same = all(torch.equal(value, before[key]) for key, value in state.items() if isinstance(value, Tensor))
    return {"y": now(call(module, x)), "the dict stays": same}


def started_anew(module: nn.Module) -> Facts:
    """Calls the method of the module's class that draws its parameters anew."""
    for name in ("reset_parameters", "reset_lora_parameters", "init_lora_weights"):
        method = getattr(module, name, None)
        if callable(method) and not type(method).__module__.startswith("torch") and not getattr(
                getattr(type(module), name, None), "__module__", "torch").startswith("torch."):
            needed = [p for p in inspect.signature(method).parameters.values()
                      if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
            if not needed:
                method()
                return {"called": name}
    raise Impossible("no method that draws the parameters anew")


def refilled(module: nn.Module, call: Through, x: Tensor) -> Facts:
    """All parameters and buffers become NaN, and whole numbers others, as memory is that nothing was written to. Then the
    state_dict is loaded."""
    state = {key: value.clone() if isinstance(value, Tensor) else value for key, value in module.state_dict().items()}
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.copy_(torch.full_like(tensor, torch.nan) if tensor.is_floating_point() else ~tensor)
    module.load_state_dict(state)
    return {"y": now(call(module, x))}


def flattened(module: nn.Module, A: Own) -> Facts:
    """All Parameters become views of one vector, by torch.nn.utils.vector_to_parameters, with −A in the place of A."""
    own = [*module.parameters()]
    if len({parameter.dtype for parameter in own}) > 1:
        raise Impossible("one vector of several number formats")
    numbers = torch.cat([(-parameter if parameter is A else parameter).detach().reshape(-1) for parameter in own])
    nn.utils.vector_to_parameters(numbers, own)
    return {"numbers": len(numbers)}


def base_negated(base: dict[str, Own]) -> Facts:
    """W is negated in place, as an optimiser would change it."""
    negate(base["W"])
    return {}


def wrapped_forward(module: nn.Module, call: Through, kept: dict[str, Any], x: Tensor) -> Facts:
    """How many passes one call makes through what a library has put at module.forward, and y. The first call puts it there."""
    if "passes" not in kept:
        kept["passes"], forward = 0, module.forward

        def counted(*arguments: Any, **named: Any) -> Any:
            kept["passes"] += 1
            return forward(*arguments, **named)

        module.forward = counted
    before = kept["passes"]
    y = now(call(module, x))
    return {"y": y, "passes": kept["passes"] - before}


def copy_kept(module: nn.Module, kept: dict[str, Any]) -> Facts:
    """A deep copy of the module is kept."""
    kept["copy"] = copy.deepcopy(module)
    return {}


def pass_of_the_copy(call: Through, kept: dict[str, Any], x: Tensor) -> Facts:
    """A pass of the copy that is kept."""
    return {"y": now(call(kept["copy"], x))}


def state_again(module: nn.Module) -> Facts:
    """The module loads its own state_dict."""
    module.load_state_dict(module.state_dict())
    return {"trains": trains(module)}


def base_thawed(base: dict[str, Own]) -> Facts:
    """W and b are made to train."""
    for own in base.values():
        own.requires_grad_(True)
    return {}


def data_negated(A: Own) -> Facts:
    """A is negated through A.data, which counts as no change."""
    A.data.neg_()
    return {}


def compiled_kept(module: nn.Module, call: Through, kept: dict[str, Any], x: Tensor) -> Facts:
    """A compiled pass, and the compiled module is kept. A compiler that refuses the module says nothing about it."""
    torch.compiler.reset()
    try:
        kept["compiled"] = torch.compile(Called(module, call), backend="eager")
        return {"y": now(kept["compiled"](x))}
    except Exception as error:
        raise Impossible(f"torch.compile: {type(error).__name__}") from None


def compiled_again(kept: dict[str, Any], x: Tensor) -> Facts:
    """A pass of the compiled module that is kept."""
    return {"y": now(kept["compiled"](x))}


def in_a_thread(module: nn.Module, call: Through, x: Tensor) -> Facts:
    """A pass in another thread."""
    return {"y": now(threaded(call, module, x))}


def handled(module: nn.Module, call: Through, x: Tensor, how: str) -> Facts:
    """What programs do with a layer between two steps. No number of it changes."""
    model = nn.ModuleDict({"layer": module})
    own = list(module.parameters())
    if how == "served":
        with torch.inference_mode():
            call(module, -x)
    elif how in ("reloaded", "assigned"):
        state = {key: value.clone() if isinstance(value, Tensor) else value for key, value in model.state_dict().items()}
        assigned = {"assign": True} if how == "assigned" else {}
        try:
            model.load_state_dict(state, **assigned)
        except Exception as error:
            if assigned:
                raise Impossible(f"load_state_dict(assign=True): {type(error).__name__}") from None
            raise
    elif how == "converted":
        formats = {tensor.dtype for tensor in (*own, *module.buffers()) if tensor.is_floating_point()}
        if len(formats) > 1:
            raise Impossible("a conversion and its undoing, in several number formats")
        model.double()
        model.to(formats.pop())
    elif how == "swapped":  # as averages of weights and sharded training do it
        for parameter in own:
            before = parameter.data
            parameter.data = before.clone()
            if not before.is_inference():
                before.fill_(torch.nan)
    return {}


def threaded(call: Through, module: nn.Module, x: Tensor) -> Tensor:
    """y of a pass in another thread, in the same grad mode."""
    found, graded = [], torch.is_grad_enabled()

    def run() -> None:
        try:
            with torch.set_grad_enabled(graded):
                found.append(call(module, x))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def under_checkpoint(call: Through, module: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(call, module, x, use_reentrant=False)


def by_functional_call(call: Through, module: nn.Module, x: Tensor) -> Tensor:
    """y by torch.func.functional_call, with copies of the Parameters and buffers. Meanwhile those of the module are negated."""
    model = Called(module, call)
    own = {name: tensor for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_floating_point()}
    given = {name: tensor.clone() for name, tensor in own.items()}
    for tensor in own.values():
        negate(tensor)
    try:
        return torch.func.functional_call(model, given, (x,))
    finally:
        for tensor in own.values():
            negate(tensor)


def passes_go(layer: Any, way: str) -> Facts:
    """From now on each pass of the layer goes this way: threaded, under_checkpoint or by_functional_call."""
    call, chosen = layer.through, {"threaded": threaded, "under_checkpoint": under_checkpoint,
                                   "by_functional_call": by_functional_call}[way]
    if way == "by_functional_call" and isinstance(layer.module, torch.jit.ScriptModule):
        raise Impossible("functional_call of a module of TorchScript")
    layer.through = lambda module, x: chosen(call, module, x)
    return {}


def shared(module: nn.Module, A: Own, B: Own) -> Facts:
    """A deep copy of a model that holds the module, and A and B once more beside it."""
    other = copy.deepcopy(nn.ModuleDict({"layer": module, "A": nn.ParameterList([A]), "B": nn.ParameterList([B])}))
    return {name: any(twin(module, other["layer"], own) is there for there in other[name].parameters())
            for name, own in (("A", A), ("B", B))}


def state_in_a_model(module: nn.Module) -> Facts:
    """Whether the state_dict of a model that holds the module is that of the module, with a prefix."""
    own, whole = module.state_dict(), nn.ModuleDict({"layer": module}).state_dict()
    same = {f"layer.{key}" for key in own} == set(whole) and all(
        torch.equal(value, whole[f"layer.{key}"]) for key, value in own.items() if isinstance(value, Tensor))
    return {"the same": same}


def overwritten(module: nn.Module, call: Through, A: Own, B: Own, x: Tensor, dy: Tensor) -> Facts:
    """A backward pass after the caller has negated y in place. An error is a refusal."""
    x = leaf(x)
    try:
        y = call(module, x)
        y.neg_()
        y.backward(dy)
    except RuntimeError as error:
        return {"refused": str(error)}
    return gradients_of(x=x, A=A, B=B)


def overwritten_under(module: nn.Module, call: Through, x: Tensor) -> Facts:
    """The second of two passes of x, after the caller has zeroed the first y in place."""
    facts = {}
    for where, grad in (("in grad mode", True), ("under no_grad", False)):
        with torch.set_grad_enabled(grad):
            y = call(module, x)
            y.data.zero_()
            facts[where] = now(call(module, x))
    return facts


def amid(module: nn.Module, call: Through, A: Own, B: Own, x: Tensor, dy: Tensor, setting: str) -> Facts:
    """Both passes with a setting of torch that is none of the layer's business."""
    kind, x = torch.get_default_dtype(), leaf(x)
    try:
        if setting.startswith("default dtype "):
            torch.set_default_dtype(getattr(torch, setting.removeprefix("default dtype ")))
        torch.autograd.set_detect_anomaly(setting == "anomaly detection", check_nan=False)
        copies = setting == "saved tensors copied"
        with torch.autograd.graph.saved_tensors_hooks(torch.clone if copies else lambda t: t, lambda t: t):
            y = call(module, x)
            y.backward(dy)
    finally:
        torch.set_default_dtype(kind)
        torch.autograd.set_detect_anomaly(False)
    return {"y": now(y)} | gradients_of(x=x, A=A, B=B)


def interrupted(module: nn.Module, call: Through, A: Own, B: Own, x: Tensor, dy: Tensor) -> Facts:
    """y and gradients of passes of x. At one call of torch in each another thread begins a pass of −x. It makes it whole, or
    waits at one of its own calls until the first pass is over. All pairs of calls are tried, or some of many. The first
    answers that differ from those without interruption are given, or else the last."""
    PATIENCE, LATE, PLACES = 0.1, 5, 10  # s that a thread waits for another one; a layer may let one pass wait for another

    class Stops(torch.overrides.TorchFunctionMode):
        """Does something before one call of torch."""

        def __init__(self, at: int, there: Callable[[], Any]):
            super().__init__()
            self.at, self.there, self.calls = at, there, 0

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.calls += 1
            if self.calls == self.at:
                self.there()
            return func(*args, **(kwargs or {}))

    class Other:
        """The pass of the other thread. It waits at the call of this number, if there is one, until `go` is set."""

        def __init__(self, at: int):
            self.at, self.reached, self.go, self.late = at, threading.Event(), threading.Event(), False
            self.y: Any = None
            self.thread = threading.Thread(target=self.run)

        def run(self) -> None:
            try:
                with torch.no_grad(), Stops(self.at, self.stop):
                    self.y = now(call(module, -x))
            except Exception as error:
                self.y = error
            finally:
                self.reached.set()

        def stop(self) -> None:
            self.reached.set()
            self.late |= not self.go.wait(PATIENCE)

        def begin(self) -> None:
            self.thread.start()
            self.late |= not self.reached.wait(PATIENCE)

        def end(self) -> None:
            self.go.set()
            if self.thread.ident is not None:
                self.thread.join()

    def some(calls: int) -> list[int]:
        return sorted({1 + i * (calls - 1) // max(1, min(calls, PLACES) - 1) for i in range(min(calls, PLACES))})

    alone = Other(0)
    alone.run()
    if isinstance(alone.y, Exception):
        raise alone.y
    facts: Facts = {"other y": alone.y}
    for name, grad in (("y", True), ("y under no_grad", False)):
        first: Facts = {}
        pairs, late = [(0, 0)], 0
        while pairs and late < LATE:
            at, stop = pairs.pop(0)
            for own in (A, B):
                own.grad = None
            other, given = Other(stop), leaf(x)
            mode = Stops(at, other.begin)
            with torch.set_grad_enabled(grad):
                try:
                    with mode:
                        y = call(module, given)
                finally:
                    other.end()
            if isinstance(other.y, Exception):
                raise other.y
            found = {name: now(y)}
            if grad and y.requires_grad:
                y.backward(dy)
                found |= gradients_of(x=given, A=A, B=B)
            facts |= found
            if not first:
                first = found
                pairs = [(at, stop) for at in some(mode.calls) for stop in (0, *some(mode.calls))]
            elif other.y is not None and not torch.equal(other.y, alone.y):  # a later pass may make fewer calls
                return facts | {"other y": other.y, "y under no_grad": now(y)}
            elif any(not torch.equal(answer, first[key]) for key, answer in found.items() if key in first):
                return facts | {"y under no_grad": now(y)}
            if other.late:  # one of the two waits for the other there: such a place is tried once
                late += 1
                pairs = [pair for pair in pairs if pair[0] != at and (not stop or pair[1] != stop)]
    return facts


def bucketed(module: nn.Module, call: Through, A: Own, B: Own, x: Tensor, dy: Tensor) -> Facts:
    """What a backward pass leaves in one piece of memory of which A.grad and B.grad are views."""
    memory = torch.zeros(A.numel() + B.numel(), dtype=A.dtype, device=A.device)
    views = {"A": memory[: A.numel()].view_as(A), "B": memory[A.numel() :].view_as(B)}
    A.grad, B.grad = views["A"], views["B"]
    call(module, leaf(x)).backward(dy)
    return {f"d {name}": now(view) for name, view in views.items()}


EXPERIMENTS = (
    copied, replaced, reloaded, hold, held, held_under, used_twice, retained, second, in_modes, autocast, modes, part_modes,
    within, written, rebased, seed, surroundings, wrapped, moved, functional, checkpointed, hooked, compiled, compiled_pass,
    transformed, zeroed, frozen, changed_between, begun, ended, second_through, served, followed, entered, left, in_a_model,
    loaded, reparametrised, per_sample, wrapped_hook, twice_the_same, asked_for, unfrozen, restrided, without_dropout,
    pushed_forward, mapped, part_loaded, state_kept, loaded_then, started_anew, refilled, overwritten, overwritten_under, amid,
    interrupted, bucketed, flattened, base_negated, wrapped_forward, shared, state_in_a_model,
    copy_kept, pass_of_the_copy, state_again, base_thawed, data_negated, compiled_kept, compiled_again, in_a_thread, handled,
    passes_go, copied_with_a_hook,
)
