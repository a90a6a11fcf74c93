"""What recognition found, in words, and as a subject that a user can correct by hand."""

from pathlib import Path

from conformance.drivers.look.arguments import Forward
from conformance.drivers.look.arrays import SEEN
from conformance.drivers.look.methods import Methods
from conformance.drivers.look.recognised import Found
from conformance.drivers.look.ways import BESIDE, MODEL, PARAMETRISED, REPLACED

AXES = {"W": ("out", "in"), "A": ("in", "rank"), "B": ("rank", "out"), "b": ("out",)}


def told(found: Found, methods: Methods, zero: tuple[str, ...]) -> list[tuple[str, str]]:
    """Rows of a table. `zero` are those of A and B that are zero at the start."""
    rows = [("built as", found.plan.words)]
    rows += [("y is of", found.way)] if found.way else []
    for step in found.plan.then:
        if isinstance(step.call, Forward):
            rows.append(("forward", f"needs {' and '.join(step.literals)} besides x. This was given: {step.words}"))
    rows += [(name, _array(found, name, zero)) for name in ("W", "b", "A", "B")]
    rows.append(("bias", "by choice" if len(found.bias) == 2 else "always" if found.bias[0] else "never"))
    rows.append(("rank", "by choice" if found.rank is None else f"always {found.rank}"))
    rule = f"{found.direct}, which is the scale itself" if found.direct else found.rule
    rows.append(("scale", rule or "not found: the LoRA part is no multiple of (x A) B"))
    rows.append(("dropout", "by choice" if found.plan.offers("dropout") else "none"))
    undone = f", undone by {methods.unmerge}" if methods.unmerge else ""
    rows.append(("merging", f"{methods.merge}{undone}" if methods.merge else "none"))
    rows += [("", note) for note in methods.notes]
    if found.base_trains:
        rows.append(("freezing", _freezing(found)))
    if found.places.dimensions:
        rows.append(("x", f"must have {'three' if found.places.dimensions == 3 else 'four'} dimensions"))
    if found.mixed:
        rows.append(("formats", "the LoRA part is computed in float32, over a base of any format"))
    rows += [("not offered", f"{dtype}: {what}") for dtype, what in (found.formats or {}).items() if not found.mixed]
    error = found.places.error
    rows.append(("seen", "; ".join(found.places.seen) or f"nothing: y is not computed. {type(error).__name__}: {error}"))
    missed = [what for what in SEEN if what not in found.places.seen]
    return rows + ([("not seen", "; ".join(missed))] if missed else [])


def _freezing(found: Found) -> str:
    """Who freezes those of W and b that train after construction."""
    if found.freezer:
        return f"{found.freezer.removeprefix('.')}()"
    left = " and ".join(found.base_trains)
    if found.thawed:
        return f"nobody: the class makes {' and '.join(found.thawed)} train, also where the caller froze it"
    return f"the caller, who gives it {left}" if found.given else f"nobody freezes {left}, which the class makes"


def _array(found: Found, name: str, zero: tuple[str, ...]) -> str:
    if name not in found.places.paths:
        return "none"
    axes = AXES[name][::-1] if name in found.places.transposed else AXES[name]
    more = ", trains" if name in found.base_trains else ", zero at the start" if name in zero else ""
    return f"{found.places.paths[name]} ({', '.join(axes)}){more}"


# --- a subject -----------------------------------------------------------------------------------------------------------

