"""The house rules: who may import whom, and where a tolerance may stand."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {"lora_ref": {"numpy", "lora_ref"}, "lora_torch": {"torch", "triton", "lora_torch"}}  # triton: kernels.py alone
DRAWS = Path("lora_ref/study/picture.py")  # with matplotlib, imported when a picture is asked for


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
    import sys

    for path in (ROOT / package).rglob("*.py"):
        more = {"matplotlib"} if path.relative_to(ROOT) == DRAWS else set()
        assert imports(path) - set(sys.stdlib_module_names) <= ALLOWED[package] | more, path


def test_requirements_know_nothing_of_reports_and_subjects_nothing_of_requirements():
    for folder, forbidden in {"requirements": "report|runner|subjects", "subjects": "requirements|report|runner"}.items():
        for path in (ROOT / "conformance" / folder).glob("*.py"):
            assert not re.search(rf"conformance\.({forbidden})\b", path.read_text(encoding="utf-8")), path
    assert "numpy" not in imports(ROOT / "conformance" / "runner.py")


def test_no_tolerance_outside_compare():
    """Neither the words of one, nor a small constant beside a comparison."""
    for path in (ROOT / "conformance").rglob("*.py"):
        if path.name == "compare.py" or path.parent.name == "mutants":  # a mutant's fault may be a threshold
            continue
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(rtol|atol|rel_tol|abs_tol|allclose|isclose|approx)\b", text), path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Compare):
                for part in ast.walk(node):
                    small = isinstance(part, ast.Constant) and isinstance(part.value, float) and 0 < part.value < 1e-2
                    assert not small, f"{path}:{node.lineno} compares with {ast.unparse(node)}"


def test_no_tolerance_in_tests():
    """Except the issue's own figure for the complex step."""
    for path in (ROOT / "tests").rglob("*.py"):
        if path != Path(__file__):
            assert not re.search(r"\b(rtol|atol|rel_tol|abs_tol)\s*=|approx\(", path.read_text(encoding="utf-8")), path
