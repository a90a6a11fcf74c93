"""What recognition found, as a subject that a user can correct by hand."""

from collections.abc import Iterator
from pathlib import Path

from torch import nn

from conformance.drivers.look.actions import Aside, Attribute, FirstPass, Forward
from conformance.drivers.look.arguments import Plan, is_method, name_of
from conformance.drivers.look.building import dropouts
from conformance.drivers.look.configurations import fields_of
from conformance.drivers.look.methods import Methods
from conformance.drivers.look.names import role_of
from conformance.drivers.look.recognised import Found
from conformance.drivers.look.settled import ROOT
from conformance.drivers.look.ways import BESIDE, MODEL, PARAMETRISED, REPLACED

VALUES = {  # of each role, in the text of a subject
    "in": "config.in_features", "out": "config.out_features", "width": "config.in_features", "rank": "config.rank",
    "alpha": "config.alpha", "bias": "config.bias", "dropout": "config.dropout", "linear": "linear", "weight": "linear.weight",
    "turned weight": "nn.Parameter(linear.weight.detach().t().clone())", "b": "linear.bias", "dtype": "dtype",
    "device": "config.device", "scaling": "config.scaling", "rslora": 'config.scaling == "rslora"', "seed": "config.seed",
    "false": "False", "true": "True", "zero": "0.0", "one": "1.0", "single": "1", "multiplier": "1.0", "name": '"default"',
    "none": "None", "switches": "[True]", "model": "model", "convolution": "Conv1D(linear)",
    "sizes": "(config.in_features, config.out_features)", "turned sizes": "(config.out_features, config.in_features)",
    "down": "nn.Linear(config.in_features, config.rank, bias=False)",
    "up": "nn.Linear(config.rank, config.out_features, bias=False)",
}
TEXT = '''\
"""{name} as a subject: what `conformance look` found, to be corrected by hand."""

{imports}


class {own}Layer(TorchLayer):
{methods}


class {own}Subject(Subject):
    name = "{name}"{fixed}

    def build(self, config, weight, bias):
{refusal}        torch.manual_seed(config.seed)
        dtype = getattr(torch, config.dtype)
        linear = nn.Linear(config.in_features, config.out_features, config.bias).to(config.device{cast})
{making}
        layer = {own}Layer(
            module, W={W!r}, b={b},
            A={A!r}, B={B!r}, transposed={transposed!r})
        layer.set_base(weight, bias)
        return layer
'''


def subject(found: Found, methods: Methods, name: str, place: str) -> str:
    """A subject with what was found, as the text of a Python file. `place` is the file or the module that holds the class."""
    own, paths, plan = named(name), found.places.paths, found.plan
    declined = [words for words, offered in (
        ("config.dropout", plan.offers("dropout") or dropouts(found.module(found.probe))),
        ('config.scaling != "standard"', plan.offers("scaling") or plan.offers("rslora") or found.rule == ROOT),
        ("config.bias", True in found.bias), ("not config.bias", False in found.bias),
        ("config.in_features != config.out_features", not plan.square),
        (f"config.rank != {found.rank}", found.rank is None)) if not offered]
    declined += [f'config.dtype == "{dtype}"' for dtype in found.formats or {}]
    refusal = f"        if {' or '.join(declined)}:\n            raise Unsupported('this configuration')\n" if declined else ""
    told = [f"    def {method}(self):\n        {_text_of(call)}"
            for method, call in (("merge", methods.merge), ("unmerge", methods.unmerge)) if call]
    b = repr(paths.get("b")) + (" if config.bias else None" if "b" in paths and len(found.bias) == 2 else "")
    return TEXT.format(
        name=name, own=own, imports="\n".join(_imports(found, methods, name, place)), fixed=_fixed(found), refusal=refusal, b=b,
        cast="" if found.mixed else ", dtype",
        methods="\n\n".join(told) or "    pass  # merge(), unmerge(), save() and load() can be overridden here",
        making="\n".join(f"        {line}" for line in _making(found)), transposed=found.places.transposed,
        **{letter: paths[letter] for letter in "WAB"})


