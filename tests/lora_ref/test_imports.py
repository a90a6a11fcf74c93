"""lora_ref imports only NumPy and the standard library."""

import json
import subprocess
import sys

LIST = """
import importlib, json, pkgutil, sys
import numpy, numpy.random
before = set(sys.modules)  # NumPy, what it brings along (Cython's runtime), and what a .pth file may have brought
import lora_ref
names = [m.name for m in pkgutil.walk_packages(lora_ref.__path__, "lora_ref.")]
for name in names:
    importlib.import_module(name)
print(json.dumps([names, sorted({m.split(".")[0] for m in set(sys.modules) - before})]))
"""


def test_every_module_imports_numpy_and_nothing_else_from_outside() -> None:
    done = subprocess.run([sys.executable, "-c", LIST], capture_output=True, text=True, check=True)
    names, imported = json.loads(done.stdout)
    assert {f"lora_ref.{name}" for name in ("lora", "linear", "error.gradcheck", "error.bounds", "study.papers")} <= set(names)
    assert set(imported) - sys.stdlib_module_names - {"numpy"} == {"lora_ref"}