VALUES = {  # of each role, in the text of a subject
    "in": "config.in_features", "out": "config.out_features", "width": "config.in_features", "rank": "config.rank",
    "alpha": "config.alpha", "bias": "config.bias", "dropout": "config.dropout", "linear": "linear", "weight": "linear.weight",
    "turned weight": "nn.Parameter(linear.weight.detach().t().clone())", "b": "linear.bias", "dtype": "dtype",
    "device": "config.device", "scaling": "config.scaling", "rslora": 'config.scaling == "rslora"', "seed": "config.seed",
    "false": "False", "true": "True", "zero": "0.0", "one": "1.0", "multiplier": "1.0", "name": '"default"',
    "switches": "[True]",
    "model": "model", "convolution": "Conv1D(linear)",
}
WAYS = {BESIDE: "Beside", MODEL: "Model", REPLACED: "Patched"}  # classes of ways.py that the text needs
TEXT = '''\
"""{name} as a subject: what `conformance look` found, to be corrected by hand."""

{imports}


class {own}Layer(TorchLayer):
{methods}


class {own}Subject(Subject):
    name = "{name}"{scale}

    def build(self, config, weight, bias):
{refusal}        torch.manual_seed(config.seed)
        dtype = getattr(torch, config.dtype)
        linear = nn.Linear(config.in_features, config.out_features, config.bias).to(config.device, dtype)
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
        ("config.dropout", plan.offers("dropout")),
        ('config.scaling != "standard"', plan.offers("scaling") or plan.offers("rslora")),
        ("config.bias", True in found.bias), ("not config.bias", False in found.bias)) if not offered]
    refusal = f"        if {' or '.join(declined)}:\n            raise Unsupported('this configuration')\n" if declined else ""
    told = [f"    def {method}(self):\n        self.module.{call}"
            for method, call in (("merge", methods.merge), ("unmerge", methods.unmerge)) if call]
    b = repr(paths.get("b")) + (" if config.bias else None" if "b" in paths and len(found.bias) == 2 else "")
    fixed = f"\n    scale = {found.rule.removeprefix('always ')}" if found.rule.startswith("always") else ""
    return TEXT.format(
        name=name, own=own, imports="\n".join(_imports(found, name, place)), scale=fixed, refusal=refusal, b=b,
        methods="\n\n".join(told) or "    pass  # merge(), unmerge(), save() and load() can be overridden here",
        making="\n".join(f"        {line}" for line in _making(found, name)), transposed=found.places.transposed,
        **{letter: paths[letter] for letter in "WAB"})


def named(name: str) -> str:
    """The name of a class or function, as the beginning of that of a class."""
    return name if not name.islower() else "".join(part.capitalize() for part in name.split("_"))


def _imports(found: Found, name: str, place: str) -> list[str]:
    from_file = place.endswith(".py")
    lines = ["import sys", ""] if from_file else []
    lines += ["import torch", "from torch import nn"]
    lines += ["from torch.nn.utils import parametrize"] if found.way == PARAMETRISED else []
    lines += ["", "from conformance import Subject, Unsupported"]
    classes = {WAYS[found.way]} if found.way in WAYS else set()
    classes |= {"Model"} if "model" in found.plan.roles.values() else set()
    lines += [f"from conformance.drivers.look.ways import {', '.join(sorted(classes))}"] if classes else []
    lines += ["from conformance.drivers.look.arguments import Conv1D"] if found.plan.around == "convolution" else []
    lines += ["from conformance.torch import TorchLayer", ""]
    names = [name, found.freezer] if found.freezer and not found.freezer.startswith(".") else [name]
    if not from_file:
        return [*lines, f"from {place} import {', '.join(names)}"]
    path = Path(place)
    lines.append(f"sys.path.insert(0, {str(path.resolve().parent)!r})")
    if path.stem.isidentifier():
        return [*lines, f"from {path.stem} import {', '.join(names)}  # noqa: E402"]
    return [*lines, *(f"{each} = __import__({path.stem!r}).{each}  # noqa: E402" for each in names)]


def _making(found: Found, name: str) -> list[str]:
    """The lines that make the module."""
    known = VALUES | {"targets": f"[{found.place!r}]"}
    given = [f"{argument}={known.get(role, f'...  # {role}')}" for argument, role in found.plan.roles.items()]
    call = f"{name}({', '.join(given)})"
    moved = ".to(config.device, dtype)"
    lines = {
        "": [f"module = {call}"],
        MODEL: [f"module = model = Model(linear, {found.place!r})", call],
        REPLACED: [f"lora = {call}", "lora.apply_to()", "module = Patched(linear, lora)"],
        PARAMETRISED: [f"lora, module = {call}{moved}, linear",
                       'parametrize.register_parametrization(module, "weight", lora)'],
        BESIDE: [f"module = Beside(linear, {call})"],
    }[found.way]
    if "model" in found.plan.roles.values() and found.way != MODEL:
        lines = [f"model = Model(linear, {found.place!r})", *lines]
    if found.freezer:
        lines.append(f"module{found.freezer}()" if found.freezer.startswith(".") else f"{found.freezer}(module)")
    elif found.base_trains and found.given:
        lines.append("linear.requires_grad_(False)  # as the caller does")
    return [*lines, f"module{moved}"]