def _text_of(call: str) -> str:
    """The statement for a call that merges or unmerges: see methods.py."""
    name, given = call.removesuffix(")").split("(")
    return f"{name}(self.module)" if given == "module" else f"self.module.{name}({given and f'self.module.{given}'})"


def _fixed(found: Found) -> str:
    """The lines that say what is fixed: the scale or alpha, the rank, and that in and out are equal."""
    number, lines = found.rule.removeprefix("always ").removesuffix(" / rank"), []
    if found.rule.startswith("always "):
        lines.append(f"scale = {number}")
    elif found.direct:
        lines.append(f"scale_argument = {found.direct!r}")
    elif found.rule.endswith(" / rank") and number != "alpha":
        lines.append(f"alpha = {number}")
    lines += [f"rank = {found.rank}"] * (found.rank is not None) + ["square = True"] * found.plan.square
    return "".join(f"\n    {line}" for line in lines)


def named(name: str) -> str:
    """The name of a class or function, as the beginning of that of a class."""
    return name if not name.islower() else "".join(part.capitalize() for part in name.split("_"))


def _every(plan: Plan) -> Iterator[Plan]:
    """The plan, and those in it."""
    yield plan
    for one in (*plan.then, *([] if plan.part is None else [plan.part])):
        yield from _every(one)


def _imports(found: Found, methods: Methods, name: str, place: str) -> list[str]:
    from_file, plans = place.endswith(".py"), list(_every(found.plan))
    lines = ["import functools"] if any(isinstance(one.call, Forward) for one in plans) else []
    lines += ["import sys"] if from_file else []
    lines += [""] if lines else []
    lines += ["import torch", "from torch import nn"]
    lines += ["from torch.nn.utils import parametrize"] if found.way == PARAMETRISED else []
    lines += ["", "from conformance import Subject, Unsupported"]
    classes = {BESIDE: {"Beside"}, MODEL: {"Model"}, REPLACED: {"Patched", "changes"}}.get(found.way, set())
    classes |= {"Model"} if any("model" in one.roles.values() for one in plans) else set()
    classes |= {"Patched", "modules_in"} if _holds_what_was_made(found) else set()
    lines += [f"from conformance.drivers.look.ways import {', '.join(sorted(classes))}"] if classes else []
    ours = {"Conv1D"} if found.plan.around == "convolution" else set()
    if any("configuration" in one.roles.values() and one.kind is None for one in plans):
        lines += ["from conformance.drivers.look.configurations import Configuration"]
        ours |= {"known_values"}
    lines += [f"from conformance.drivers.look.arguments import {', '.join(sorted(ours))}"] if ours else []
    if not found.plan.offers("dropout") and dropouts(found.module(found.probe)):
        lines += ["from conformance.drivers.look.building import set_dropout"]
    lines += ["from conformance.torch import TorchLayer", ""]
    names = [name, found.freezer] if found.freezer and not found.freezer.startswith(".") else [name]
    names += [one.kind.__name__ for one in plans if one.kind is not None]
    names += [name_of(one.call) for one in plans[1:] if not is_method(one.call) and not isinstance(
        one.call, Attribute | FirstPass | Forward)]
    names += [call.split("(")[0] for call in (methods.merge, methods.unmerge) if call.endswith("(module)")]
    if not from_file:
        return [*lines, f"from {place} import {', '.join(names)}"]
    path = Path(place)
    lines.append(f"sys.path.insert(0, {str(path.resolve().parent)!r})")
    if path.stem.isidentifier():
        return [*lines, f"from {path.stem} import {', '.join(names)}  # noqa: E402"]
    return [*lines, *(f"{each} = __import__({path.stem!r}).{each}  # noqa: E402" for each in names)]


def _holds_what_was_made(found: Found) -> bool:
    """Whether a model is changed by an object, or by several modules, that must be kept beside it."""
    return found.way == MODEL and found.places.paths["W"].startswith("linear.")


