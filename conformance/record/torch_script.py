"""Writes a failure of a PyTorch subject as a script that uses only PyTorch and the subject's library, not this project.

The statements for `build`, `set_adapter`, `forward`, `backward` and the readings are written here. They do what a TorchLayer
does. For the other methods (train, merge, step, save, …) the script has the statements of the layer's own method, with the
module in place of `self.module`, or the statements that its method `merge_source`, … returns.
"""

import ast
import inspect
import os.path
import re
from collections.abc import Callable, Iterable
from types import ModuleType

import numpy as np
import torch

from conformance import torch_experiments
from conformance.record.script import READINGS, Name, caught, memory, nested, temporary
from conformance.subject import Call, LayerConfig
from conformance.torch import TorchLayer

USUAL = {"bias": True, "dtype": torch.float32, "device": "cpu"}  # defaults, where a signature has none or None
NO_GRAD = "with torch.no_grad():"
THROUGH = "through = lambda module, x: module(x)"


class Unsayable(Exception):
    """A call cannot be written without this project."""


def script(calls: list[Call], imports: Iterable[str], construction: Callable[[LayerConfig, str], list[str]]) -> str | None:
    """The calls as a PyTorch script. `construction(config, name)` gives the lines that build the module and call it `name`."""
    writer, body = _Writer(calls, construction), []
    try:
        for i, call in enumerate(calls):
            lines = writer.lines(call)
            body += caught("\n".join(lines)) if call.raised and i + 1 < len(calls) else lines
    except Unsayable:
        return None
    head = dict.fromkeys(["import torch", *imports, *sorted(writer.imports), *temporary(calls)])
    return "\n".join([*head, *_joined(body)])


def written(name: str, function: Callable, *args, **options) -> str:
    """Source of a call of the function. Options that have their default are left out."""
    parameters = inspect.signature(function).parameters
    shown = [source(value) for value in args]
    for key, value in options.items():
        default = parameters[key].default if key in parameters else None
        default = USUAL.get(key) if default is None else default
        if value != default and source(value) != source(default):
            shown.append(f"{key}={source(value)}")
    return f"{name}({', '.join(shown)})"


def source(value) -> str:
    """Python source of an argument of a constructor."""
    if isinstance(value, torch.nn.Linear):
        bias, weight = value.bias is not None, value.weight
        return written("torch.nn.Linear", torch.nn.Linear, value.in_features, value.out_features, bias=bias,
                       dtype=weight.dtype, device=weight.device)
    if isinstance(value, float) and not np.isfinite(value):
        return f"float('{value}')"
    return str(value) if isinstance(value, torch.dtype) else repr(str(value) if isinstance(value, torch.device) else value)


def tensor(array: np.ndarray, *options: str, whole: str = ".") -> str:
    """Source of a tensor with the numbers and the strides of an array. Whole numbers end in a point."""
    if any(stride < 0 for stride in array.strides):
        array = array.copy()  # as TorchLayer does
    if not array.flags.c_contiguous:
        items, first, strides = memory(array)
        gradient = [option for option in options if "requires_grad" in option]
        others = [option for option in options if option not in gradient]
        return f"{tensor(items, *others)}.as_strided({array.shape}, {strides}, {first})" + ".requires_grad_()" * len(gradient)
    if not array.any() and array.size != 1:
        return f"torch.zeros({', '.join([*map(str, array.shape), *options])})"
    return f"torch.tensor({', '.join([nested(array, whole), *options])})"


def dtype_of(array: np.ndarray) -> list[str]:
    """The option of torch.tensor that gives the dtype, if one is needed."""
    return [] if array.dtype == np.float32 else [f"dtype=torch.{array.dtype.name}"]


def device_of(config: LayerConfig) -> list[str]:
    return [] if config.device == "cpu" else [f"device={config.device!r}"]


def assigned(place: str, array: np.ndarray) -> str:
    """The statement that copies an array into the tensor at `place`, without rounding."""
    if not array.any():
        return f"    {place}.zero_()"
    wide = array.dtype == np.float64 and (array.astype(np.float32) != array).any()
    options = ["dtype=torch.float64"] if wide else []
    return f"    {place}.copy_({tensor(np.ascontiguousarray(array), *options, whole='')})"


