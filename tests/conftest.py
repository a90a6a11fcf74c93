"""Settings that must be made before torch and Triton are imported: one thread for each process, because arrays are small and
every core already runs a process; and Triton's interpreter where there is no GPU. The tests of every folder can import
small_models and pages, in every import mode of pytest.
What is marked with `peers` is skipped where its packages are missing, and with `thorough` where nobody asks for it."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import pytest  # noqa: E402
import torch  # noqa: E402 reads them when it is imported

sys.path.append(str(Path(__file__).parent))

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """`pytest -m peers` runs what needs the libraries that other people wrote: CI installs them after the rest has passed."""
    if item.get_closest_marker("thorough") and os.environ.get("HYPOTHESIS_PROFILE") != "thorough":
        pytest.skip("it takes long: HYPOTHESIS_PROFILE=thorough runs it")
    for package in (name for marker in item.iter_markers("peers") for name in marker.args):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed (pip install -e '.[peers]')")
