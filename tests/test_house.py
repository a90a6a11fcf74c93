"""The house rules: who may import whom, and where a tolerance may stand."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {"lora_ref": {"numpy", "lora_ref"}, "lora_torch": {"torch", "lora_torch"}}
MORE = {  # what one file alone may import
    "lora_ref/study/picture.py": {"matplotlib"},  # when a picture is asked for
    "lora_torch/kernels.py": {"triton"},
    "lora_torch/adapter_files.py": {"safetensors"}, "lora_torch/checkpoint.py": {"safetensors"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", ALLOWED)
def test_the_two_writings_are_independent(package):
    for path in (ROOT / package).rglob("*.py"):
        more = MORE.get(path.relative_to(ROOT).as_posix(), set())
        assert imports(path) - set(sys.stdlib_module_names) <= ALLOWED[package] | more, path


FLOORS = (  # from the ground: a module may import from its own floor and from those before it
    ("subject", "model", "loader", "torch", "torch_experiments"), ("truth",), ("record",), ("drivers",), ("files",),
    ("requirements",),
    ("subjects", "mutants"), ("run",), ("bench", "findings", "mutate", "vectors", "fixtures"), ("report",),
    ("commands", "skeletons"), ("__main__", "plugin"),
)
FLOOR = {part: height for height, parts in enumerate(FLOORS) for part in parts}


def modules(package: str) -> dict[str, Path]:
    """Dotted name → file, of every module of a package."""
    found = {}
    for path in (ROOT / package).rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if "scripts" not in parts:  # of findings: each is run alone, with its library
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of `known` that a module imports when it runs. Imports inside functions count, too."""
    found, tree = set(), ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []  # what a type checker alone reads
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = [*name.split(".")[: -node.level]] if node.level else []  # relative, where no name of the package is known
            module = ".".join([*above, *filter(None, [node.module])])
            whole = {f"{module}.{alias.name}" for alias in node.names}
            found |= whole & set(known) or {module}
    return (found & set(known)) - {name, name.partition(".")[0]}


def test_an_import_of_conformance_goes_down_and_never_up():
    known = modules("conformance")
    del known["conformance"]  # the public face: its `load` asks the harness when it is called
    for name, path in known.items():
        for other in imported(name, path, known):
            here, there = (FLOOR[part.split(".")[1]] for part in (name, other))
            assert here >= there, f"{name} imports {other}, which is on a higher floor"


@pytest.mark.parametrize("package", ["lora_ref", "lora_torch", "conformance"])
def test_there_is_no_circle_of_imports(package):
    known = modules(package)
    graph = {name: imported(name, path, known) for name, path in known.items()}
    graph.pop(package)
    while graph:
        free = [name for name, others in graph.items() if not others & set(graph)]
        assert free, f"a circle among {', '.join(sorted(graph))}"
        for name in free:
            del graph[name]


def test_the_reference_needs_neither_its_error_analysis_nor_its_studies():
    known = modules("lora_ref")
    for name, path in known.items():
        part = (name.split(".") + [""])[1]
        if part not in ("error", "study", "__main__"):
            assert not {other for other in imported(name, path, known) if other.split(".")[1] in ("error", "study")}, name
        if part == "error":
            assert not {other for other in imported(name, path, known) if other.split(".")[1] == "study"}, name


def test_what_plans_and_counts_knows_no_numerics():
    for name in ("runner", "plan", "verdict"):
        path = ROOT / "conformance" / "run" / f"{name}.py"
        assert not {"numpy", "torch", "lora_ref"} & imports(path), path


def test_what_runs_needs_what_the_package_depends_on_and_no_more():
    """Subjects, drivers of other libraries, the benchmark and the plugin of pytest import more, when they are asked for."""
    allowed = {"numpy", "torch", "hypothesis", "rich", "ml_dtypes", "jinja2", "markupsafe", "conformance",
               "lora_ref", "lora_torch"}
    for name, path in modules("conformance").items():
        part = (name.split(".") + ["", ""])[1:3]
        if part[0] not in ("subjects", "bench", "plugin") and part not in (["drivers", "jax"], ["drivers", "gpt2"]):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            first = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
            found = {alias.name.split(".")[0] for node in first.body if isinstance(node, ast.Import) for alias in node.names}
            found |= {(node.module or "").split(".")[0] for node in first.body
                      if isinstance(node, ast.ImportFrom) and not node.level}
            own = {"safetensors"} if name == "conformance.mutants.readers" else set()  # readers that do not share our code
            assert found - set(sys.stdlib_module_names) <= allowed | own, path


def test_no_tolerance_outside_compare():
    """No file uses the usual words for a tolerance, or a small constant next to a comparison."""
    for path in (ROOT / "conformance").rglob("*.py"):
        exempt = path.parent.name in ("mutants", "scripts")  # a mutant's fault may be a threshold
        if exempt or path.parts[-2:] == ("truth", "compare.py"):
            continue
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(rtol|atol|rel_tol|abs_tol|allclose|isclose|approx)\b", text), path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Compare):
                for part in ast.walk(node):
                    small = isinstance(part, ast.Constant) and isinstance(part.value, float) and 0 < part.value < 1e-2
                    assert not small, f"{path}:{node.lineno} compares with {ast.unparse(node)}"


def test_no_tolerance_in_tests():
    """No test gives a tolerance by one of the usual names, or calls approx."""
    for path in (ROOT / "tests").rglob("*.py"):
        if path != Path(__file__):
            assert not re.search(r"\b(rtol|atol|rel_tol|abs_tol)\s*=|approx\(", path.read_text(encoding="utf-8")), path