class _Writer:
    """Writes the lines for each call, and keeps track of what the variables of the script hold."""

    def __init__(self, calls: list[Call], construction: Callable[[LayerConfig, str], list[str]]):
        self.calls, self.construction = calls, construction
        self.imports: set[str] = set()
        self.configs: dict[str, LayerConfig] = {}
        self.wanted: dict[str, bool] = {}  # by layer, whether x asks for a gradient
        self.training: dict[str, bool] = {}  # by layer, its mode
        self.passes: dict[str, Call] = {}  # by layer, its last forward pass
        self.ways: dict[str, str] = {}  # by layer, the function through which its passes go
        self.defined: set[str] = set()  # functions of experiments, and the dicts for what they keep

    def lines(self, call: Call) -> list[str]:
        own = {
            "build": self.build, "set_adapter": self.set_adapter, "forward": self.forward, "backward": self.backward,
            "adapter": self.adapter, "weight": self.reading, "bias": self.reading, "trainable": self.trainable,
            "train": self.train, "input_needs_grad": self.input_needs_grad, "as_module": self.as_module,
        }
        said = getattr(call.target, f"{call.method}_source", None)
        lines = said(call.layer, *call.args) if said else None
        if lines and call.shown:  # the last of the lines is an expression
            return [*lines[:-1], *self.printed(call, lines[-1], call.answer, np.shape(call.answer))]
        return lines or own.get(call.method, self.statements)(call)

    def place(self, call: Call, name: str, suffix: str = "") -> str:
        """Source of W, b, A or B of the layer in the layout of SPEC.md, so that indices are those of the report."""
        path = call.target.paths[name].removeprefix(".".join([*self.inner(call), ""]))
        turned = ".t()" if name in call.target.transposed else ""
        root = call.layer.replace("layer", "inner") if self.inner(call) else call.layer
        return _attributes(root, path) + suffix + turned

    def inner(self, call: Call) -> list[str]:
        """Path of the module that holds all the arrays, if it is deep inside the layer: it gets a variable of its own."""
        folders = [path.split(".")[:-1] for path in call.target.paths.values()]
        common = os.path.commonprefix(folders)
        return list(common) if len(common) > 1 else []

    def build(self, call: Call) -> list[str]:
        config, weight, bias = call.args
        self.configs[call.layer], self.wanted[call.layer] = config, True
        used = [c.method for c in self.calls if c.layer == call.layer and c.method not in ("build", "train", *READINGS)]
        is_set = used[:1] == ["set_adapter"]  # so its random numbers do not matter
        lines = [f"torch.manual_seed({config.seed})"] if config.dropout or not is_set else []
        lines += self.construction(config, call.layer)
        if call.target is None:
            return lines
        if self.inner(call):
            inner = _attributes(call.layer, ".".join(self.inner(call)))
            lines.append(f"{call.layer.replace('layer', 'inner')} = {inner}")
        return lines + self.copied(call, {"W": weight} | ({} if bias is None else {"b": bias}))

    def set_adapter(self, call: Call) -> list[str]:
        return self.copied(call, call.args[0])

    def copied(self, call: Call, arrays: dict[str, np.ndarray]) -> list[str]:
        lines = [NO_GRAD]
        for name, array in arrays.items():
            place = self.place(call, name)
            turned = place.endswith(".t()")
            lines.append(assigned(place.removesuffix(".t()"), array.T if turned else array))
        return lines

    def forward(self, call: Call) -> list[str]:
        self.passes[call.layer] = call
        config, x, y = self.configs[call.layer], call.layer.replace("layer", "x"), call.layer.replace("layer", "y")
        differentiated = self.wanted[call.layer] and (call.raised or not call.shown)
        given = tensor(call.args[0], *dtype_of(call.args[0]), *device_of(config), *["requires_grad=True"] * differentiated)
        lines = []
        if differentiated or call.changed:
            lines, given = [f"{x} = {given}"], x
        way = self.ways.get(call.layer)
        passed = f"{way}(through, {call.layer}, {given})" if way else f"{call.layer}({given})"
        if not call.shown:
            lines.append(f"{y} = {passed}")
        else:
            shape = (*call.args[0].shape[:-1], config.out_features)
            lines += self.printed(call, passed, call.answer, shape)
        return lines + [f"print({x}.tolist())"] * (call.changed and call.shown)

    def backward(self, call: Call) -> list[str]:
        x, y, dy = (call.layer.replace("layer", name) for name in ("x", "y", "dy"))
        given = tensor(call.args[0], *dtype_of(call.args[0]), *device_of(self.configs[call.layer]))
        lines = []
        if call.changed:
            lines, given = [f"{dy} = {given}"], dy
        none = not call.raised and not {"x", "A", "B"} & set(call.answer)
        lines.append(f"if {y}.requires_grad: " * none + f"{y}.backward({given})")
        names = ["x"] * self.wanted[call.layer] + ["A", "B"]
        for name in dict.fromkeys([*names, *(call.answer or ())]) if call.shown and not call.raised else ():
            known = name in call.target.paths
            grad = f"{x}.grad" if name == "x" else (
                self.place(call, name, ".grad") if known else f"{_attributes(call.layer, name)}.grad")
            there = name in call.answer
            lines.append(f'print("d{name}", {grad}.tolist())' if there else f'print("d{name}", {grad.removesuffix(".t()")})')
        lines += [f"print({x}.tolist())"] * (call.layer in self.passes and self.passes[call.layer].changed)
        return lines + [f"print({dy}.tolist())"] * call.changed

    def adapter(self, call: Call) -> list[str]:
        return [f'print("{name}", {self.place(call, name)}.tolist())' for name in ("A", "B")]

    def reading(self, call: Call) -> list[str]:
        name, config = {"weight": "W", "bias": "b"}[call.method], self.configs[call.layer]
        shape = (config.out_features, config.in_features) if name == "W" else (config.out_features,)
        return self.printed(call, self.place(call, name), call.answer, shape)

    def trainable(self, call: Call) -> list[str]:
        return [f"print({{name: tuple(p.shape) for name, p in {call.layer}.named_parameters() if p.requires_grad}})"]

    def train(self, call: Call) -> list[str]:
        mode = call.args[0] if call.args else True
        known, self.training[call.layer] = self.training.get(call.layer, True), mode
        nothing = call.target.plain_modes and mode == known
        return [] if nothing and not call.raised else self.statements(call)

    def input_needs_grad(self, call: Call) -> list[str]:
        self.wanted[call.layer] = call.args[0] if call.args else True
        return []

    def as_module(self, call: Call) -> list[str]:
        """The text of the experiment with all that it needs, and a call of it. It prints what TorchLayer gives as facts, in the
        layout of the module."""
        name, given = call.args
        if name == "replaced":
            return self.replaced(call)
        needed = torch_experiments.needed(name)
        if type(call.target).through is not TorchLayer.through or "around" in needed:
            raise Unsayable(name)
        if name == "passes_go":
            way = self.ways[call.layer] = given["way"]
            return [*self.defining(way), *self.once("through", THROUGH)]
        kept, way = f"kept_{call.layer}", self.ways.get(call.layer)
        through = f"lambda module, x: {way}(through, module, x)" if way else "through"
        words = {"module": call.layer, "call": through, "kept": kept}
        words |= {factor: _attributes(call.layer, call.target.paths[factor]) for factor in "AB"}
        base = {name: _attributes(call.layer, path) for name, path in call.target.paths.items() if name in "Wb"}
        words["base"] = f"{{{', '.join(f'{name!r}: {text}' for name, text in base.items())}}}"
        lines = self.defining(name)
        for key, word, text in (("call", "through", THROUGH), ("kept", kept, f"{kept} = {{}}")):
            lines += self.once(word, text) if key in needed else []
        if call.layer in self.passes:
            lines.append(f"for parameter in {call.layer}.parameters(): parameter.grad = None")
        place = device_of(self.configs[call.layer])
        said = {key: tensor(value, *dtype_of(value), *place) if isinstance(value, np.ndarray) else repr(value)
                for key, value in given.items()}
        arguments = [words[key] for key in needed if key in words] + [f"{key}={text}" for key, text in said.items()]
        return [*lines, f"print({name}({', '.join(arguments)}))"]

    def once(self, word: str, text: str) -> list[str]:
        """The line that defines the word, if there is none yet."""
        lines = [] if word in self.defined else [text]
        self.defined.add(word)
        return lines

    def replaced(self, call: Call) -> list[str]:
        """A deep copy takes the name of the layer. In the first one there is NaN from now on."""
        self.imports.add("import copy")
        lines = [f"first, {call.layer} = {call.layer}, copy.deepcopy({call.layer})"]
        if self.inner(call):
            lines.append(f"{call.layer.replace('layer', 'inner')} = {_attributes(call.layer, '.'.join(self.inner(call)))}")
        return lines + [NO_GRAD, "    for tensor in first.state_dict().values(): tensor.fill_(float('nan'))"]

    def defining(self, name: str) -> list[str]:
        """The text of a function or class of conformance/torch_experiments.py, after those that it uses. Nothing if it was
        written already."""
        if name in self.defined:
            return []
        self.defined.add(name)
        found, lines = vars(torch_experiments), []
        tree = _Bare().visit(ast.parse(inspect.getsource(found[name])).body[0])
        for word in dict.fromkeys(node.id for node in ast.walk(tree) if isinstance(node, ast.Name)):
            value = found.get(word)
            if isinstance(value, ModuleType):
                self.imports.add(f"import {value.__name__}" + ("" if value.__name__ == word else f" as {word}"))
            elif value is not None and value.__module__ == torch_experiments.__name__:
                lines += self.defining(word)
            elif value is not None:
                self.imports.add(f"from {value.__module__} import {word}")
        return [*lines, *ast.unparse(tree).splitlines()]

    def printed(self, call: Call, expression: str, answer, shape: tuple[int, ...]) -> list[str]:
        """The lines that print the numbers of an answer. They print dtype and shape if these are wrong, or if it is empty."""
        if not isinstance(answer, np.ndarray):
            return [expression if call.raised else f"print({expression})"]
        usual = answer.dtype.name == self.configs[call.layer].dtype and answer.shape == shape and answer.size
        if usual:
            return [f"print({expression}.tolist())"]
        return [f"result = {expression}", "print(result.dtype, tuple(result.shape), result.tolist())"]

    def statements(self, call: Call) -> list[str]:
        """The body of the layer's own method, with the layer in place of `self.module` and the arguments put in."""
        method = getattr(type(call.target), call.method)
        bound = inspect.signature(method).bind(call.target, *call.args)
        bound.apply_defaults()
        words = {key: value if isinstance(value, Name) else repr(value) for key, value in list(bound.arguments.items())[1:]}
        variables = inspect.getclosurevars(method)
        for key, value in {**variables.globals, **variables.nonlocals}.items():
            if isinstance(value, ModuleType):
                self.imports.add(f"import {value.__name__}" + ("" if value.__name__ == key else f" as {key}"))
            elif isinstance(value, str | int | float):
                words[key] = repr(value)
            else:
                raise Unsayable(key)
        tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(method))).body[0]
        assert isinstance(tree, ast.FunctionDef)
        start = 1 if ast.get_docstring(tree) else 0
        text = "\n".join(ast.unparse(_InPlace(call.layer, words).visit(statement)) for statement in tree.body[start:])
        if re.search(r"\bself\b|\breturn\b", text):
            raise Unsayable(call.method)
        return text.splitlines()