def _making(found: Found) -> list[str]:
    """The lines that make the module."""
    values = VALUES | {"targets": f"[{found.place!r}]"} | ({"alpha": "config.alpha / config.rank"} if found.direct else {})
    if found.rule == ROOT:
        values |= {"alpha": 'config.alpha / (config.rank**0.5 if config.scaling == "standard" and config.rank else 1)'}
    call, moved = _call(found.plan, values), ".to(config.device, dtype)" if not found.mixed else ".to(config.device)"
    made = "module" if not found.way else "lora"
    lines = [f"{one.place if isinstance(one.place, dict) else one.place.__name__}.{one.name} = {values[one.role]}"
             for one in found.plan.beside if not isinstance(one.place, dict)]
    lines += [f"model = Model(linear, {found.place!r})"] * (found.way == MODEL or "model" in found.plan.roles.values())
    lines += [f"{made} = {call}", *(line for step in found.plan.then for line in _step(step, made, values))]
    lines += {
        "": [],
        MODEL: [f"module = {'Patched(model, nn.ModuleList(modules_in(lora)))' if _holds_what_was_made(found) else 'model'}"],
        REPLACED: ["changes(lora, linear)  # calls what replaces the forward pass", "module = Patched(linear, lora)"],
        PARAMETRISED: [f"lora{moved}", "module = linear", 'parametrize.register_parametrization(module, "weight", lora)'],
        BESIDE: ["module = Beside(linear, lora)"],
    }[found.way]
    if found.freezer:
        lines.append(f"module{found.freezer}()" if found.freezer.startswith(".") else f"{found.freezer}(module)")
    elif found.base_trains and found.given:
        lines.append("linear.requires_grad_(False)  # as the caller does")
    if not found.plan.offers("dropout") and dropouts(found.module(found.probe)):
        lines.append("set_dropout(module, config.dropout)")
    for name in "Wb" if found.mixed else "":
        if tensor := found.places.paths.get(name):
            lines += ["if config.bias:"] * (name == "b")
            lines.append(f"{'    ' * (name == 'b')}module.{tensor}.data = module.{tensor}.data.to(dtype)")
    return [*lines, f"module{moved}"]


def _call(plan: Plan, values: dict[str, str]) -> str:
    """The text of a call."""
    if plan.kind is not None:
        fields = {name: values[role] for name in fields_of(plan.kind) if (role := role_of(name)) in values}
        fields |= {name: repr(value) for name, value in plan.fields.items()}
        given = ", ".join(f"{name}={text}" for name, text in fields.items())
        values = values | {"configuration": f"{plan.kind.__name__}({given})"}
    elif "configuration" in plan.roles.values():
        values = values | {"configuration": f"Configuration(known_values(config, linear, None), {plan.fields!r})"}
    if plan.part is not None:
        values = values | {"part": _call(plan.part, values)}
    given = [f"{argument}={values.get(role, f'...  # {role}')}" for argument, role in plan.roles.items()]
    given += [f"{argument}={'torch.nn.' * isinstance(value, nn.Module)}{value!r}" for argument, value in plan.literals.items()]
    return f"{name_of(plan.call)}({', '.join(given)})"


def _step(step: Plan, made: str, values: dict[str, str]) -> list[str]:
    """The lines of something that is done with what was made."""
    call = step.call
    if isinstance(call, Attribute):
        return [f"for part in {made}.modules():", f"    if hasattr(part, {call.name!r}):", f"        part.{call.words}"]
    if isinstance(call, FirstPass):
        return [f"{made}(linear.weight.new_ones(2, config.in_features))"]
    text = _call(step, values)
    if isinstance(call, Forward):
        return [f"{made}.forward = functools.partial({made}.forward, {text.removeprefix('forward(')}"]
    if isinstance(call, Aside):
        return [text]
    return [f"{made}.{text}" if is_method(call) else text.replace("(", f"({made}, ", 1).replace(", )", ")")]