class _Bare(ast.NodeTransformer):
    """Takes the docstrings and the annotations away."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.body, node.returns = node.body[ast.get_docstring(node) is not None:], None
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        node.body = node.body[ast.get_docstring(node) is not None:] or [ast.Pass()]
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        return node if node.value is None else ast.copy_location(ast.Assign([node.target], node.value), node)


class _InPlace(ast.NodeTransformer):
    """Replaces `self.module` by the name of the module, and names by source."""

    def __init__(self, module: str, words: dict[str, str]):
        self.module, self.words = module, words

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.parse(self.words[node.id], mode="eval").body if node.id in self.words else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        return ast.Name(self.module) if ast.unparse(node) == "self.module" else self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if ast.unparse(node.func) == "self._call":  # calls a method that the module may not have
            assert isinstance(node.args[0], ast.Constant)
            return ast.parse(f"{self.module}.{node.args[0].value}()", mode="eval").body
        return self.generic_visit(node)


def _attributes(root: str, path: str) -> str:
    """Source of a dotted path. A number in it is written as an index."""
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", f"{root}.{path}")


def _joined(lines: list[str]) -> list[str]:
    """The lines with one `with torch.no_grad():` for all such blocks that follow each other."""
    found, inside = [], False
    for line in lines:
        if line != NO_GRAD or not inside:
            found.append(line)
        inside = line == NO_GRAD or (inside and line.startswith("    "))
    return found
